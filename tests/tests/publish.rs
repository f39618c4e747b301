//! A guest's port on the host: from everywhere it must be reached, and only while it is published.

use anyhow::Context as _;
use tests::http::Web;
use tests::world::{HOST, fetch};
use tests::{Machine, Netd, World, tool};

const TOOLS: [&str; 4] = ["nft", "busybox", "curl", "dnsmasq"];

#[test]
fn from_everywhere_until_taken_back() -> anyhow::Result<()> {
    if !tool::ready("publish::from_everywhere_until_taken_back", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let mut netd = Netd::start(&world.host)?;
    let (web, other) = (
        Machine::plug(&netd, "default", "web", &[])?,
        Machine::plug(&netd, "default", "other", &[])?,
    );
    web.lease()?;
    other.lease()?;
    let _page = Web::start(&web.ns, "web", "0.0.0.0:80")?;
    let outside = format!("http://{HOST}:8080/");
    assert!(
        fetch(&world.internet, &outside).is_err(),
        "before it is published"
    );

    netd.vnet(&["publish", "default", "web", "8080:80/tcp"])?;
    let reached = |netd: &Netd, when: &'static str| -> anyhow::Result<()> {
        let from_outside = fetch(&world.internet, &outside).context(when.to_owned())?;
        assert_eq!(
            from_outside, "hello from web, you are 198.51.100.1\n",
            "{when}: the guest sees who asks"
        );
        let near = [
            (netd.ns(), outside.as_str(), "the host"),
            (netd.ns(), "http://127.0.0.1:8080/", "loopback"),
            (&other.ns, &outside, "another guest"),
            (&web.ns, &outside, "itself"),
        ];
        for (ns, url, who) in near {
            let page = fetch(ns, url).with_context(|| format!("{when}: from {who}"))?;
            assert!(page.starts_with("hello from web"), "{when}: {who}: {page}");
        }
        Ok(())
    };
    reached(&netd, "published")?;
    let listed = netd.json(&["publish"])?;
    assert_eq!(
        (&listed[0]["guest"], &listed[0]["host_port"]),
        (&"web".into(), &8080.into()),
        "{listed}"
    );

    netd.kill9()?;
    reached(&netd, "while netd is dead")?;
    netd.start_again()?;
    reached(&netd, "after a restart")?;
    netd.vnet(&["network", "restart", "default"])?;
    reached(&netd, "after the network's restart")?;

    netd.vnet(&["unpublish", "default", "8080/tcp"])?;
    assert!(fetch(&world.internet, &outside).is_err(), "taken back");
    assert!(
        fetch(&world.host, "http://127.0.0.1:8080/").is_err(),
        "taken back, from loopback"
    );
    Ok(())
}

#[test]
fn a_port_is_published_once() -> anyhow::Result<()> {
    if !tool::ready("publish::a_port_is_published_once", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    for name in ["web", "db"] {
        netd.vnet(&["port", "attach", "default", name])?;
    }
    netd.vnet(&["publish", "default", "web", "8080:80/tcp"])?;
    netd.vnet(&["publish", "default", "db", "8080:80/udp"])?;
    let refused = netd
        .try_vnet(&["publish", "default", "db", "8080:80/tcp"])?
        .refused()?;
    assert!(refused.contains("8080"), "{refused}");
    for wrong in ["8080", "0:80/tcp", "80:70000/tcp", "80:80/icmp", "a:b/tcp"] {
        let refused = netd
            .try_vnet(&["publish", "default", "db", wrong])?
            .refused()?;
        assert!(!refused.contains("panicked"), "{refused}");
    }
    netd.try_vnet(&["publish", "default", "nobody", "8081:80/tcp"])?
        .refused()?;
    assert_eq!(netd.json(&["publish"])?.as_array().map(Vec::len), Some(2));
    Ok(())
}
