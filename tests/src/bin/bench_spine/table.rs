//! The figures as a table: theirs, ours, the ratio, what was to be reached, and whether it was.

use std::io::Write as _;
use std::time::Duration;

/// One measure.
pub(crate) struct Row {
    measure: String,
    theirs: Option<f64>,
    ours: f64,
    unit: &'static str,
    reach: String,
    reached: bool,
}

impl Row {
    /// Ours must be `times` faster than theirs.
    pub(crate) fn against(measure: &str, theirs: Duration, ours: Duration, times: f64) -> Self {
        let (theirs, ours) = (ms(theirs), ms(ours));
        let reach = format!("under 1/{times} of theirs");
        Self {
            measure: measure.to_owned(),
            theirs: Some(theirs),
            ours,
            unit: "ms",
            reach,
            reached: ours * times < theirs,
        }
    }

    /// Ours must be below a limit.
    pub(crate) fn below(
        measure: &str,
        theirs: Option<f64>,
        ours: f64,
        limit: f64,
        unit: &'static str,
    ) -> Self {
        let reach = format!("under {limit:.0} {unit}");
        Self {
            measure: measure.to_owned(),
            theirs,
            ours,
            unit,
            reach,
            reached: ours < limit,
        }
    }
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub(crate) fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

/// The time that `percent` of all do not exceed.
pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

/// A word to those who wait.
pub(crate) fn progress(what: &str) {
    eprintln!("... {what}");
}

pub(crate) fn print(rows: &[Row]) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "\n{}\n", crate::head());
    let _ = writeln!(
        out,
        "{:<42} {:>16} {:>12} {:>8}  {:<24} reached",
        "measure", "libvirt+dnsmasq", "netd", "ratio", "to reach"
    );
    for row in rows {
        let figure = |value: f64| format!("{value:.1} {}", row.unit).trim_end().to_owned();
        let theirs = row.theirs.map_or_else(|| "-".to_owned(), figure);
        let ratio = row.theirs.map_or_else(
            || "-".to_owned(),
            |theirs| format!("1/{:.1}", theirs / row.ours),
        );
        let reached = if row.reached { "yes" } else { "NO" };
        let _ = writeln!(
            out,
            "{:<42} {theirs:>16} {:>12} {ratio:>8}  {:<24} {reached}",
            row.measure,
            figure(row.ours),
            row.reach
        );
    }
}
