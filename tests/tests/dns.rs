//! The DNS service with clients that nobody here wrote: `dig`, `kdig`, and dnsmasq as the upstream.

use std::time::Duration;

use tests::dns::{DnsHost, Upstream, dig, short};
use tests::{tool, wait_for};
use vnet_core::dns::Change;

const LAB: &str = r#"
name = "lab"
[domain]
name = "lab.test"
[[subnet]]
address = "10.94.1.1/24"
[subnet.dhcp]
[[subnet.dhcp.host]]
mac = "52:54:00:00:00:01"
ip = "10.94.1.9"
name = "web"
[[subnet]]
address = "fd94:1::1/64"
[dns]
host = [{ ip = "10.94.1.200", names = ["printer", "paper.example.com"] }]
record = [
  { name = "web", type = "CAA", value = "0 issue ca.example" },
  { name = "web", type = "SSHFP", value = "2 1 123456789abcdef67890123456789abcdef67890" },
  { name = "_http._tcp", type = "SRV", value = "0 5 80 web" },
  { name = "_foo._tcp", type = "SVCB", value = "1 web port=8080" },
  { name = "shop", type = "HTTPS", value = "1 web alpn=h2" },
  { name = "lab.test", type = "MX", value = "10 web" },
  { name = "text", type = "TXT", value = "one two" },
  { name = "*.apps", type = "A", value = "10.94.1.7" },
  { name = "ftp", type = "CNAME", value = "web" },
  { name = "cdn", type = "CNAME", value = "out.example." },
]
"#;

fn ready(test: &str) -> bool {
    tool::ready(&format!("dns::{test}"), &["dig", "dnsmasq"])
}

/// The status word of dig's header.
fn status(output: &str) -> &str {
    let after = output.split("status: ").nth(1).unwrap_or(output);
    after.split(',').next().unwrap_or(after)
}

#[test]
fn a_guest_resolves_its_own_network() -> anyhow::Result<()> {
    if !ready("a_guest_resolves_its_own_network") {
        return Ok(());
    }
    let mut host = DnsHost::new("dnshost", "")?;
    assert_eq!(host.network(LAB)?, []);
    host.lease("lab", "mail", "10.94.1.77", Change::Added)?;
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    let at = "@10.94.1.1";
    assert_eq!(short(&guest, &format!("{at} web.lab.test"))?, "10.94.1.9");
    assert_eq!(short(&guest, &format!("{at} web"))?, "10.94.1.9");
    assert_eq!(short(&guest, &format!("{at} mail.lab.test"))?, "10.94.1.77");
    assert_eq!(
        short(&guest, &format!("{at} gateway.lab.test"))?,
        "10.94.1.1"
    );
    assert_eq!(
        short(&guest, &format!("{at} gateway.lab.test AAAA"))?,
        "fd94:1::1"
    );
    assert_eq!(
        short(&guest, &format!("{at} paper.example.com"))?,
        "10.94.1.200"
    );
    assert_eq!(
        short(&guest, &format!("{at} -x 10.94.1.77"))?,
        "mail.lab.test."
    );
    assert_eq!(
        short(&guest, &format!("{at} -x fd94:1::1"))?,
        "gateway.lab.test."
    );
    host.lease("lab", "mail", "10.94.1.77", Change::Removed)?;
    assert_eq!(
        status(&dig(&guest, &format!("{at} mail.lab.test"))?),
        "NXDOMAIN"
    );
    assert_eq!(
        status(&dig(&guest, &format!("{at} -x 10.94.1.77"))?),
        "NXDOMAIN"
    );
    // The host itself, though the socket is bound to the bridge.
    assert_eq!(short(&host.ns, &format!("{at} web.lab.test"))?, "10.94.1.9");
    Ok(())
}

#[test]
fn records_of_every_kind() -> anyhow::Result<()> {
    if !ready("records_of_every_kind") {
        return Ok(());
    }
    let (_host, _upstream, guest) = forwarding(&["--host-record=out.example,192.0.2.80"])?;
    for (question, answer) in [
        ("web.lab.test CAA", "0 issue \"ca.example\""),
        (
            "web.lab.test SSHFP",
            "2 1 123456789ABCDEF67890123456789ABCDEF67890",
        ),
        ("web.lab.test A", "10.94.1.9"),
        ("_http._tcp.lab.test SRV", "0 5 80 web.lab.test."),
        ("_foo._tcp.lab.test SVCB", "1 web.lab.test. port=8080"),
        ("shop.lab.test HTTPS", "1 web.lab.test. alpn=\"h2\""),
        ("lab.test MX", "10 web.lab.test."),
        ("text.lab.test TXT", "\"one two\""),
        ("any.apps.lab.test A", "10.94.1.7"),
        ("ftp.lab.test A", "web.lab.test.\n10.94.1.9"),
        ("cdn.lab.test A", "out.example.\n192.0.2.80"),
        ("cdn A", "out.example.\n192.0.2.80"),
    ] {
        assert_eq!(
            short(&guest, &format!("{AT} {question}"))?,
            answer,
            "{question}"
        );
    }
    Ok(())
}

/// A network that forwards, a guest of it at 10.94.1.50, and one upstream at 10.94.70.53.
fn forwarding(options: &[&str]) -> anyhow::Result<(DnsHost, Upstream, tests::Ns)> {
    let mut host = DnsHost::new("dnshost", "nameserver 10.94.70.53\n")?;
    let upstream = Upstream::new(&host, "up", "10.94.70.53", options)?;
    assert_eq!(host.network(LAB)?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    Ok((host, upstream, guest))
}

const AT: &str = "@10.94.1.1";

#[test]
fn names_of_others_are_asked_once_and_ours_never() -> anyhow::Result<()> {
    if !ready("names_of_others_are_asked_once_and_ours_never") {
        return Ok(());
    }
    let (host, upstream, guest) = forwarding(&[
        "--host-record=out.example,192.0.2.80",
        "--local-ttl=60",
        "--local=/example/",
    ])?;
    for _ in 0..3 {
        assert_eq!(short(&guest, &format!("{AT} out.example"))?, "192.0.2.80");
    }
    assert_eq!(
        upstream.asked("query[a] out.example"),
        1,
        "the cache answers"
    );
    // Ours: names under a domain that is local only, plain names, our subnets, also of networks that are not seen.
    for ours in [
        "no.lab.test",
        "plain",
        "-x 10.94.1.99",
        "web.lab.test AAAA",
        "-x 127.0.0.9",
        "x.onion",
    ] {
        dig(&guest, &format!("{AT} {ours}"))?;
    }
    assert_eq!(
        upstream.asked("query["),
        1,
        "nothing else has left the host"
    );
    // In the case it was asked, also from the cache, and with what the client can do.
    let mixed = dig(&guest, &format!("{AT} OuT.eXaMpLe +qr"))?;
    assert_eq!(mixed.matches("OuT.eXaMpLe.").count(), 3, "{mixed}");
    let stats = host.stats().total;
    assert_eq!(
        (stats.forwarded, stats.cached, stats.failed),
        (1, 3, 0),
        "{stats:?}"
    );
    Ok(())
}

#[test]
fn large_answers_go_over_tcp() -> anyhow::Result<()> {
    if !tool::ready(
        "dns::large_answers_go_over_tcp",
        &["dig", "kdig", "dnsmasq"],
    ) {
        return Ok(());
    }
    let long: Vec<String> = (0..12).map(|i| format!("{i:0>200}")).collect();
    let record = format!("--txt-record=big.example,{}", long.join(","));
    let (_host, _upstream, guest) = forwarding(&[&record])?;
    let cut = dig(&guest, &format!("{AT} big.example TXT +ignore"))?;
    assert!(cut.contains(" tc ") && cut.contains("ANSWER: 0"), "{cut}");
    let whole = short(&guest, &format!("{AT} big.example TXT"))?;
    assert!(
        whole.contains(&long[11]),
        "dig comes again over TCP: {whole}"
    );
    // RFC 7766 section 6.2.1: several questions over one connection.
    let kdig = guest.sh(&format!(
        "kdig +tcp +keepopen {AT} -q web.lab.test -t A -q big.example -t TXT"
    ))?;
    assert!(kdig.contains("10.94.1.9"), "ours: {kdig}");
    assert!(kdig.contains(&long[3]), "others': {kdig}");
    Ok(())
}

#[test]
fn resolv_conf_is_followed_live() -> anyhow::Result<()> {
    if !ready("resolv_conf_is_followed_live") {
        return Ok(());
    }
    let (host, _first, guest) = forwarding(&["--host-record=a.example,192.0.2.1"])?;
    let _second = Upstream::new(
        &host,
        "up2",
        "10.94.71.53",
        &["--host-record=b.example,192.0.2.2"],
    )?;
    assert_eq!(short(&guest, &format!("{AT} a.example"))?, "192.0.2.1");
    // Our own gateway among them is left out: no loop.
    host.resolv_conf("nameserver 10.94.1.1\nnameserver 10.94.71.53\n")?;
    wait_for("the new resolver", Duration::from_secs(10), || {
        let got = short(&guest, &format!("{AT} b.example"))?;
        anyhow::ensure!(got == "192.0.2.2", "{got}");
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(())
}

#[test]
fn a_dead_upstream_delays_nobody() -> anyhow::Result<()> {
    if !ready("a_dead_upstream_delays_nobody") {
        return Ok(());
    }
    let (host, _live, guest) = forwarding(&["--address=/example/192.0.2.3"])?;
    // Nobody at all there (no answer to ARP), and a host without a resolver (a closed port).
    host.ns.ip("link add void type veth peer name void1")?;
    host.ns.ip("addr add 10.94.72.1/24 dev void")?;
    for end in ["void", "void1"] {
        host.ns.ip(&format!("link set {end} up"))?;
    }
    host.resolv_conf("nameserver 10.94.72.9\nnameserver 10.94.70.254\nnameserver 10.94.70.53\n")?;
    for i in 0..6 {
        let got = guest.sh(&format!("dig +tries=1 +time=2 +short {AT} n{i}.example"))?;
        assert_eq!(got.trim(), "192.0.2.3");
    }
    let before = host.stats().upstream_timeouts;
    for i in 10..40 {
        let got = guest.sh(&format!("dig +tries=1 +time=1 +short {AT} n{i}.example"))?;
        assert_eq!(got.trim(), "192.0.2.3");
    }
    let waited = host.stats().upstream_timeouts - before;
    assert!(waited <= 3, "{waited} of 30 waited for the dead");
    Ok(())
}

#[test]
fn stale_answers_while_no_upstream_answers() -> anyhow::Result<()> {
    if !ready("stale_answers_while_no_upstream_answers") {
        return Ok(());
    }
    let (host, mut upstream, guest) =
        forwarding(&["--host-record=old.example,192.0.2.4", "--local-ttl=1"])?;
    assert_eq!(short(&guest, &format!("{AT} old.example"))?, "192.0.2.4");
    upstream.stop();
    wait_for("a stale answer", Duration::from_secs(20), || {
        assert_eq!(
            short(&guest, &format!("{AT} old.example"))?,
            "192.0.2.4",
            "there is always an answer"
        );
        anyhow::ensure!(host.stats().total.stale > 0, "not stale yet");
        Ok::<_, anyhow::Error>(())
    })?;
    assert_eq!(
        status(&dig(&guest, &format!("{AT} new.example"))?),
        "SERVFAIL"
    );
    upstream.start()?;
    wait_for("the upstream again", Duration::from_secs(40), || {
        dig(&guest, &format!("{AT} old.example"))?;
        anyhow::ensure!(upstream.asked("old.example") > 0, "not asked yet");
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(())
}

#[test]
fn networks_see_what_packets_may_reach() -> anyhow::Result<()> {
    if !ready("networks_see_what_packets_may_reach") {
        return Ok(());
    }
    let mut host = DnsHost::new("dnshost", "nameserver 10.94.70.53\n")?;
    let upstream = Upstream::new(&host, "up", "10.94.70.53", &["--address=/#/192.0.2.9"])?;
    host.network(
        r#"
        [[network]]
        name = "nat"
        domain.name = "nat.test"
        forward.mode = "nat"
        subnet = [{ address = "10.94.1.1/24" }]
        dns.host = [{ ip = "10.94.1.9", names = ["web"] }]
        [[network]]
        name = "routed"
        domain.name = "routed.test"
        forward.mode = "routed"
        subnet = [{ address = "10.94.2.1/24" }, { address = "fd94:2::1/64" }]
        dns.host = [{ ip = "10.94.2.9", names = ["web"] }, { ip = "fd94:2::9", names = ["web"] }]
        [[network]]
        name = "alone"
        domain.name = "alone.test"
        forward.mode = "isolated"
        subnet = [{ address = "10.94.3.1/24" }, { address = "fd94:3::1/64" }]
        dns.host = [{ ip = "10.94.3.9", names = ["web"] }, { ip = "fd94:3::9", names = ["web"] }]
        "#,
    )?;
    let nat = host.guest("br1", "gnat", "10.94.1.50/24")?;
    let routed = host.guest("br2", "grouted", "10.94.2.50/24")?;
    let alone = host.guest("br3", "galone", "10.94.3.50/24")?;
    let said = |guest, args: &str| anyhow::Ok(status(&dig(guest, args)?).to_owned());
    assert_eq!(short(&nat, "@10.94.1.1 web.routed.test")?, "10.94.2.9");
    assert_eq!(short(&nat, "@10.94.1.1 -x 10.94.2.9")?, "web.routed.test.");
    assert_eq!(short(&nat, "@10.94.1.1 -x fd94:2::9")?, "web.routed.test.");
    assert_eq!(said(&nat, "@10.94.1.1 web.alone.test")?, "NXDOMAIN");
    assert_eq!(said(&nat, "@10.94.1.1 -x 10.94.3.9")?, "NXDOMAIN");
    let hidden = dig(&nat, "@10.94.1.1 -x fd94:3::9")?;
    assert_eq!(status(&hidden), "NXDOMAIN");
    assert!(!hidden.contains("alone.test"), "not even a hint: {hidden}");
    assert_eq!(said(&routed, "@10.94.2.1 web.nat.test")?, "NXDOMAIN");
    assert_eq!(said(&alone, "@10.94.3.1 web.routed.test")?, "NXDOMAIN");
    assert_eq!(short(&alone, "@10.94.3.1 web")?, "10.94.3.9");
    assert_eq!(said(&alone, "@10.94.3.1 out.example")?, "REFUSED");
    // Another network's gateway does not answer at all: the socket is the bridge's.
    nat.ip("route add default via 10.94.1.1")?;
    let other = nat.run(&[
        "dig",
        "+tries=1",
        "+time=1",
        "@10.94.2.1",
        "web.routed.test",
    ])?;
    assert!(!other.success(), "{}", other.stdout);
    assert_eq!(upstream.asked("query["), 0, "nothing has left the host");
    Ok(())
}

#[test]
fn port_53_of_others() -> anyhow::Result<()> {
    if !ready("port_53_of_others") {
        return Ok(());
    }
    let mut host = DnsHost::new("dnshost", "")?;
    // On all addresses: no obstacle for UDP; TCP comes when it has let go and we ask again.
    let wild = host.ns.spawn(&[
        "dnsmasq",
        "-k",
        "-C",
        "/dev/null",
        "--no-resolv",
        "--log-facility=-",
        "--pid-file=",
    ])?;
    wild.wait_log("started", Duration::from_secs(10))?;
    let errors = host.network(LAB)?;
    assert!(
        errors.len() == 1 && errors[0].1.contains("10.94.1.1 port 53/tcp is taken"),
        "{errors:?}"
    );
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    assert_eq!(short(&guest, &format!("{AT} web"))?, "10.94.1.9");
    drop(wild);
    asked_again(&mut host)?;
    served(&guest, "+tcp")?;
    // On the very address, for itself alone.
    host.stop("lab")?;
    let rival = host
        .ns
        .enter(|| std::net::UdpSocket::bind("10.94.1.1:53"))??;
    let errors = host.network(LAB)?;
    assert!(
        errors.len() == 1 && errors[0].1.contains("10.94.1.1 port 53/udp is taken"),
        "{errors:?}"
    );
    drop(rival);
    asked_again(&mut host)?;
    served(&guest, "+notcp")
}

fn asked_again(host: &mut DnsHost) -> anyhow::Result<()> {
    wait_for("the port", Duration::from_secs(10), || {
        let errors = host.network(LAB)?;
        anyhow::ensure!(errors.is_empty(), "{errors:?}");
        Ok(())
    })
}

fn served(guest: &tests::Ns, how: &str) -> anyhow::Result<()> {
    wait_for("the service", Duration::from_secs(10), || {
        let got = short(guest, &format!("{AT} web {how}"))?;
        anyhow::ensure!(got == "10.94.1.9", "{got}");
        Ok::<_, anyhow::Error>(())
    })
}
