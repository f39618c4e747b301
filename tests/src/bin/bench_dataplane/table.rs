//! The table that is printed.

/// Head of the table.
pub(crate) fn title() {
    println!(
        "{:<5} {:<34} {:>22} {:>12} {:>9}  note",
        "id", "measure", "who", "median", "ratio"
    );
}

/// One line: all samples' median, and its ratio to the peer's.
pub(crate) fn line(id: &str, measure: &str, who: &str, value: f64, ratio: Option<f64>, note: &str) {
    let ratio = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
    println!("{id:<5} {measure:<34} {who:>22} {value:>12.3} {ratio:>9}  {note}");
}

/// A bench that could not run.
pub(crate) fn skipped(id: &str, why: &str) {
    println!("{id:<5} skipped: {why}");
}

/// The median; zero of nothing.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
