//! DHCP alone, on a bridge in a namespace: the clients of real machines, and `kill -9` under load.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use tests::{Dhclient, Ns, Proc, Udhcpc, tool};
use vnet_core::lease::LeaseRecord;
use vnet_core::store::Store;
use vnet_core::types::PortName;

const PATIENCE: Duration = Duration::from_secs(30);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 2);

const LAB: &str = r#"
name = "lab"
[bridge]
name = "br0"
[domain]
name = "lab.test"
[[subnet]]
address = "10.60.0.1/16"
[subnet.dhcp]
ranges = ["10.60.1.0-10.60.255.250"]
"#;

/// A host with a bridge, a guest on it, and the service alone.
struct Lan {
    host: Ns,
    guest: Ns,
}

impl Lan {
    fn new() -> anyhow::Result<Self> {
        let (host, guest) = (Ns::new("dhcp")?, Ns::new("guest")?);
        host.ip("link add br0 type bridge")?;
        host.ip("addr add 10.60.0.1/16 dev br0")?;
        host.ip("link set br0 up")?;
        host.link("p0", &guest, "eth0")?;
        host.ip("link set p0 master br0")?;
        host.scratch().write("lab.toml", LAB)?;
        Ok(Self { host, guest })
    }

    fn store(&self) -> PathBuf {
        self.host.scratch().join("leases.redb")
    }

    fn serve(&self) -> anyhow::Result<Proc> {
        let store = self.store().display().to_string();
        let document = self.host.scratch().join("lab.toml").display().to_string();
        let program = env!("CARGO_BIN_EXE_dhcp_serve");
        let server = self.host.spawn(&[program, &store, &document])?;
        server.wait_log("serving", PATIENCE)?;
        Ok(server)
    }

    fn leases(&self) -> anyhow::Result<Vec<LeaseRecord>> {
        Ok(Store::open(&self.store())?.leases()?)
    }
}

#[test]
fn udhcpc_and_dhclient_get_keep_and_give_back() -> anyhow::Result<()> {
    let name = "dhcp::udhcpc_and_dhclient_get_keep_and_give_back";
    if !tool::ready(name, &["busybox", "dhclient"]) {
        return Ok(());
    }
    let lan = Lan::new()?;
    let mut server = lan.serve()?;
    let first = Udhcpc::on(&lan.guest, "eth0")?.hostname("small").lease()?;
    assert_eq!(
        (first.get("router"), first.get("dns")),
        ("10.60.0.1", "10.60.0.1")
    );
    assert_eq!(
        (first.get("domain"), first.get("lease")),
        ("lab.test", "3600")
    );
    // It comes back: the same address.
    let again = Udhcpc::on(&lan.guest, "eth0")?.hostname("small").lease()?;
    assert_eq!(first.ip, again.ip);
    lan.guest.ip("addr flush dev eth0")?;

    let client = Dhclient::on(&lan.guest, "eth0", "send host-name \"big\";\n")?;
    let running = client.start()?;
    let lease = client.bound()?;
    assert_eq!(lease.get("routers"), "10.60.0.1");
    drop(running);
    client.release()?;
    server.kill9()?;

    // One guest to us, whichever client it ran: one address, under the name it said last.
    let leases = lan.leases()?;
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_eq!(leases[0].address.to_string(), first.ip.to_string());
    let name = leases[0].hostname.as_ref().map(PortName::as_str);
    assert_eq!(name, Some("big"), "{leases:?}");
    Ok(())
}

/// A relay with as many clients behind it as wanted: DISCOVER, REQUEST and their answers over one UDP socket.
struct Relay {
    socket: UdpSocket,
    next: u32,
    /// What was acknowledged: the client's number and its address.
    acknowledged: BTreeMap<u32, Ipv4Addr>,
}

impl Relay {
    fn on(lan: &Lan) -> anyhow::Result<Self> {
        let socket = lan.guest.enter(|| UdpSocket::bind((RELAY, 67)))??;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        Ok(Self {
            socket,
            next: 0,
            acknowledged: BTreeMap::new(),
        })
    }

    /// Keeps `window` exchanges going until the deadline; silence is the server's death.
    fn load(&mut self, window: u32, until: Instant) -> anyhow::Result<()> {
        let mut open = 0u32;
        while Instant::now() < until {
            while open < window {
                self.next += 1;
                self.say(self.next, MessageType::Discover, None)?;
                open += 1;
            }
            if !self.hear()? {
                open = open.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn say(&self, client: u32, kind: MessageType, wanted: Option<Ipv4Addr>) -> anyhow::Result<()> {
        let [a, b, c, d] = client.to_be_bytes();
        let none = Ipv4Addr::UNSPECIFIED;
        let mac = [2, 0, a, b, c, d];
        let mut message = Message::new_with_id(client, none, none, none, RELAY, &mac);
        message.set_opcode(Opcode::BootRequest);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        if let Some(wanted) = wanted {
            options.insert(DhcpOption::RequestedIpAddress(wanted));
            options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 60, 0, 1)));
        }
        // Nobody there is part of the game.
        let _ = self
            .socket
            .send_to(&message.to_vec()?, (Ipv4Addr::new(10, 60, 0, 1), 67));
        Ok(())
    }

    /// One answer: an OFFER is asked for, an ACK is remembered. Whether the exchange goes on.
    fn hear(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [0; 1500];
        let Ok(len) = self.socket.recv(&mut buffer) else {
            return Ok(false);
        };
        let reply = Message::decode(&mut Decoder::new(&buffer[..len]))?;
        match reply.opts().msg_type() {
            Some(MessageType::Offer) => {
                self.say(reply.xid(), MessageType::Request, Some(reply.yiaddr()))?;
                Ok(true)
            }
            Some(MessageType::Ack) => {
                assert!(reply.opts().get(OptionCode::AddressLeaseTime).is_some());
                self.acknowledged.insert(reply.xid(), reply.yiaddr());
                Ok(false)
            }
            _ => Ok(false),
        }
    }
}

#[test]
fn kill_9_at_any_moment_loses_no_lease() -> anyhow::Result<()> {
    if !tool::ready("dhcp::kill_9_at_any_moment_loses_no_lease", &[]) {
        return Ok(());
    }
    let lan = Lan::new()?;
    lan.guest.ip("addr add 10.60.0.2/16 dev eth0")?;
    let mut relay = Relay::on(&lan)?;
    for round in 0..50u64 {
        let mut server = lan.serve()?;
        let moment = Duration::from_micros(20_000 + round.wrapping_mul(7919) % 60_000);
        relay.load(64, Instant::now() + moment)?;
        server.kill9()?;
        // What was on its way when it died was acknowledged too.
        while relay.hear()? {}

        let records = lan.leases()?;
        let held: BTreeMap<IpAddr, _> = records.iter().map(|r| (r.address, r)).collect();
        let mut owners = BTreeMap::new();
        for (client, address) in &relay.acknowledged {
            let record = held.get(&IpAddr::V4(*address));
            let [a, b, c, d] = client.to_be_bytes();
            let mac = record.and_then(|r| r.mac).map(|m| m.octets());
            assert_eq!(
                mac,
                Some([2, 0, a, b, c, d]),
                "round {round}: {address} of client {client}"
            );
            assert_eq!(
                owners.insert(address, client),
                None,
                "{address} is held twice"
            );
        }
    }
    assert!(
        relay.acknowledged.len() > 500,
        "only {} leases",
        relay.acknowledged.len()
    );
    Ok(())
}
