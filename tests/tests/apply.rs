//! A running network is changed; its guests stay connected.

use tests::http::Web;
use tests::world::{GATEWAY, HOST, WWW, fetch};
use tests::{Machine, Netd, Stream, World, tool};

const TOOLS: [&str; 6] = ["nft", "busybox", "ping", "curl", "dig", "dnsmasq"];

/// The lab, with this mode, these lines in its DHCP part, and these after everything.
fn lab(mode: &str, range: &str, dhcp: &str, more: &str) -> String {
    format!(
        "name = \"lab\"\n{more}\n[bridge]\nname = \"lab0\"\n[forward]\nmode = \"{mode}\"\n[domain]\nname = \"lab.test\"\n\
         [[subnet]]\naddress = \"10.50.0.1/24\"\n[subnet.dhcp]\nranges = [\"{range}\"]\n{dhcp}\n"
    )
}

const RANGE: &str = "10.50.0.10-10.50.0.99";

#[test]
fn guests_stay_connected() -> anyhow::Result<()> {
    if !tool::ready("apply::guests_stay_connected", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(&lab("nat", RANGE, "", ""))?;
    let (alice, bob) = (
        Machine::plug(&netd, "lab", "alice", &[])?,
        Machine::plug(&netd, "lab", "bob", &[])?,
    );
    let held = alice.lease()?.ip;
    let bobs = bob.lease()?.ip.to_string();
    let _page = Web::start(&bob.ns, "bob", "0.0.0.0:80")?;
    let index = world.host.ip("-o link show lab0")?;

    let stream = Stream::start(&alice.ns, &bobs, 600)?;
    netd.apply(&lab(
        "nat",
        "10.50.0.10-10.50.0.199",
        "lease_time = \"5m\"",
        "",
    ))?;
    let reserved =
        "[[subnet.dhcp.host]]\nmac = \"52:54:00:aa:00:07\"\nip = \"10.50.0.7\"\nname = \"printer\"";
    netd.apply(&lab("nat", RANGE, reserved, ""))?;
    alice.finds("10.50.0.1", &["printer.lab.test"], "10.50.0.7")?;
    netd.apply(&lab(
        "nat",
        RANGE,
        "",
        "dns = { host = [{ ip = \"10.50.0.250\", names = [\"nas\"] }] }",
    ))?;
    alice.finds("10.50.0.1", &["nas.lab.test"], "10.50.0.250")?;
    netd.apply(&lab(
        "nat",
        RANGE,
        "",
        "publish = [{ guest = \"bob\", ports = \"8080:80/tcp\" }]",
    ))?;
    assert!(fetch(&world.internet, &format!("http://{HOST}:8080/"))?.starts_with("hello from bob"));

    alice.reaches(GATEWAY)?;
    netd.apply(&lab("isolated", RANGE, "", ""))?;
    assert!(!alice.pings(GATEWAY)?, "isolated");
    assert!(
        fetch(&world.internet, &format!("http://{HOST}:8080/")).is_err(),
        "no longer published"
    );
    netd.apply(&lab("nat", RANGE, "", ""))?;
    alice.reaches(GATEWAY)?;

    let second = lab("nat", RANGE, "", "") + "[[subnet]]\naddress = \"10.51.0.1/24\"\n";
    netd.apply(&second)?;
    assert!(world.host.ip("-4 addr show lab0")?.contains("10.51.0.1/24"));
    netd.apply(
        &lab("nat", RANGE, "", "").replace("name = \"lab0\"", "name = \"lab0\"\nmtu = 1400"),
    )?;
    assert!(world.host.ip("-o link show lab0")?.contains("mtu 1400"));
    assert!(
        !world.host.ip("-4 addr show lab0")?.contains("10.51.0.1/24"),
        "a removed subnet"
    );

    stream.unharmed()?;
    assert_eq!(
        world.host.ip("-o link show lab0")?.split(':').next(),
        index.split(':').next(),
        "the same bridge"
    );
    assert_eq!(alice.lease()?.ip, held, "the same lease");
    assert_eq!(
        alice.fetch(&format!("http://{WWW}/"))?,
        format!("hello from www.example.org, you are {HOST}\n")
    );
    Ok(())
}

#[test]
fn applying_twice_does_nothing_and_a_dry_run_does_less() -> anyhow::Result<()> {
    if !tool::ready(
        "apply::applying_twice_does_nothing_and_a_dry_run_does_less",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let file = netd
        .scratch()
        .write("lab.toml", &lab("nat", RANGE, "", ""))?;
    let file = file.to_string_lossy();
    let dry = netd.vnet(&["apply", "-f", &file, "--dry-run"])?;
    assert!(dry.contains("lab") && dry.contains("lab0"), "{dry}");
    assert!(
        world.host.ip("link show lab0").is_err(),
        "a dry run made the bridge"
    );
    assert!(!netd.vnet(&["network", "list"])?.contains("lab"));

    assert!(netd.vnet(&["apply", "-f", &file])?.contains("created"));
    let state = || {
        world
            .host
            .sh("ip -o link; ip -o addr show dev lab0 | sed 's/valid_lft.*//'; nft -a list ruleset")
    };
    let before = state()?;
    assert!(netd.vnet(&["apply", "-f", &file])?.contains("unchanged"));
    assert_eq!(state()?, before);

    // What `show` prints is a document that changes nothing.
    let shown = netd.vnet(&["network", "show", "lab", "-o", "toml"])?;
    assert!(netd.apply(&shown)?.contains("unchanged"), "{shown}");
    Ok(())
}

#[test]
fn a_folder_is_applied_whole_or_not_at_all() -> anyhow::Result<()> {
    if !tool::ready("apply::a_folder_is_applied_whole_or_not_at_all", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let folder = tests::Scratch::new("networks")?;
    let network = |number: u32, mode: &str| {
        format!(
            "name = \"n{number}\"\n[forward]\nmode = \"{mode}\"\n[[subnet]]\naddress = \"10.60.{number}.1/24\"\n"
        )
    };
    let before = netd.vnet(&["network", "list"])?;
    folder.write("1.toml", &network(1, "nat"))?;
    folder.write("2.toml", &network(1, "routed").replace("n1", "n2"))?;
    let path = folder.path().to_string_lossy().into_owned();
    let refused = netd.try_vnet(&["apply", "-f", &path])?.refused()?;
    assert!(refused.contains("10.60.1."), "they overlap: {refused}");
    assert_eq!(netd.vnet(&["network", "list"])?, before);

    folder.write("2.toml", &network(2, "routed"))?;
    netd.vnet(&["apply", "-f", &path])?;
    let names = netd.json(&["network", "list"])?;
    assert_eq!(names.as_array().map(Vec::len), Some(3), "{names}");
    Ok(())
}
