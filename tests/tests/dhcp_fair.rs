//! DHCP under attack: what one port sends is counted as its own and costs nobody else.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Encodable as _, v6};
use serde_json::Value;
use tests::{Machine, Netd, World, tool, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const LAB: &str = r#"
name = "lab"
[[subnet]]
address = "10.50.0.1/24"
[subnet.dhcp]
ranges = ["10.50.0.50-10.50.0.250"]
"#;

/// A machine's socket for messages of any client.
fn mouth(machine: &Machine) -> anyhow::Result<UdpSocket> {
    machine.ns.ip("route add 255.255.255.255 dev eth0")?;
    let socket = machine.ns.enter(|| UdpSocket::bind("0.0.0.0:68"))??;
    socket.set_broadcast(true)?;
    Ok(socket)
}

/// What a station can send to have an address.
#[derive(Debug, Clone, Copy)]
enum Asking {
    Discover,
    /// For this one, without a DISCOVER before it.
    Request(Ipv4Addr),
    /// As a relay with this address.
    Relayed(Ipv4Addr),
}

fn discover(socket: &UdpSocket, client: u32, chaddr: [u8; 6]) -> anyhow::Result<()> {
    ask(socket, client, chaddr, Asking::Discover)
}

fn ask(socket: &UdpSocket, client: u32, chaddr: [u8; 6], what: Asking) -> anyhow::Result<()> {
    let none = Ipv4Addr::UNSPECIFIED;
    let (kind, relay) = match what {
        Asking::Discover => (MessageType::Discover, none),
        Asking::Request(_) => (MessageType::Request, none),
        Asking::Relayed(relay) => (MessageType::Discover, relay),
    };
    let mut message = Message::new_with_id(client, none, none, none, relay, &chaddr);
    message.set_opcode(Opcode::BootRequest);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Asking::Request(address) = what {
        let wanted = DhcpOption::RequestedIpAddress(address);
        message.opts_mut().insert(wanted);
    }
    // What the queue does not take is not sent: a flood needs no more.
    let _ = socket.send_to(&message.to_vec()?, "255.255.255.255:67");
    Ok(())
}

fn of_client(client: u32) -> [u8; 6] {
    let [a, b, c, d] = client.to_be_bytes();
    [2, 0, a, b, c, d]
}

fn share(netd: &Netd, port: &str) -> anyhow::Result<Value> {
    Ok(netd.json(&["port", "show", "lab", port])?["dhcp"].clone())
}

#[test]
fn a_flood_is_counted_and_costs_its_sender_only() -> anyhow::Result<()> {
    let name = "dhcp_fair::a_flood_is_counted_and_costs_its_sender_only";
    if !tool::ready(name, &["nft", "busybox", "dnsmasq"]) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start_quiet(&world.host)?;
    netd.apply(LAB)?;
    let mallory = Machine::plug(&netd, "lab", "mallory", &[])?;
    mallory.lease()?;
    let shown = netd.vnet(&["port", "show", "lab", "mallory"])?;
    assert!(shown.contains("1 address\n"), "{shown}");
    let flood = mouth(&mallory)?;
    let own = mallory.mac.parse::<vnet_core::types::Mac>()?.octets();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> anyhow::Result<u32> {
            let mut sent = 0;
            let end = Instant::now() + 3 * PATIENCE;
            while !over.load(Ordering::Relaxed) && Instant::now() < end {
                // Its own messages, and every other one in somebody else's name.
                let who = if sent % 2 == 0 { own } else { of_client(sent) };
                discover(&flood, sent, who)?;
                sent += 1;
                // Thousands a second, not all that a processor can: the bridge gives each of them to bob as well.
                if sent % 8 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(sent)
        });
        let rest = || -> anyhow::Result<()> {
            wait_for("the flood to be refused", PATIENCE, || {
                let seen = share(&netd, "mallory")?;
                let count = |what: &str| seen[what].as_u64().unwrap_or(0);
                anyhow::ensure!(count("over_rate") > 1000 && count("forged") > 0, "{seen}");
                Ok(())
            })?;
            let bob = Machine::plug(&netd, "lab", "bob", &[])?;
            let lease = wait_for("bob's lease", PATIENCE, || bob.lease())?;
            assert_eq!(lease.ip, bob.address()?);
            assert!(
                !sending.is_finished(),
                "the flood was over before the lease"
            );
            let theirs = share(&netd, "bob")?;
            let none =
                serde_json::json!({"addresses": 1, "over_rate": 0, "over_pool": 0, "forged": 0});
            assert_eq!(theirs, none);
            Ok(())
        };
        let ended = rest();
        over.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("the flood")?;
        eprintln!("{sent} messages were sent; {}", share(&netd, "mallory")?);
        ended
    })?;
    let status = netd.vnet(&["status"])?;
    assert!(
        status.contains("lab/mallory") && status.contains("over its rate"),
        "{status}"
    );
    let seen = share(&netd, "mallory")?;
    assert_eq!(seen["addresses"], 1, "{seen}");
    Ok(())
}

#[test]
fn one_port_cannot_have_the_whole_pool() -> anyhow::Result<()> {
    hogs("one_port_cannot_have_the_whole_pool", |_| Asking::Discover)
}

#[test]
fn nor_by_requests_for_one_address_after_the_other() -> anyhow::Result<()> {
    let name = "nor_by_requests_for_one_address_after_the_other";
    let after = |client: u32| {
        let last = u8::try_from(50 + client % 200).unwrap_or(50);
        Asking::Request(Ipv4Addr::new(10, 50, 0, last))
    };
    hogs(name, after)
}

#[test]
fn nor_as_a_relay() -> anyhow::Result<()> {
    let relay = Ipv4Addr::new(10, 50, 0, 49);
    hogs("nor_as_a_relay", |_| Asking::Relayed(relay))
}

fn hogs(test: &str, asking: impl Fn(u32) -> Asking) -> anyhow::Result<()> {
    let name = &format!("dhcp_fair::{test}");
    if !tool::ready(name, &["nft", "busybox", "dnsmasq"]) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(LAB)?;
    // Without the guard it may speak for others: a switch, a nested host.
    let hog = Machine::plug(&netd, "lab", "hog", &["--guard", "off"])?;
    hog.lease()?;
    let socket = mouth(&hog)?;
    let mut client = 0;
    let seen = wait_for("the limit", PATIENCE, || {
        for _ in 0..20 {
            client += 1;
            ask(&socket, client, of_client(client), asking(client))?;
        }
        let seen = share(&netd, "hog")?;
        let refused = seen["over_pool"].as_u64().unwrap_or(0);
        anyhow::ensure!(refused > 10, "{seen}");
        Ok(seen)
    })?;
    assert_eq!(seen["addresses"], 64, "{seen}");
    let shown = netd.vnet(&["port", "show", "lab", "hog"])?;
    assert!(shown.contains("addresses over its limit"), "{shown}");
    let bob = Machine::plug(&netd, "lab", "bob", &[])?;
    assert_eq!(bob.lease()?.ip, bob.address()?);
    Ok(())
}

const SIX: &str = r#"
name = "lab"
[[subnet]]
address = "fd00:5::1/64"
dhcp.mode = "both"
"#;

/// Asks for eight addresses by name, for a client that nobody saw before, to be had at once.
fn take_eight(socket: &UdpSocket, interface: u32, round: u16) -> anyhow::Result<()> {
    let [a, b] = round.to_be_bytes();
    let mut message = v6::Message::new_with_id(v6::MessageType::Solicit, [0, a, b]);
    let options = message.opts_mut();
    options.insert(v6::DhcpOption::ClientId(vec![0, 2, 0, 0, a, b]));
    options.insert(v6::DhcpOption::RapidCommit);
    for iaid in 0..8u16 {
        let wanted = std::net::Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0x1000 + round * 8 + iaid);
        let mut inner = v6::DhcpOptions::new();
        inner.insert(v6::DhcpOption::IAAddr(v6::IAAddr {
            addr: wanted,
            preferred_life: 0,
            valid_life: 0,
            opts: v6::DhcpOptions::new(),
        }));
        options.insert(v6::DhcpOption::IANA(v6::IANA {
            id: iaid.into(),
            t1: 0,
            t2: 0,
            opts: inner,
        }));
    }
    let servers = std::net::SocketAddrV6::new("ff02::1:2".parse()?, 547, 0, interface);
    let _ = socket.send_to(&message.to_vec()?, servers);
    Ok(())
}

/// Where guests make addresses of their own too, a guard holds them to no list: the limit does.
#[test]
fn one_guarded_port_cannot_have_the_whole_range() -> anyhow::Result<()> {
    let name = "dhcp_fair::one_guarded_port_cannot_have_the_whole_range";
    if !tool::ready(name, &["nft", "busybox", "dnsmasq"]) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(SIX)?;
    let hog = Machine::plug(&netd, "lab", "hog", &[])?;
    hog.ns.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")?;
    hog.ns.ip("link set eth0 down")?;
    hog.ns.ip("link set eth0 up")?;
    let index = hog
        .ns
        .sh("cat /sys/class/net/eth0/ifindex")?
        .trim()
        .parse()?;
    let socket = wait_for("a link-local address", PATIENCE, || {
        anyhow::Ok(hog.ns.enter(|| UdpSocket::bind("[::]:546"))??)
    })?;
    let mut round = 0;
    let seen = wait_for("the limit", PATIENCE, || {
        take_eight(&socket, index, round)?;
        round += 1;
        let seen = share(&netd, "hog")?;
        let refused = seen["over_pool"].as_u64().unwrap_or(0);
        anyhow::ensure!(refused > 10, "{seen}");
        Ok(seen)
    })?;
    assert_eq!(seen["addresses"], 64, "{seen}");
    Ok(())
}
