use super::output::{Out, line};
use super::{Client, Failure, Format};
use crate::wire::Event;

/// Follow what happens, one line an event.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after this many events.
    #[arg(long)]
    count: Option<u64>,
}

pub(super) fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let mut left = args.count;
    let mut broken = Ok(());
    client.events(|data| {
        broken = print(data, out);
        left = left.map(|n| n.saturating_sub(1));
        broken.is_ok() && left != Some(0)
    })?;
    broken
}

fn print(data: &str, out: &Out) -> Result<(), Failure> {
    if out.format == Format::Json {
        return line(data);
    }
    let event: Event = serde_json::from_str(data).map_err(|e| Failure::Broken(e.to_string()))?;
    let seconds = event.at / 1000 % 86400;
    let clock = format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        event.at % 1000
    );
    line(&format!("{clock}  {:<18}  {}", event.kind, event.text))
}
