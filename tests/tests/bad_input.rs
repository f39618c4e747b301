//! Malformed and hostile input: a clear error, nothing changed, nothing lost, and a daemon that goes on.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context as _;
use tests::{Machine, Netd, World, tool};

const TOOLS: [&str; 4] = ["nft", "busybox", "dig", "dnsmasq"];

const GOOD: &str = "name = \"lab\"\n[bridge]\nname = \"lab0\"\n[[subnet]]\naddress = \"10.50.0.1/24\"\n[subnet.dhcp]\nranges = [\"10.50.0.10-10.50.0.99\"]\n";

/// A document, and what its error must say: where, or what.
type Wrong = (String, &'static str);

fn changed(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replace(from, to)
}

/// Documents of the wrong form.
fn malformed() -> Vec<Wrong> {
    vec![
        ("name = ".to_owned(), "line 1"),
        (String::new(), "name"),
        (changed("lab0", "a-name-of-16-byt"), "bridge.name"),
        (changed("lab0", "la/b"), "bridge.name"),
        (changed("\"lab\"", "\"\""), "name"),
        (changed("\"lab\"", "\"../etc\""), "name"),
        (changed("[bridge]", "colour = \"red\"\n[bridge]"), "colour"),
        (
            changed("[bridge]", "[forward]\nmode = \"magic\"\n[bridge]"),
            "forward.mode",
        ),
        (changed("\"lab0\"", "\"lab0\"\nmtu = 10"), "bridge.mtu"),
        (
            changed("\"lab0\"", "\"lab0\"\nmac = \"ff:ff:ff:ff:ff:ff\""),
            "bridge.mac",
        ),
    ]
}

/// Addresses that cannot be, and ranges that are not in their subnet.
fn misplaced() -> Vec<Wrong> {
    let range = "10.50.0.10-10.50.0.99";
    vec![
        (changed("10.50.0.1/24", "10.50.0.0/24"), "subnet[0].address"),
        (changed("10.50.0.1/24", "10.50.0.1/33"), "subnet[0].address"),
        (changed("10.50.0.1/24", "300.0.0.1/24"), "subnet[0].address"),
        (changed("10.50.0.99", "10.51.0.99"), "ranges[0]"),
        (changed(range, "10.50.0.99-10.50.0.10"), "ranges[0]"),
        (
            GOOD.to_owned() + "[[subnet]]\naddress = \"10.50.0.129/25\"\n",
            "10.50.0.128/25",
        ),
    ]
}

/// Reservations that collide with each other or with their subnet.
fn colliding() -> Vec<Wrong> {
    let hosts = |hosts: &[(&str, &str, &str)]| {
        let entry = |(mac, ip, name): &(&str, &str, &str)| {
            format!("[[subnet.dhcp.host]]\nmac = \"{mac}\"\nip = \"{ip}\"\nname = \"{name}\"\n")
        };
        GOOD.to_owned() + &hosts.iter().map(entry).collect::<String>()
    };
    let (one, two) = ("52:54:00:00:00:01", "52:54:00:00:00:02");
    vec![
        (
            hosts(&[(one, "10.50.0.5", "a"), (one, "10.50.0.6", "b")]),
            "host[1]",
        ),
        (
            hosts(&[(one, "10.50.0.5", "a"), (two, "10.50.0.5", "b")]),
            "host[1]",
        ),
        (
            hosts(&[(one, "10.50.0.5", "a"), (two, "10.50.0.6", "a")]),
            "host[1]",
        ),
        (hosts(&[("01:00:5e:00:00:01", "10.50.0.5", "a")]), "mac"),
        (hosts(&[(one, "10.99.0.5", "a")]), "host[0].ip"),
    ]
}

/// What the default network or somebody else has already.
fn taken() -> Vec<Wrong> {
    vec![
        (GOOD.replace("10.50.0", "192.168.122"), "192.168.122"),
        (GOOD.replace("10.50.0", "198.51.100"), "198.51.100"),
        (changed("lab0", "virbr0"), "virbr0"),
        (changed("lab0", "theirs"), "theirs"),
    ]
}

#[test]
fn a_wrong_document_changes_nothing() -> anyhow::Result<()> {
    if !tool::ready("bad_input::a_wrong_document_changes_nothing", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    world.host.ip("link add theirs type bridge")?;
    let netd = Netd::start(&world.host)?;
    let state = || {
        world.host.sh("ip -o link; ip -4 -o addr | sed 's/valid_lft.*//'; nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'")
    };
    let (networks, kernel) = (netd.vnet(&["network", "list"])?, state()?);
    let mut wrong = Vec::new();
    for (document, says) in [malformed(), misplaced(), colliding(), taken()].concat() {
        let file = netd.scratch().write("wrong.toml", &document)?;
        let ran = netd.try_vnet(&["apply", "-f", &file.to_string_lossy()])?;
        if ran.success() {
            wrong.push(format!("accepted:\n{document}"));
            netd.vnet(&["network", "delete", "lab"])?;
        } else if !ran.stderr.contains(says) || ran.stderr.contains("panicked") {
            wrong.push(format!("does not say {says:?}:\n{}{document}", ran.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
    assert_eq!(netd.vnet(&["network", "list"])?, networks);
    assert_eq!(state()?, kernel);
    netd.apply(GOOD)?;
    Ok(())
}

/// Bytes that differ from run to run, from a seed that is printed.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
}

/// A DISCOVER from `mac`, to be spoilt.
fn discover(mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0; 240];
    packet[..3].copy_from_slice(&[1, 1, 6]);
    packet[4..8].copy_from_slice(&[1, 2, 3, 4]);
    packet[28..34].copy_from_slice(&mac);
    packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend([53, 1, 1, 12, 4, b'e', b'v', b'i', b'l', 255]);
    packet
}

fn spoilt() -> Vec<Vec<u8>> {
    let good = discover([0x52, 0x54, 0, 0xbb, 0, 1]);
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let mut packets = vec![
        Vec::new(),
        vec![1],
        good[..239].to_vec(),
        with(2, 255),
        with(2, 17),
        with(2, 0),
        with(0, 2),
        with(236, 0),
    ];
    // Options that run over the end, that are empty, that have no type.
    packets.push([&good[..240], &[53, 200, 1]].concat());
    packets.push([&good[..240], &[53, 0, 255]].concat());
    packets.push([&good[..240], &[12, 1, b'x', 255]].concat());
    packets.push([&good[..240], &[0; 1200]].concat());
    packets
}

#[test]
fn hostile_packets_cost_only_their_sender() -> anyhow::Result<()> {
    if !tool::ready("bad_input::hostile_packets_cost_only_their_sender", &TOOLS) {
        return Ok(());
    }
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let before = netd.id();
    let evil = Machine::plug(&netd, "default", "evil", &["--guard", "off"])?;
    evil.lease()?;
    evil.ns.enter(|| -> anyhow::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:68")?;
        socket.set_broadcast(true)?;
        let mut noise = noise(seed);
        for packet in spoilt() {
            socket.send_to(&packet, "255.255.255.255:67")?;
            socket.send_to(&packet, "192.168.122.1:53")?;
        }
        for round in 0..2000_usize {
            let mut packet = discover([0x52, 0x54, 0, 0xbb, 0, 2]);
            for _ in 0..3 {
                let at = noise
                    .by_ref()
                    .take(2)
                    .fold(0, |at, byte| at << 8 | usize::from(byte))
                    % packet.len();
                packet[at] = noise.next().unwrap_or_default();
            }
            socket.send_to(&packet, "192.168.122.1:67")?;
            let question: Vec<u8> = noise.by_ref().take(12 + round % 60).collect();
            socket.send_to(&question, "192.168.122.1:53")?;
        }
        Ok(())
    })??;
    assert_eq!(netd.id(), before);
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    alice.lease()?;
    alice.finds("192.168.122.1", &["alice"], &alice.address()?.to_string())?;
    assert!(!netd.log().contains("panicked"), "{}", netd.log());
    Ok(())
}

#[test]
fn hostile_requests_are_refused() -> anyhow::Result<()> {
    if !tool::ready("bad_input::hostile_requests_are_refused", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let networks = netd.vnet(&["network", "list"])?;
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let big = format!(
        "{{\"networks\": [{{\"name\": \"{}\"}}]}}",
        "x".repeat(9_000_000)
    );
    let deep = "[".repeat(100_000);
    let requests = [
        "\0\0\0\0".to_owned(),
        "GET /\r\n\r\n".to_owned(),
        post("/v1/apply", ""),
        post("/v1/apply", "null"),
        post("/v1/apply", "{\"networks\": 1}"),
        post("/v1/apply", &deep),
        post("/v1/apply", &big),
        post("/v1/ports", "{\"name\": \"x\", \"network\": \"nowhere\"}"),
        post("/v1/networks/%00/start", "null"),
        post("/v1/networks/..%2f..%2fetc/start", "null"),
        "DELETE /v1/networks/nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
    ];
    for request in requests {
        let mut stream = UnixStream::connect(netd.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // A server that has read enough may close before all is written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        assert!(
            status == "closed" || status.starts_with('4'),
            "{}: {answer}",
            &request[..request.len().min(80)]
        );
    }
    assert_eq!(netd.vnet(&["network", "list"])?, networks);
    assert!(!netd.log().contains("panicked"));
    Ok(())
}

#[test]
fn without_permission_or_tools_it_says_what_to_do() -> anyhow::Result<()> {
    if !tool::ready(
        "bad_input::without_permission_or_tools_it_says_what_to_do",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let vnet = tests::daemon::binary("vnet")?;
    // Not every folder on the way to the build is open to others: a copy where everybody may read.
    let folder = tests::Scratch::new("public")?;
    let copy = folder.join("vnet");
    std::fs::copy(vnet, &copy)?;
    let copy = copy.to_string_lossy();
    let socket = netd.socket();
    let socket = socket.to_string_lossy();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let create = [
        &nobody[..],
        &[&copy, "--socket", &socket, "network", "create", "mine"],
    ]
    .concat();
    let refused = world.host.run(&create)?;
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(
        refused.stderr.contains("netd"),
        "which group to join: {}",
        refused.stderr
    );

    let absent = netd.try_vnet(&["network", "show", "nowhere"])?;
    assert_eq!(absent.code, Some(3), "{absent:?}");
    let nobody_there = world
        .host
        .run(&[&copy, "--socket", "/nowhere.sock", "status"])?;
    assert_eq!(nobody_there.code, Some(4), "{nobody_there:?}");
    assert_eq!(netd.try_vnet(&["network", "fly"])?.code, Some(2));

    // A machine where nft cannot be run.
    let other = tests::Ns::new("bare")?;
    let scratch = tests::Scratch::new("bare")?;
    let nft = tool::find("nft").context("nft is installed")?;
    other.bind(scratch.write("nft", "no program")?, nft);
    let (netd, state, run) = (
        tests::daemon::binary("netd")?,
        scratch.join("s"),
        scratch.join("r"),
    );
    let [netd, state, run] = [&netd, &state, &run].map(|path| path.to_string_lossy());
    let bare = other.spawn(&[&netd, "--state-dir", &state, "--run-dir", &run])?;
    bare.wait_log("nft", Duration::from_secs(10))?;
    assert!(!bare.log().contains("panicked"), "{}", bare.log());
    Ok(())
}
