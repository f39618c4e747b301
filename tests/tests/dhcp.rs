//! DHCP alone, on a bridge in a namespace: the clients of real machines, and `kill -9` under load.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use tests::{Dhclient, Netd, Ns, Proc, Udhcpc, tool};
use vnet_core::lease::LeaseRecord;
use vnet_core::store::LeaseLog;
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
relays = ["10.60.0.2"]
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

    fn folder(&self) -> PathBuf {
        self.host.scratch().join("leases")
    }

    fn serve(&self) -> anyhow::Result<Proc> {
        let folder = self.folder().display().to_string();
        let document = self.host.scratch().join("lab.toml").display().to_string();
        let program = env!("CARGO_BIN_EXE_dhcp_serve");
        let server = self.host.spawn(&[program, &folder, &document])?;
        server.wait_log("serving", PATIENCE)?;
        Ok(server)
    }

    fn leases(&self) -> anyhow::Result<Vec<LeaseRecord>> {
        Ok(LeaseLog::open(&self.folder())?.1)
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
    fn on(guest: &Ns) -> anyhow::Result<Self> {
        let socket = guest.enter(|| UdpSocket::bind((RELAY, 67)))??;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        Ok(Self {
            socket,
            next: 0,
            acknowledged: BTreeMap::new(),
        })
    }

    /// New clients come at this rate for so long, answered or not.
    fn load(&mut self, rate: u32, time: Duration) -> anyhow::Result<()> {
        let (begun, before) = (Instant::now(), self.next);
        while begun.elapsed() < time {
            let due = begun.elapsed().as_micros() * u128::from(rate) / 1_000_000;
            while u128::from(self.next - before) < due {
                self.next += 1;
                self.say(self.next, MessageType::Discover, None)?;
            }
            self.hear()?;
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

    /// One answer, if one comes: an OFFER is asked for, an ACK is remembered. Whether one came.
    fn hear(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [0; 1500];
        let Ok(len) = self.socket.recv(&mut buffer) else {
            return Ok(false);
        };
        let reply = Message::decode(&mut Decoder::new(&buffer[..len]))?;
        match reply.opts().msg_type() {
            Some(MessageType::Offer) => {
                self.say(reply.xid(), MessageType::Request, Some(reply.yiaddr()))?;
            }
            Some(MessageType::Ack) => {
                assert!(reply.opts().get(OptionCode::AddressLeaseTime).is_some());
                self.acknowledged.insert(reply.xid(), reply.yiaddr());
            }
            _ => {}
        }
        Ok(true)
    }
}

impl Relay {
    /// Whatever was acknowledged is on disk for its client, and no address is two clients'.
    fn check(&self, records: &[LeaseRecord], round: u64) {
        let held: BTreeMap<IpAddr, _> = records.iter().map(|r| (r.address, r)).collect();
        let mut owners = BTreeMap::new();
        for (client, address) in &self.acknowledged {
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
}

/// New clients a second.
const RATE: u32 = 2000;

/// The whole daemon, fifty deaths, each under new leases at [`RATE`].
#[test]
fn kill_9_at_any_moment_loses_no_lease() -> anyhow::Result<()> {
    if !tool::ready("dhcp::kill_9_at_any_moment_loses_no_lease", &["nft"]) {
        return Ok(());
    }
    let (host, guest) = (Ns::new("kill")?, Ns::new("relay")?);
    let mut netd = Netd::start_quiet(&host)?;
    netd.apply(LAB)?;
    host.link("p0", &guest, "eth0")?;
    host.ip("link set p0 master br0")?;
    guest.ip(&format!("addr add {RELAY}/16 dev eth0"))?;
    let mut relay = Relay::on(&guest)?;
    let mut rounds = Vec::new();
    for round in 0..50u64 {
        let moment = Duration::from_micros(50_000 + round.wrapping_mul(791_929) % 250_000);
        let before = relay.acknowledged.len();
        relay.load(RATE, moment)?;
        netd.kill9()?;
        // What was on its way when it died was acknowledged too.
        while relay.hear()? {}
        rounds.push(relay.acknowledged.len() - before);
        relay.check(&LeaseLog::open(&netd.state().join("leases"))?.1, round);
        netd.start_again()?;
    }
    // And what the daemon says itself, at the end.
    let listed = netd.json(&["lease", "list", "lab"])?;
    let listed = listed.as_array().map_or(0, Vec::len);
    let (offered, got) = (relay.next, relay.acknowledged.len());
    eprintln!("{offered} clients came, {RATE} a second; {got} have a lease, {listed} are listed");
    assert!(listed >= got, "{listed} of {got} are listed");
    // How many are answered is the machine's; that a server at work was killed, not an idle one, is the test's. A disk
    // that takes long may leave a round without any.
    assert!(got * 5 > offered as usize, "{got} of {offered}: {rounds:?}");
    let silent = rounds.iter().filter(|got| **got == 0).count();
    assert!(
        silent * 5 < rounds.len(),
        "{silent} silent rounds: {rounds:?}"
    );
    Ok(())
}
