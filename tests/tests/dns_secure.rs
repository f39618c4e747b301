//! Upstreams over TLS and HTTPS, and DNSSEC that passes through: with BIND as the upstream, and `dig` and `delv` as guests.

use std::path::PathBuf;
use std::time::Duration;

use tests::dns::{DnsHost, dig, short};
use tests::{Ns, Proc, tool, unpacked, wait_for};

const AT: &str = "@10.94.1.1";

/// A BIND beyond the host that answers for `example` over everything, and an authority that vouches for it.
struct Bind {
    ns: Ns,
    named: PathBuf,
    server: Option<Proc>,
}

const ZONE: &str = "$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 10.94.70.53\n\
                    *.n A 192.0.2.7\na A 192.0.2.1\n";

impl Bind {
    fn new(named: PathBuf) -> anyhow::Result<Self> {
        let ns = Ns::new("bind")?;
        let here = ns.scratch().path().display().to_string();
        ns.scratch().write("example.zone", ZONE)?;
        // The authority, and what it vouches for: a name and an address.
        ns.sh(&format!(
            "cd {here} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=lab \
             -keyout ca.key -out ca.pem 2>&1 && openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj \
             /CN=dns.test -keyout key.pem -out csr.pem 2>&1 && printf \
             'subjectAltName=DNS:dns.test,IP:10.94.70.53\\n' >ext && openssl x509 -req -in csr.pem -CA ca.pem -CAkey \
             ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem 2>&1"
        ))?;
        let conf = format!(
            r#"
            tls mine {{ cert-file "{here}/cert.pem"; key-file "{here}/key.pem"; }};
            http questions {{ endpoints {{ "/dns-query"; }}; }};
            options {{
                directory "{here}"; pid-file none; session-keyfile none; managed-keys-directory "{here}";
                recursion no; listen-on-v6 {{ none; }};
                listen-on port 53 {{ 10.94.70.53; }};
                listen-on port 853 tls mine {{ 10.94.70.53; }};
                listen-on port 443 tls mine http questions {{ 10.94.70.53; }};
            }};
            controls {{ }};
            logging {{ category queries {{ default_stderr; }}; }};
            zone "example" {{ type primary; file "{here}/example.zone"; dnssec-policy default; inline-signing yes; }};
            "#
        );
        ns.scratch().write("named.conf", &conf)?;
        Ok(Self {
            ns,
            named,
            server: None,
        })
    }

    /// Connects it with the host, and starts it.
    fn attach(&mut self, host: &DnsHost) -> anyhow::Result<()> {
        host.ns.link("ubind", &self.ns, "eth0")?;
        host.ns.ip("addr add 10.94.70.254/24 dev ubind")?;
        self.ns.ip("addr add 10.94.70.53/24 dev eth0")?;
        self.start()
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let conf = self.ns.scratch().join("named.conf").display().to_string();
        let named = self.named.display().to_string();
        let server = self.ns.spawn(&[&named, "-g", "-n", "1", "-c", &conf])?;
        server.wait_log("running", Duration::from_secs(20))?;
        self.server = Some(server);
        Ok(())
    }

    fn log(&self) -> String {
        self.server.as_ref().map(Proc::log).unwrap_or_default()
    }

    fn authorities(&self) -> PathBuf {
        self.ns.scratch().join("ca.pem")
    }
}

fn lab(upstream: &str) -> String {
    format!(
        "name = \"lab\"\nsubnet = [{{ address = \"10.94.1.1/24\" }}]\n[dns]\nupstream = [{{ address = \"{upstream}\" }}]\n"
    )
}

/// A host whose network asks one upstream, and a guest.
fn asking(
    test: &str,
    upstream: &str,
    trusted: bool,
) -> anyhow::Result<Option<(DnsHost, Bind, Ns)>> {
    if !tool::ready(test, &["dig", "openssl"]) {
        return Ok(None);
    }
    let Some(named) = unpacked::program(test, "bind9", "usr/sbin/named") else {
        return Ok(None);
    };
    let mut bind = Bind::new(named)?;
    let authorities = trusted.then(|| bind.authorities());
    let mut host = DnsHost::trusting("dnshost", "", authorities)?;
    bind.attach(&host)?;
    assert_eq!(host.network(&lab(upstream))?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    Ok(Some((host, bind, guest)))
}

/// Connections of the host's that stand.
fn standing(host: &DnsHost, port: u16) -> anyhow::Result<usize> {
    let all = host
        .ns
        .sh(&format!("ss -Htn state established dport = :{port}"))?;
    Ok(all.lines().count())
}

/// Many questions over one connection that is kept, made anew when it breaks, and nothing in plain text.
fn one_connection(test: &str, upstream: &str, port: u16) -> anyhow::Result<()> {
    let Some((host, mut bind, guest)) = asking(test, upstream, true)? else {
        return Ok(());
    };
    assert_eq!(short(&guest, &format!("{AT} a.example"))?, "192.0.2.1");
    let names: String = (0..200).map(|i| format!("x{i}.n.example A\n")).collect();
    let file = guest.scratch().write("names", &names)?;
    let all = guest.sh(&format!(
        "dig +tries=1 +time=4 +short {AT} -f {}",
        file.display()
    ))?;
    assert_eq!(all.matches("192.0.2.7").count(), 200, "{all}");
    assert_eq!(standing(&host, port)?, 1, "one connection for all of them");
    // The other side goes away and comes back: the next question finds a new connection.
    bind.server = None;
    bind.start()?;
    wait_for("the upstream again", Duration::from_secs(20), || {
        let got = short(&guest, &format!("{AT} again.n.example"))?;
        anyhow::ensure!(got == "192.0.2.7", "{got}");
        Ok::<_, anyhow::Error>(())
    })?;
    let log = bind.log();
    assert!(log.contains("again.n.example"), "{log}");
    Ok(())
}

#[test]
fn over_tls() -> anyhow::Result<()> {
    one_connection("dns_secure::over_tls", "tls://10.94.70.53#dns.test", 853)
}

#[test]
fn over_https() -> anyhow::Result<()> {
    let upstream = "https://10.94.70.53/dns-query#dns.test";
    one_connection("dns_secure::over_https", upstream, 443)
}

#[test]
fn the_address_alone_is_a_name_too() -> anyhow::Result<()> {
    let test = "dns_secure::the_address_alone_is_a_name_too";
    if let Some((_host, _bind, guest)) = asking(test, "https://10.94.70.53", true)? {
        assert_eq!(short(&guest, &format!("{AT} a.example"))?, "192.0.2.1");
    }
    Ok(())
}

/// The strict profile of RFC 8310, and no other: nobody is asked who cannot show who he is, and nothing goes in plain
/// text instead.
fn refused(test: &str, upstream: &str, trusted: bool) -> anyhow::Result<()> {
    let Some((_host, bind, guest)) = asking(test, upstream, trusted)? else {
        return Ok(());
    };
    let said = dig(&guest, &format!("+time=8 {AT} a.example"))?;
    assert!(said.contains("SERVFAIL"), "{said}");
    assert!(!bind.log().contains("(a.example)"), "{}", bind.log());
    Ok(())
}

#[test]
fn rfc8310_8_1_another_name_is_not_believed() -> anyhow::Result<()> {
    let test = "dns_secure::rfc8310_8_1_another_name_is_not_believed";
    refused(test, "tls://10.94.70.53#other.test", true)
}

#[test]
fn rfc8310_5_a_stranger_is_not_believed() -> anyhow::Result<()> {
    let test = "dns_secure::rfc8310_5_a_stranger_is_not_believed";
    refused(test, "https://10.94.70.53#dns.test", false)
}

#[test]
fn signatures_pass_untouched() -> anyhow::Result<()> {
    let test = "dns_secure::signatures_pass_untouched";
    for upstream in ["10.94.70.53", "tls://10.94.70.53#dns.test"] {
        let Some((_host, bind, guest)) = asking(test, upstream, true)? else {
            return Ok(());
        };
        // The zone's key, as a validator is told whom to trust.
        let key = wait_for("a signed zone", Duration::from_secs(20), || {
            let key = bind.ns.sh("dig +short @10.94.70.53 example DNSKEY")?;
            let signed = bind.ns.sh("dig +dnssec @10.94.70.53 a.example")?;
            anyhow::ensure!(
                key.contains("257 3 13") && signed.contains("RRSIG"),
                "{key}{signed}"
            );
            Ok::<_, anyhow::Error>(key)
        })?;
        let key = key
            .lines()
            .find(|l| l.starts_with("257 "))
            .unwrap_or_default();
        let digits = key.trim_start_matches("257 3 13 ");
        let anchor = format!("trust-anchors {{ example. static-key 257 3 13 \"{digits}\"; }};\n");
        let anchor = guest.scratch().write("anchor", &anchor)?;
        let delv = |name: &str| {
            guest.sh(&format!(
                "delv {AT} -a {} +root=example {name} 2>&1 || true",
                anchor.display()
            ))
        };
        for (name, proof) in [
            ("a.example", "fully validated"),
            ("x.n.example", "fully validated"),
            ("no.example", "negative response, fully validated"),
            ("a.example AAAA", "negative response, fully validated"),
        ] {
            // The second time it comes from the cache.
            for _ in 0..2 {
                let said = delv(name)?;
                assert!(said.contains(proof), "{upstream} {name}: {said}");
            }
        }
        let without = dig(&guest, &format!("{AT} a.example"))?;
        assert!(
            !without.contains("RRSIG"),
            "only to those who ask: {without}"
        );
        let with = dig(&guest, &format!("+dnssec +cd {AT} a.example"))?;
        assert!(with.contains("RRSIG") && with.contains(" cd"), "{with}");
    }
    Ok(())
}
