//! The host resolves guests by systemd-resolved with no set-up: the real one, on a real bus, in a namespace.

use std::path::PathBuf;
use std::time::Duration;

use tests::dns::{DnsHost, Upstream, dig, short};
use tests::{Ns, Proc, tool, unpacked, wait_for};
use vnet_core::dns::Change;

/// A bus that lets everybody do everything, and systemd-resolved on it.
struct Resolved {
    bus: Proc,
    server: Option<Proc>,
    program: PathBuf,
}

const BUS: &str = r#"<busconfig>
<type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>"#;

impl Resolved {
    fn new(ns: &Ns, program: PathBuf) -> anyhow::Result<Self> {
        let scratch = ns.scratch();
        // The user it wants to be is one that this machine may not have.
        for (file, line) in [
            ("passwd", "systemd-resolve:x:0:0::/:/bin/false\n"),
            ("group", "systemd-resolve:x:0:\n"),
        ] {
            let mut text = std::fs::read_to_string(format!("/etc/{file}"))?;
            text.retain(|c| c != '\r');
            let others = text.lines().filter(|l| !l.starts_with("systemd-resolve:"));
            let text: String = others.map(|l| format!("{l}\n")).collect();
            let path = scratch.write(file, &(text + line))?;
            ns.bind(path, format!("/etc/{file}"));
        }
        for folder in ["dbus", "systemd"] {
            std::fs::create_dir(scratch.join(folder))?;
            ns.bind(scratch.join(folder), format!("/run/{folder}"));
        }
        let conf = scratch.write("bus.conf", BUS)?.display().to_string();
        let conf = format!("--config-file={conf}");
        let bus = ns.spawn(&["dbus-daemon", &conf, "--nofork", "--nopidfile"])?;
        wait_for("the bus", Duration::from_secs(10), || {
            anyhow::ensure!(scratch.join("dbus/system_bus_socket").exists(), "no socket");
            Ok::<_, anyhow::Error>(())
        })?;
        let mut resolved = Self {
            bus,
            server: None,
            program,
        };
        resolved.start(ns)?;
        Ok(resolved)
    }

    fn start(&mut self, ns: &Ns) -> anyhow::Result<()> {
        self.server = None;
        let server = ns.spawn(&[&self.program.display().to_string()])?;
        self.server = Some(server);
        wait_for("systemd-resolved", Duration::from_secs(10), || {
            ns.sh(
                "busctl --system get-property org.freedesktop.resolve1 /org/freedesktop/resolve1 \
                   org.freedesktop.resolve1.Manager Domains",
            )
        })?;
        Ok(())
    }
}

/// What systemd-resolved knows.
fn property(ns: &Ns, name: &str) -> anyhow::Result<String> {
    ns.sh(&format!(
        "busctl --system get-property org.freedesktop.resolve1 /org/freedesktop/resolve1 \
         org.freedesktop.resolve1.Manager {name}"
    ))
}

fn until(ns: &Ns, name: &str, good: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    wait_for(name, Duration::from_secs(20), || {
        let said = property(ns, name)?;
        anyhow::ensure!(good(&said), "{said}");
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(())
}

const LAB: &str = r#"
name = "lab"
domain.name = "lab.test"
subnet = [{ address = "10.94.1.1/24" }]
dns.host = [{ ip = "10.94.1.9", names = ["web"] }]
"#;

#[test]
fn the_host_resolves_guests_with_no_set_up() -> anyhow::Result<()> {
    let test = "dns_resolved::the_host_resolves_guests_with_no_set_up";
    let program = unpacked::program(test, "systemd-resolved", "lib/systemd/systemd-resolved");
    let Some(program) = program.filter(|_| tool::ready(test, &["dbus-daemon", "busctl", "dig"]))
    else {
        return Ok(());
    };
    let ns = Ns::new("dnshost")?;
    ns.ip("link set lo up")?;
    let mut resolved = Resolved::new(&ns, program)?;
    let bus = ns.scratch().join("dbus/system_bus_socket");
    // Our upstream is the stub, as it is on a host with systemd-resolved: whatever comes back must not go round.
    let mut host = DnsHost::with(ns, "nameserver 127.0.0.53\n", None, Some(bus))?;
    let upstream = Upstream::new(
        &host,
        "up",
        "10.94.70.53",
        &["--address=/out.example/192.0.2.9"],
    )?;
    assert_eq!(host.network(LAB)?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    host.lease("lab", "mail", "10.94.1.77", Change::Added)?;
    // The way out, as the host's own uplink has it.
    let uplink = host
        .ns
        .sh("cat /proc/net/dev | sed -n 's/^ *\\(uup\\):.*/\\1/p'")?;
    let index = host
        .ns
        .sh(&format!("ip -o link show {} | cut -d: -f1", uplink.trim()))?;
    host.ns.sh(&format!(
        "busctl --system call org.freedesktop.resolve1 /org/freedesktop/resolve1 org.freedesktop.resolve1.Manager \
         SetLinkDNS 'ia(iay)' {} 1 2 4 10 94 70 53",
        index.trim()
    ))?;
    until(&host.ns, "Domains", |said| {
        said.contains("\"lab.test\" true") && said.contains("\"1.94.10.in-addr.arpa\" true")
    })?;
    until(&host.ns, "DNS", |said| said.contains("4 10 94 1 1"))?;
    // By the stub, that is as every program of the host.
    let stub = "@127.0.0.53";
    wait_for("the host's resolver", Duration::from_secs(10), || {
        let got = short(&host.ns, &format!("{stub} web.lab.test"))?;
        anyhow::ensure!(got == "10.94.1.9", "{got}");
        Ok::<_, anyhow::Error>(())
    })?;
    assert_eq!(
        short(&host.ns, &format!("{stub} mail.lab.test"))?,
        "10.94.1.77"
    );
    assert_eq!(
        short(&host.ns, &format!("{stub} -x 10.94.1.77"))?,
        "mail.lab.test."
    );
    assert!(dig(&host.ns, &format!("{stub} no.lab.test"))?.contains("NXDOMAIN"));
    // The guest's other names go out by the stub and the uplink, never back to us.
    assert_eq!(short(&guest, "@10.94.1.1 out.example")?, "192.0.2.9");
    assert_eq!(
        short(&host.ns, &format!("{stub} out.example"))?,
        "192.0.2.9"
    );
    assert_eq!(upstream.asked("lab.test"), 0, "our names stay here");
    // It begins anew without what it knew: it is told again.
    resolved.server = None;
    std::fs::remove_dir_all(host.ns.scratch().join("systemd/resolve/netif"))?;
    resolved.start(&host.ns)?;
    until(&host.ns, "Domains", |said| {
        said.contains("\"lab.test\" true")
    })?;
    // The network goes, and with it what was told.
    host.stop("lab")?;
    until(&host.ns, "Domains", |said| !said.contains("lab.test"))?;
    assert!(resolved.bus.alive());
    Ok(())
}

/// `Manager.MEMBER`, as `resolvectl` and VPNs call it.
fn tell(ns: &Ns, member: &str, args: &str) -> anyhow::Result<()> {
    ns.sh(&format!(
        "busctl --system call org.freedesktop.resolve1 /org/freedesktop/resolve1 org.freedesktop.resolve1.Manager \
         {member} {args}"
    ))?;
    Ok(())
}

fn index(ns: &Ns, link: &str) -> anyhow::Result<String> {
    let said = ns.sh(&format!("ip -o link show {link}"))?;
    Ok(said.split(':').next().unwrap_or_default().to_owned())
}

/// Asks until this is answered: what is set on the bus is followed at once, but by another program.
fn becomes(guest: &Ns, name: &str, answer: &str) -> anyhow::Result<()> {
    wait_for(name, Duration::from_secs(10), || {
        let got = short(guest, &format!("@10.94.1.1 {name}"))?;
        anyhow::ensure!(got == answer, "{got}");
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(())
}

/// One server of a link, in a net of ours.
fn serve(ns: &Ns, link: &str, net: u8, host: u8) -> anyhow::Result<()> {
    let server = format!("'ia(iay)' {link} 1 2 4 10 94 {net} {host}");
    tell(ns, "SetLinkDNS", &server)
}

/// Domains of a link: how many, and each with whether it is for routing only.
fn domains(ns: &Ns, link: &str, list: &str) -> anyhow::Result<()> {
    tell(ns, "SetLinkDomains", &format!("'ia(sb)' {link} {list}"))
}

/// Somebody sends everything to us: we ask the others.
fn nothing_goes_round(ns: &Ns, guest: &Ns, home: &Upstream, tunnel: &str) -> anyhow::Result<()> {
    serve(ns, tunnel, 1, 1)?;
    domains(ns, tunnel, "1 . true")?;
    domains(ns, &index(ns, "br1")?, "2 lab.test true . true")?;
    for i in 0..5 {
        becomes(guest, &format!("round{i}.example"), "192.0.2.1")?;
        let asked = home.asked(&format!("query[a] round{i}.example"));
        assert_eq!(asked, 1, "once");
    }
    tell(ns, "RevertLink", &format!("i {tunnel}"))
}

#[test]
fn domains_of_links_are_followed_live() -> anyhow::Result<()> {
    let test = "dns_resolved::domains_of_links_are_followed_live";
    let program = unpacked::program(test, "systemd-resolved", "lib/systemd/systemd-resolved");
    let tools = ["dbus-daemon", "busctl", "dig", "dnsmasq"];
    let Some(program) = program.filter(|_| tool::ready(test, &tools)) else {
        return Ok(());
    };
    let ns = Ns::new("dnshost")?;
    ns.ip("link set lo up")?;
    let mut resolved = Resolved::new(&ns, program)?;
    let bus = ns.scratch().join("dbus/system_bus_socket");
    let mut host = DnsHost::with(ns, "nameserver 127.0.0.53\n", None, Some(bus))?;
    let answers = |last: u8| format!("--address=/example/192.0.2.{last}");
    let ttl = "--local-ttl=600";
    let home = Upstream::new(&host, "home", "10.94.70.53", &[&answers(1), ttl])?;
    let vpn = Upstream::new(&host, "vpn", "10.94.71.53", &[&answers(2), ttl])?;
    let other = Upstream::new(&host, "vpn2", "10.94.72.53", &[&answers(3), ttl])?;
    assert_eq!(host.network(LAB)?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    let host_ns = &host.ns;
    let (uplink, tunnel, second) = (
        index(host_ns, "uhome")?,
        index(host_ns, "uvpn")?,
        index(host_ns, "uvpn2")?,
    );
    serve(host_ns, &uplink, 70, 53)?;
    becomes(&guest, "app.corp.example", "192.0.2.1")?;
    becomes(&guest, "www.example", "192.0.2.1")?;
    // A VPN connects: names under its domain are asked there, though they were kept for ten minutes.
    serve(host_ns, &tunnel, 71, 53)?;
    domains(host_ns, &tunnel, "1 corp.example true")?;
    becomes(&guest, "app.corp.example", "192.0.2.2")?;
    becomes(&guest, "www.example", "192.0.2.1")?;
    becomes(&guest, "new.example", "192.0.2.1")?;
    assert_eq!(
        (
            home.asked("app.corp.example from"),
            vpn.asked("new.example")
        ),
        (1, 0),
        "to each what is its"
    );
    // Only its domains change, which the bus does not tell.
    domains(host_ns, &tunnel, "2 corp.example true dev.example true")?;
    becomes(&guest, "git.dev.example", "192.0.2.2")?;
    domains(host_ns, &tunnel, "1 dev.example true")?;
    becomes(&guest, "app.corp.example", "192.0.2.1")?;
    // Only its server changes.
    serve(host_ns, &tunnel, 72, 53)?;
    serve(host_ns, &second, 72, 53)?;
    domains(host_ns, &second, "1 corp.example true")?;
    becomes(&guest, "app.corp.example", "192.0.2.3")?;
    // It wants everything, then goes.
    domains(host_ns, &second, "1 . true")?;
    becomes(&guest, "www.example", "192.0.2.3")?;
    tell(host_ns, "RevertLink", &format!("i {second}"))?;
    tell(host_ns, "RevertLink", &format!("i {tunnel}"))?;
    becomes(&guest, "www.example", "192.0.2.1")?;
    becomes(&guest, "git.dev.example", "192.0.2.1")?;
    assert!(other.asked("query[a]") > 0);
    nothing_goes_round(host_ns, &guest, &home, &tunnel)?;
    // It begins anew: what it finds is followed again.
    resolved.server = None;
    resolved.start(host_ns)?;
    serve(host_ns, &tunnel, 71, 53)?;
    domains(host_ns, &tunnel, "1 corp.example true")?;
    becomes(&guest, "again.corp.example", "192.0.2.2")?;
    Ok(())
}
