//! Somebody else has the gateway's port 53: the network starts all the same, and says who is in the way.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tests::{Machine, Netd, World, tool, wait_for};

#[test]
fn a_network_starts_without_its_dns_and_says_so() -> anyhow::Result<()> {
    let test = "dns_rival::a_network_starts_without_its_dns_and_says_so";
    if !tool::ready(test, &["nft", "busybox", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    netd.vnet(&["network", "stop", "default"])?;
    let rival = world.host.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_freebind_v4(true)?;
        let address: SocketAddr = ([192, 168, 122, 1], 53).into();
        socket.bind(&address.into())?;
        std::io::Result::Ok(socket)
    })??;
    let events = world.host.spawn_command(netd.vnet_command(&["events"])?)?;
    wait_for("the network with an event", Duration::from_secs(20), || {
        netd.vnet(&["network", "start", "default"])?;
        let heard = events.log();
        if !heard.contains("service.failed") {
            netd.vnet(&["network", "stop", "default"])?;
        }
        anyhow::ensure!(heard.contains("service.failed"), "{heard}");
        Ok::<_, anyhow::Error>(())
    })?;
    let why = "192.168.122.1 port 53/udp is taken by another program";
    assert!(events.log().contains(why), "{}", events.log());
    // To be stopped is no recovery.
    netd.vnet(&["network", "restart", "default"])?;
    assert!(
        !events.log().contains("service.recovered"),
        "{}",
        events.log()
    );
    let shown = netd.json(&["network", "list"])?.to_string();
    assert!(shown.contains(why), "{shown}");
    // DHCP works meanwhile, and DNS as soon as it can.
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    assert_eq!(alice.lease()?.get("dns"), "192.168.122.1");
    drop(rival);
    wait_for("the gateway's DNS", Duration::from_secs(20), || {
        let got = alice.dig("192.168.122.1", &["gateway"])?;
        anyhow::ensure!(got == "192.168.122.1", "{got}");
        Ok::<_, anyhow::Error>(())
    })?;
    // And nobody is warned of what is over.
    wait_for("the end of the warning", Duration::from_secs(20), || {
        let warnings = netd.json(&["status"])?["warnings"].to_string();
        anyhow::ensure!(warnings == "[]", "{warnings}");
        Ok::<_, anyhow::Error>(())
    })?;
    let heard = events.log();
    assert!(heard.contains("service.recovered"), "{heard}");
    let failed = heard.matches("service.failed").count();
    let started = heard.matches("network.started").count();
    assert!(failed <= started, "told again and again: {heard}");
    Ok(())
}
