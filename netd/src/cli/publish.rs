use super::output::{Out, note, segment, table};
use super::{Client, Failure};
use crate::wire::{Outcome, PublishRequest, PublishView};

/// Publish a guest's port on the host. Reached from outside, from the host itself, and from other guests.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The network. Without a guest: list what it publishes.
    network: Option<String>,
    /// The guest, by name or address.
    #[arg(requires = "ports")]
    guest: Option<String>,
    /// HOSTPORT:GUESTPORT/tcp, like 8080:80/tcp.
    ports: Option<String>,
}

/// Take a publication back.
#[derive(Debug, clap::Args)]
pub(super) struct UnpublishArgs {
    /// The network.
    network: String,
    /// The host's port, like 8080/tcp.
    port: String,
}

pub(super) fn run(args: Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let (Some(network), Some(guest), Some(ports)) = (&args.network, args.guest, args.ports) else {
        let query = args
            .network
            .map_or_else(String::new, |n| format!("?network={}", segment(&n)));
        let all: Vec<PublishView> = client.get(&format!("/v1/publications{query}"))?;
        return out.show(&all, || rows(&all));
    };
    let request = PublishRequest { guest, ports };
    let path = format!("/v1/networks/{}/publications", segment(network));
    let made: PublishView = client.post(&path, &request)?;
    out.show(&made, || {
        let address = made
            .address
            .map_or_else(|| "?".to_owned(), |a| a.to_string());
        format!(
            "Port {}/{} of this host leads to {} ({address}:{})",
            made.host_port, made.protocol, made.guest, made.guest_port
        )
    })
}

pub(super) fn take_back(args: &UnpublishArgs, client: &Client, out: &Out) -> Result<(), Failure> {
    let (port, protocol) = args.port.split_once('/').unwrap_or((&args.port, "tcp"));
    let path = format!(
        "/v1/networks/{}/publications/{}/{}",
        segment(&args.network),
        segment(protocol),
        segment(port)
    );
    let done: Outcome = client.delete(&path)?;
    done.notes.iter().for_each(|n| note(n));
    out.show(&done, || {
        format!("Port {port}/{protocol} of this host leads nowhere now")
    })
}

fn rows(all: &[PublishView]) -> String {
    if all.is_empty() {
        return "Nothing is published: `vnet publish NETWORK GUEST 8080:80/tcp` does.".to_owned();
    }
    table(
        ["NETWORK", "HOST PORT", "GUEST", "ADDRESS", "GUEST PORT"],
        all.iter().map(|p| {
            [
                p.network.clone(),
                format!("{}/{}", p.host_port, p.protocol),
                p.guest.clone(),
                p.address.map_or_else(|| "-".to_owned(), |a| a.to_string()),
                p.guest_port.to_string(),
            ]
        }),
    )
}
