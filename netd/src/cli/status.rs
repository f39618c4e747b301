use super::output::{Out, pairs};
use super::{Client, Failure};
use crate::wire::Status;

pub(super) fn run(client: &Client, out: &Out) -> Result<(), Failure> {
    let status: Status = client.get("/v1/status")?;
    out.show(&status, || {
        let mut text = pairs(&[
            (
                "Daemon",
                format!(
                    "netd {} (process {}), up {}",
                    status.version,
                    status.pid,
                    span(status.uptime)
                ),
            ),
            (
                "Networks",
                format!("{} of {} running", status.networks_running, status.networks),
            ),
            ("Ports", status.ports.to_string()),
            ("Leases", status.leases.to_string()),
            ("Repairs", status.repairs.to_string()),
        ]);
        match status.warnings.as_slice() {
            [] => text.push_str("\nAll is well."),
            warnings => warnings
                .iter()
                .for_each(|w| text.push_str(&format!("\n! {w}"))),
        }
        text
    })
}

/// Seconds as `2d 3h`, `5m 10s`.
pub(super) fn span(seconds: u64) -> String {
    let (d, h, m, s) = (
        seconds / 86400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, _, _) => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    }
}
