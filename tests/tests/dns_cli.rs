//! `vnet dns`: what a person is told of names, counts and upstreams.

use tests::{Netd, Ns, tool};

const LAB: &str = r#"
name = "lab"
[domain]
name = "lab.test"
[dns]
host = [{ ip = "10.50.0.7", names = ["printer"] }]
upstream = [{ address = "10.50.0.53" }]
[[subnet]]
address = "10.50.0.1/24"
"#;

#[test]
fn names_counts_and_upstreams_are_told() -> anyhow::Result<()> {
    let test = "dns_cli::names_counts_and_upstreams_are_told";
    if !tool::ready(test, &["nft", "dig"]) {
        return Ok(());
    }
    let ns = Ns::new("dnscli")?;
    let netd = Netd::start_with(&ns, &["--no-default", "--dns-cache", "64"])?;
    netd.apply(LAB)?;
    let own = netd.json(&["dns", "lookup", "lab", "printer"])?;
    assert_eq!(own["whose"], "ours", "{own}");
    assert_eq!(own["records"][0], "printer. 10 A 10.50.0.7", "{own}");
    for back in [&["10.50.0.7"][..], &["10.50.0.7", "ptr"]] {
        let back = netd.json(&[&["dns", "lookup", "lab"], back].concat())?;
        let told = "7.0.50.10.in-addr.arpa. 10 PTR printer.lab.test.";
        assert_eq!(back["records"][0], told, "{back}");
    }
    let other = netd.vnet(&["dns", "lookup", "lab", "example.com", "aaaa"])?;
    assert!(other.contains("upstreams are asked"), "{other}");
    assert!(other.contains("10.50.0.53:53"), "{other}");
    ns.sh("dig +short +tries=1 @10.50.0.1 printer.lab.test")?;
    let stats = netd.json(&["dns", "stats"])?;
    assert_eq!(stats["cache_limit"], 64 * 1024, "{stats}");
    assert_eq!(stats["networks"][0]["network"], "lab", "{stats}");
    assert_eq!(stats["networks"][0]["local"], 1, "{stats}");
    let table = netd.vnet(&["dns", "stats"])?;
    assert!(table.starts_with("NETWORK"), "{table}");
    let flushed = netd.vnet(&["dns", "flush"])?;
    assert_eq!(flushed.trim(), "Forgotten: 0 answers");
    for wrong in [
        ["dns", "lookup", "nothing", "a", "A"],
        ["dns", "lookup", "lab", "a", "nonsense"],
        ["dns", "lookup", "lab", "a..b", "A"],
        ["dns", "lookup", "lab", ".a", "A"],
    ] {
        assert_ne!(netd.try_vnet(&wrong)?.code, Some(0), "{wrong:?}");
    }
    Ok(())
}
