//! Upstreams that would do harm: real ones (dnsmasq) that name private addresses for outside names, and such that send
//! questions back to us.

use std::time::Duration;

use tests::dns::{DnsHost, Upstream, dig, short};
use tests::{Ns, Proc, tool};

const AT: &str = "@10.94.1.1";

fn ready(test: &str) -> bool {
    tool::ready(&format!("dns_guarded::{test}"), &["dig", "dnsmasq"])
}

#[test]
fn outside_names_do_not_lead_inside() -> anyhow::Result<()> {
    if !ready("outside_names_do_not_lead_inside") {
        return Ok(());
    }
    let mut host = DnsHost::new("dnshost", "nameserver 10.94.70.53\n")?;
    let outside = [
        "--host-record=evil.example,192.168.1.1,fd00::1",
        "--host-record=mapped.example,::ffff:10.0.0.1",
        "--host-record=loop.example,127.0.0.1",
        "--host-record=shared.example,100.64.0.1",
        "--host-record=good.example,192.0.2.1,2001:db8::1",
        "--cname=alias.example,evil.example",
    ];
    let _upstream = Upstream::new(&host, "up", "10.94.70.53", &outside)?;
    let _inner = Upstream::new(
        &host,
        "in",
        "10.94.71.53",
        &["--address=/corp.test/10.1.2.3"],
    )?;
    let network = |name: &str, net: u8, dns: &str| {
        format!(
            "[[network]]\nname = \"{name}\"\ndomain.name = \"{name}.test\"\n\
             subnet = [{{ address = \"10.94.{net}.1/24\" }}]\n[network.dns]\n{dns}\n"
        )
    };
    let guarded = "rebind_protection = true\nhost = [{ ip = \"10.94.1.9\", names = [\"web\"] }]\n\
                   upstream = [{ address = \"10.94.70.53\" }, { address = \"10.94.71.53\", domain = \"corp.test\" }]";
    let both = network("lab", 1, guarded) + &network("free", 2, "");
    assert_eq!(host.network(&both)?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    let free = host.guest("br2", "free", "10.94.2.50/24")?;
    for name in [
        "evil.example",
        "evil.example AAAA",
        "mapped.example AAAA",
        "loop.example",
        "shared.example",
        "alias.example",
    ] {
        for again in ["", "from the cache"] {
            let said = dig(&guest, &format!("{AT} {name}"))?;
            let refused = said.contains("status: REFUSED") && said.contains("EDE: 15 (Blocked)");
            assert!(refused && said.contains("ANSWER: 0"), "{again} {said}");
        }
    }
    assert_eq!(short(&guest, &format!("{AT} good.example"))?, "192.0.2.1");
    assert_eq!(
        short(&guest, &format!("{AT} good.example AAAA"))?,
        "2001:db8::1"
    );
    // Our own names, and domains whose resolver the document names, may be inside.
    assert_eq!(short(&guest, &format!("{AT} web.lab.test"))?, "10.94.1.9");
    assert_eq!(short(&guest, &format!("{AT} app.corp.test"))?, "10.1.2.3");
    // A network without it is told what there is.
    assert_eq!(short(&free, "@10.94.2.1 evil.example")?, "192.168.1.1");
    Ok(())
}

/// A dnsmasq among the guests that sends everything on to somebody.
fn forwarder(guest: &Ns, listen: &str, to: &str) -> anyhow::Result<Proc> {
    let (listen, to) = (
        format!("--listen-address={listen}"),
        format!("--server={to}"),
    );
    let server = guest.spawn(&[
        "dnsmasq",
        "-k",
        "-C",
        "/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--cache-size=0",
        "--log-queries",
        "--log-facility=-",
        "--pid-file=",
        &listen,
        &to,
    ])?;
    server.wait_log("started", Duration::from_secs(10))?;
    Ok(server)
}

#[test]
fn a_question_goes_round_once_at_most() -> anyhow::Result<()> {
    if !ready("a_question_goes_round_once_at_most") {
        return Ok(());
    }
    let mut host = DnsHost::new("dnshost", "")?;
    let lab = "name = \"lab\"\nsubnet = [{ address = \"10.94.1.1/24\" }]\n[dns]\n\
               upstream = [{ address = \"10.94.1.53\" }]\n";
    assert_eq!(host.network(lab)?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    let first = host.guest("br1", "first", "10.94.1.53/24")?;
    let second = host.guest("br1", "second", "10.94.1.54/24")?;
    let asked = |server: &Proc, name: &str| {
        let log = server.log().to_ascii_lowercase();
        log.matches(&format!("query[a] {name} from")).count()
    };
    // Our upstream sends it straight back: it is told no, and so is who asked.
    let straight = forwarder(&first, "10.94.1.53", "10.94.1.1")?;
    let said = dig(&guest, &format!("+time=8 {AT} straight.example"))?;
    assert!(
        said.contains("status: REFUSED") || said.contains("status: SERVFAIL"),
        "{said}"
    );
    assert!(host.stats().total.refused >= 1, "{:?}", host.stats().total);
    let times = asked(&straight, "straight.example");
    assert!((1..=8).contains(&times), "{times}");
    drop(straight);
    // By way of another, who is nobody we asked: it ends with our patience, and nothing multiplies.
    let around = forwarder(&first, "10.94.1.53", "10.94.1.54")?;
    let back = forwarder(&second, "10.94.1.54", "10.94.1.1")?;
    let said = dig(&guest, &format!("+time=8 {AT} around.example"))?;
    assert!(
        said.contains("status: SERVFAIL") || said.contains("status: REFUSED"),
        "{said}"
    );
    let times = (
        asked(&around, "around.example"),
        asked(&back, "around.example"),
    );
    assert!(
        (1..=8).contains(&times.0) && (1..=8).contains(&times.1),
        "{times:?}"
    );
    // And we still answer.
    assert_eq!(short(&guest, &format!("{AT} gateway"))?, "10.94.1.1");
    Ok(())
}
