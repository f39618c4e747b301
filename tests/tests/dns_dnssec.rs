//! Signatures are checked for guests that ask for it: real zones under a root of our own, signed by BIND's tools and
//! served by `named`; the clients are `dig`, `kdig` and `delv`.

use std::time::Duration;

use tests::dns::{DnsHost, dig, short};
use tests::{Ns, Proc, tool, unpacked};

const AT: &str = "@10.94.1.1";

/// The zones below the root: what they hold is the same, how they are signed is not.
const ZONES: [(&str, &str, &str); 6] = [
    // name, options of dnssec-signzone (empty: not signed), what is done to the file then
    ("good", "-e now+86400", ""),
    ("three", "-e now+86400 -3 -", ""),
    ("forged", "-e now+86400", "s/192\\.0\\.2\\.1$/192.0.2.66/"),
    ("old", "-s 20200101000000 -e 20200201000000", ""),
    ("stripped", "-e now+86400", "STRIP"),
    ("plain", "", ""),
];

const RECORDS: &str = "$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 10.94.70.54\n\
                       www A 192.0.2.1\n*.wild A 192.0.2.7\nto-plain CNAME www.plain.\nto-forged CNAME www.forged.\n";

/// A `named` with all zones down from a root of its own, the root's key, and a `named` that recurses from there and
/// checks nothing itself.
struct Root {
    ns: Ns,
    servers: Vec<Proc>,
    key: String,
}

impl Root {
    /// `None` is a skip, with its reason.
    fn new(test: &str) -> anyhow::Result<Option<Self>> {
        if !tool::ready(test, &["dig", "delv", "kdig"]) {
            return Ok(None);
        }
        let named = unpacked::program(test, "bind9", "usr/sbin/named");
        let keygen = unpacked::program(test, "bind9-utils", "usr/bin/dnssec-keygen");
        let signzone = unpacked::program(test, "bind9-utils", "usr/bin/dnssec-signzone");
        let (Some(named), Some(keygen), Some(signzone)) = (named, keygen, signzone) else {
            return Ok(None);
        };
        let ns = Ns::new("dnsroot")?;
        let here = ns.scratch().path().display().to_string();
        let (keygen, signzone) = (keygen.display(), signzone.display());
        let key = "-q -a ECDSAP256SHA256 -P 20200101000000 -A 20200101000000";
        let sign = |zone: &str, options: &str| {
            ns.sh(&format!(
                "cd {here} && {keygen} {key} -f KSK {zone} && {keygen} {key} {zone} \
                 && {signzone} -q -P -S -g {options} -o {zone} -f {zone}signed {zone}zone"
            ))
        };
        let mut root =
            "$TTL 300\n. SOA ns.good. hostmaster.good. 1 3600 600 86400 60\n. NS ns.good.\n"
                .to_owned();
        let mut served = String::new();
        for (zone, options, change) in ZONES {
            ns.scratch().write(&format!("{zone}zone"), RECORDS)?;
            root.push_str(&format!(
                "{zone}. NS ns.{zone}.\nns.{zone}. A 10.94.70.54\n"
            ));
            let mut file = format!("{zone}signed");
            if options.is_empty() {
                file = format!("{zone}zone");
            } else {
                sign(zone, options)?;
                root.push_str(&ns.sh(&format!("cat {here}/dsset-{zone}."))?);
            }
            match change {
                "" => {}
                "STRIP" => file = format!("{zone}zone"),
                edit => drop(ns.sh(&format!("sed -i '{edit}' {here}/{file}"))?),
            }
            served.push_str(&format!(
                "zone \"{zone}\" {{ type primary; file \"{here}/{file}\"; }};\n"
            ));
        }
        ns.scratch().write(".zone", &root)?;
        sign(".", "-e now+86400")?;
        let key = ns
            .sh(&format!("grep -h 'DNSKEY 257' {here}/K.+*.key"))?
            .trim()
            .to_owned();
        let options = format!(
            "directory \"{here}\"; pid-file none; session-keyfile none; managed-keys-directory \"{here}\"; \
             listen-on-v6 {{ none; }}; dnssec-validation no; empty-zones-enable no;"
        );
        let authority = format!(
            "options {{ {options} recursion no; listen-on {{ 10.94.70.54; }}; }};\ncontrols {{ }};\n\
             zone \".\" {{ type primary; file \"{here}/.signed\"; }};\n{served}"
        );
        let resolver = format!(
            "options {{ {options} recursion yes; listen-on {{ 10.94.70.53; }}; query-source address 10.94.70.53; }};\n\
             controls {{ }};\nlogging {{ category queries {{ default_stderr; }}; }};\n\
             zone \".\" {{ type hint; file \"{here}/hints\"; }};\n"
        );
        ns.scratch()
            .write("hints", ". 300 NS ns.good.\nns.good. 300 A 10.94.70.54\n")?;
        ns.scratch().write("authority.conf", &authority)?;
        ns.scratch().write("resolver.conf", &resolver)?;
        ns.scratch().write("named", &named.display().to_string())?;
        Ok(Some(Self {
            ns,
            servers: Vec::new(),
            key,
        }))
    }

    fn attach(&mut self, host: &DnsHost) -> anyhow::Result<()> {
        host.ns.link("uroot", &self.ns, "eth0")?;
        host.ns.ip("addr add 10.94.70.254/24 dev uroot")?;
        let named = std::fs::read_to_string(self.ns.scratch().join("named"))?;
        for (address, conf) in [
            ("10.94.70.54", "authority.conf"),
            ("10.94.70.53", "resolver.conf"),
        ] {
            self.ns.ip(&format!("addr add {address}/24 dev eth0"))?;
            let conf = self.ns.scratch().join(conf).display().to_string();
            let server = self.ns.spawn(&[&named, "-g", "-n", "1", "-c", &conf])?;
            server.wait_log("running", Duration::from_secs(20))?;
            self.servers.push(server);
        }
        Ok(())
    }

    fn asked(&self, text: &str) -> usize {
        let log: String = self.servers.iter().map(Proc::log).collect();
        log.to_ascii_lowercase().matches(text).count()
    }
}

fn lab(dns: &str) -> String {
    format!(
        "name = \"lab\"\ndomain.name = \"lab.test\"\nsubnet = [{{ address = \"10.94.1.1/24\" }}]\n\
         [dns]\nhost = [{{ ip = \"10.94.1.9\", names = [\"web\"] }}]\n\
         upstream = [{{ address = \"10.94.70.53\" }}, {{ address = \"10.94.70.53\", domain = \"inner.forged\" }}]\n{dns}"
    )
}

/// The status and the flags of dig's header.
fn head(output: &str) -> String {
    let part = |after: &str, until: char| {
        let rest = output.split(after).nth(1).unwrap_or_default();
        rest.split(until).next().unwrap_or_default().to_owned()
    };
    format!("{}:{}", part("status: ", ','), part("flags:", ';'))
}

/// A host whose network checks signatures from our root down, and a guest.
fn checking(test: &str) -> anyhow::Result<Option<(Root, DnsHost, Ns)>> {
    let Some(mut root) = Root::new(test)? else {
        return Ok(None);
    };
    let mut host = DnsHost::new("dnshost", "")?;
    root.attach(&host)?;
    let checked = format!(
        "dnssec = \"validate\"\ntrust_anchors = [\"{}\"]\n",
        root.key
    );
    assert_eq!(host.network(&lab(&checked))?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    Ok(Some((root, host, guest)))
}

#[test]
fn signatures_are_checked() -> anyhow::Result<()> {
    let test = "dns_dnssec::signatures_are_checked";
    let Some((root, _host, guest)) = checking(test)? else {
        return Ok(());
    };
    let ask = |args: &str| dig(&guest, &format!("+time=5 {AT} {args}"));
    // Signed: proven, and said so to those who ask for it.
    for zone in ["good", "three"] {
        for (name, status, answers) in [
            (format!("www.{zone} A"), "NOERROR: qr rd ra ad", 1),
            (format!("x.wild.{zone} A"), "NOERROR: qr rd ra ad", 1),
            (format!("www.{zone} AAAA"), "NOERROR: qr rd ra ad", 0),
            (format!("no.{zone} A"), "NXDOMAIN: qr rd ra ad", 0),
            (format!("{zone} DNSKEY"), "NOERROR: qr rd ra ad", 2),
        ] {
            let said = ask(&name)?;
            assert_eq!(head(&said), status, "{said}");
            assert!(said.contains(&format!("ANSWER: {answers},")), "{said}");
            assert!(
                !said.contains("RRSIG") && !said.contains("NSEC"),
                "nobody asked for them: {said}"
            );
            let said = ask(&format!("+dnssec {name}"))?;
            assert_eq!(head(&said), status, "{said}");
            assert!(said.contains("RRSIG"), "{said}");
        }
    }
    let said = ask("+noadflag www.good")?;
    assert_eq!(head(&said), "NOERROR: qr rd ra", "{said}");
    // Over TCP, and from the cache: the same.
    let before = root.asked("query:");
    let said = guest.sh(&format!("kdig +tcp +adflag {AT} www.good A"))?;
    assert!(
        said.contains("Flags: qr rd ra ad") && said.contains("192.0.2.1"),
        "{said}"
    );
    assert_eq!(root.asked("query:"), before, "it is kept");
    // Forged, expired, stripped of signatures: a failure that says why, also after an alias.
    for (name, why) in [
        ("www.forged", "EDE: 6 (DNSSEC Bogus)"),
        ("www.old", "EDE: 7 (Signature Expired)"),
        ("www.stripped", "EDE: 10 (RRSIGs Missing)"),
        ("no.stripped", "EDE: 12 (NSEC Missing)"),
        ("to-forged.good", "EDE: 6 (DNSSEC Bogus)"),
    ] {
        for again in ["", "again from the cache"] {
            let said = ask(name)?;
            assert!(
                head(&said).starts_with("SERVFAIL") && said.contains(why),
                "{name} {again} {said}"
            );
            assert!(!said.contains("192.0.2."), "{said}");
        }
        // Who checks himself is told what there is.
        let said = ask(&format!("+cd {name}"))?;
        assert!(!head(&said).starts_with("SERVFAIL"), "{said}");
    }
    // What nobody signed passes, and is not called proven.
    for name in ["www.plain", "to-plain.good", "www.plain +dnssec"] {
        let said = ask(name)?;
        assert_eq!(head(&said), "NOERROR: qr rd ra", "{said}");
        assert!(said.contains("192.0.2.1"), "{said}");
    }
    assert_eq!(head(&ask("no.plain")?), "NXDOMAIN: qr rd ra");
    Ok(())
}

#[test]
fn what_is_exempt_and_who_checks_behind_us() -> anyhow::Result<()> {
    let test = "dns_dnssec::what_is_exempt_and_who_checks_behind_us";
    let Some((root, mut host, guest)) = checking(test)? else {
        return Ok(());
    };
    let ask = |args: &str| dig(&guest, &format!("+time=5 {AT} {args}"));
    // Ours, and what has resolvers of its own, are not for the world's keys to judge.
    let said = ask("web.lab.test")?;
    assert!(
        head(&said).starts_with("NOERROR: qr aa rd ra") && said.contains("10.94.1.9"),
        "{said}"
    );
    assert_eq!(head(&ask("x.inner.forged")?), "NXDOMAIN: qr rd ra");
    // A validator behind us finds all that it needs.
    let anchor = root.key.split("DNSKEY ").nth(1).unwrap_or_default();
    let (numbers, digits) = anchor.split_at(9);
    let anchor = format!(
        "trust-anchors {{ . static-key {numbers} \"{}\"; }};\n",
        digits.replace(' ', "")
    );
    let anchor = guest.scratch().write("anchor", &anchor)?;
    for (name, verdict) in [
        ("www.good", "; fully validated"),
        ("www.three", "; fully validated"),
        ("no.three", "; negative response, fully validated"),
        ("www.plain", "; unsigned answer"),
        ("www.old", "resolution failed"),
    ] {
        let said = guest.sh(&format!(
            "delv {AT} -a {} {name} 2>&1 || true",
            anchor.display()
        ))?;
        assert!(said.contains(verdict), "{name}: {said}");
    }
    // Without checking, all of it passes.
    assert_eq!(host.network(&lab(""))?, []);
    assert_eq!(short(&guest, &format!("{AT} www.forged"))?, "192.0.2.66");
    Ok(())
}

#[test]
fn other_keys_prove_nothing() -> anyhow::Result<()> {
    let test = "dns_dnssec::other_keys_prove_nothing";
    let Some(mut root) = Root::new(test)? else {
        return Ok(());
    };
    let mut host = DnsHost::new("dnshost", "")?;
    root.attach(&host)?;
    // The built-in keys of the world's root: this root is another.
    assert_eq!(host.network(&lab("dnssec = \"validate\"\n"))?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    let said = dig(&guest, &format!("+time=5 {AT} www.good"))?;
    assert!(
        head(&said).starts_with("SERVFAIL") && said.contains("EDE: "),
        "{said}"
    );
    // A key of the zone itself is as good as the root's.
    let here = root.ns.scratch().path().display().to_string();
    let key = root
        .ns
        .sh(&format!("grep -h 'DNSKEY 257' {here}/Kgood.+*.key"))?;
    let checked = format!(
        "dnssec = \"validate\"\ntrust_anchors = [\"{}\"]\n",
        key.trim()
    );
    assert_eq!(host.network(&lab(&checked))?, []);
    let said = dig(&guest, &format!("+time=5 {AT} www.good"))?;
    assert_eq!(head(&said), "NOERROR: qr rd ra ad", "{said}");
    // While nobody answers, what was proven before is better than nothing; what was not, is a failure.
    root.servers.clear();
    let said = dig(&guest, &format!("+time=6 {AT} www.three"))?;
    assert!(
        head(&said).starts_with("SERVFAIL") && said.contains("EDE: 22"),
        "{said}"
    );
    Ok(())
}
