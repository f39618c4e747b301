//! Documents: what they mean, that they survive a round trip, and that every mistake is told with its place.

use uuid::Uuid;
use vnet_core::config::native::{NetworkDoc, from_json, from_toml};
use vnet_core::config::{Fill, Problems};
use vnet_core::model::{Forward, Network};

fn fill() -> Fill {
    Fill {
        uuid: Uuid::from_u128(7),
        bridge: "virbr7".parse().expect("a name"),
        mac: "52:54:00:00:00:07".parse().expect("a MAC"),
        subnets: vec!["192.168.122.1/24".parse().expect("a prefix")],
    }
}

fn read(text: &str) -> Result<Network, Problems> {
    let mut docs = from_toml(text)?;
    assert_eq!(docs.len(), 1);
    docs.remove(0).settle(&fill())
}

/// The places that are told wrong.
fn places(text: &str) -> Vec<String> {
    let problems = read(text).expect_err("a broken document was taken");
    for problem in &problems.0 {
        assert!(problem.rule.len() > 10, "a rule must teach: {problem}");
    }
    problems.0.into_iter().map(|p| p.at).collect()
}

const LAB: &str = r#"
name = "lab"
[bridge]
mtu = 9000
[forward]
mode = "nat"
egress = "eth0"
ports = "2000-3000"
[domain]
name = "lab.test"
[dns]
dnssec = "validate"
trust_anchors = ["corp.test. DNSKEY 257 3 13 mdsswUyr3DPW132mOi8V9xESWE8jTo0dxCjjnopKl+GqJxpVXckHAeF+KkxLbxILfDLUT0rAK9iUzy1L53eKGQ=="]
upstream = [{ address = "9.9.9.9" }, { address = "10.1.1.1:5353", domain = "corp.test" }]
[[dns.host]]
ip = "10.50.0.200"
names = ["printer", "printer.office.test"]
[[dns.record]]
name = "_http._tcp"
type = "SRV"
value = "0 5 80 web"
ttl = 300
[[subnet]]
address = "10.50.0.1/16"
[subnet.dhcp]
ranges = ["10.50.0.2-10.50.200.254"]
lease_time = "2h"
[subnet.dhcp.options]
ntp-server = ["10.50.0.3", "10.50.0.4"]
mtu = 9000
224 = "01:02"
[subnet.dhcp.boot]
tftp = "/srv/tftp"
server = "10.50.0.3"
file = "undionly.kpxe"
[[subnet.dhcp.boot.rule]]
arch = ["uefi-x64", "20"]
vendor_class = "PXEClient"
user_class = "iPXE"
file = "ipxe.efi"
[[subnet.dhcp.host]]
mac = "52:54:00:00:00:01"
ip = "10.50.0.9"
name = "web"
[[subnet]]
address = "fd00:50::1/64"
[subnet.dhcp]
mode = "both"
relays = ["fd00:50::2"]
[[subnet.dhcp.host]]
mac = "52:54:00:00:00:01"
ip = "fd00:50::9"
lease_time = "infinite"
options = { ntp-server = "fd00:50::7b" }
[ra]
interval = 30
preferred_lifetime = 3600
valid_lifetime = 4294967295
preference = "low"
[[route]]
to = "10.99.0.0/16"
via = "10.50.0.9"
[[publish]]
guest = "web"
ports = "8080:80/tcp"
"#;

#[test]
fn everything_survives_the_way_to_the_model_and_back() {
    let network = read(LAB).unwrap();
    let doc = NetworkDoc::of(&network);
    let toml = doc.to_toml().unwrap();
    assert_eq!(read(&toml).unwrap(), network, "{toml}");
    let json = serde_json::to_string(&doc).unwrap();
    assert_eq!(from_json(&json).unwrap(), vec![doc]);
}

#[test]
fn a_name_is_enough() {
    let network = read("name = \"lab\"").unwrap();
    assert!(matches!(network.forward, Forward::Nat(_)));
    assert_eq!(network.bridge.name.as_str(), "virbr7");
    let subnet = &network.subnets4[0];
    assert_eq!(subnet.address.to_string(), "192.168.122.1/24");
    let ranges = &subnet.dhcp.as_ref().unwrap().ranges;
    assert_eq!(ranges[0].range.to_string(), "192.168.122.2-192.168.122.254");
    assert!(network.autostart && network.local_only && network.dns.forward);
}

#[test]
fn isolated_does_not_ask_upstream_unless_told() {
    let base = "name = \"i\"\n[forward]\nmode = \"isolated\"\n";
    assert!(!read(base).unwrap().dns.forward);
    let told = format!("{base}[dns]\nupstream = [{{ address = \"9.9.9.9\" }}]\n");
    assert!(read(&told).unwrap().dns.forward);
}

#[test]
fn what_is_wrong_about_signatures_is_said() {
    let base = "name = \"i\"\n[dns]\n";
    for (line, place) in [
        ("dnssec = \"yes\"", "dns.dnssec: `yes` is neither"),
        (
            "trust_anchors = [\". 257 3 13 AAAA\"]",
            "dns.trust_anchors[0]: ",
        ),
    ] {
        let problems = read(&format!("{base}{line}\n")).unwrap_err().to_string();
        assert!(problems.contains(place), "{problems}");
    }
}

#[test]
fn what_is_wrong_about_upstreams_is_said() {
    let base = "name = \"i\"\n[[subnet]]\naddress = \"10.0.0.1/24\"\n[[subnet]]\naddress = \"fd00::1/64\"\n[dns]\n";
    let text = |upstream| format!("{base}upstream = [{{ address = \"{upstream}\" }}]\n");
    for upstream in [
        "10.0.0.1",
        "fd00::1",
        "0.0.0.0",
        "fe80::1",
        "ff02::fb",
        "9.9.9.9:0",
    ] {
        assert_eq!(
            places(&text(upstream)),
            ["dns.upstream[0].address"],
            "{upstream}"
        );
    }
    for upstream in ["10.0.0.1:5300", "[fe80::1%2]:53", "10.0.0.2", "::1"] {
        assert!(read(&text(upstream)).is_ok(), "{upstream}");
    }
}

#[test]
fn what_is_wrong_about_advertisements_is_said() {
    let base = "name = \"i\"\n[[subnet]]\naddress = \"fd00::1/64\"\n";
    for (ra, place) in [
        ("interval = 3", "ra.interval"),
        ("router_lifetime = 599", "ra.router_lifetime"),
        ("preferred_lifetime = 599", "ra.preferred_lifetime"),
        ("valid_lifetime = 14399", "ra.preferred_lifetime"),
        ("preference = \"most\"", "ra.preference"),
    ] {
        assert_eq!(places(&format!("{base}[ra]\n{ra}\n")), [place], "{ra}");
    }
    let small = format!("{base}[bridge]\nmtu = 1279\n");
    assert_eq!(places(&small), ["bridge.mtu"]);
}

#[test]
fn what_is_wrong_about_records_is_said() {
    let base = "name = \"i\"\ndomain.name = \"i.test\"\n[dns]\nrecord = [\n";
    for (records, at) in [
        (
            "{ name = \"a\", type = \"TXT\", value = \"x\", ttl = 604801 }",
            vec!["dns.record[0].ttl"],
        ),
        (
            "{ name = \"a\", type = \"TXT\", value = \"x\", ttl = 60 },
             { name = \"b\", type = \"TXT\", value = \"x\" },
             { name = \"a.i.test\", type = \"TXT\", value = \"y\" }",
            vec!["dns.record[2].ttl"],
        ),
        (
            "{ name = \"a\", type = \"CNAME\", value = \"b\" },
             { name = \"a\", type = \"TXT\", value = \"x\" }",
            vec!["dns.record[0]"],
        ),
        (
            "{ name = \"a\", type = \"SOA\", value = \"x\" },
             { name = \"a\", type = \"TYPE41\", value = \"\\\\# 0\" },
             { name = \"@\", type = \"A\", value = \"x\" },
             { name = \"*\", type = \"A\", value = \"10.0.0.1\" }",
            vec![
                "dns.record[0].type",
                "dns.record[1].type",
                "dns.record[2].name",
                "dns.record[2].value",
                "dns.record[3].name",
            ],
        ),
    ] {
        assert_eq!(places(&format!("{base}{records}\n]\n")), at);
    }
}

#[test]
fn ranges_go_around_a_gateway_in_the_middle() {
    let text = "name = \"m\"\n[[subnet]]\naddress = \"10.0.0.100/24\"\n[subnet.dhcp]\n";
    let network = read(text).unwrap();
    let ranges: Vec<_> = network.subnets4[0]
        .dhcp
        .as_ref()
        .unwrap()
        .ranges
        .iter()
        .map(|r| r.range.to_string())
        .collect();
    assert_eq!(ranges, ["10.0.0.1-10.0.0.99", "10.0.0.101-10.0.0.254"]);
}

#[test]
fn network_boot_and_the_edges_of_a_subnet() {
    let subnet = "name = \"a\"\n[[subnet]]\naddress = \"10.0.0.1/24\"\n[subnet.dhcp]\n";
    let wrong = |text: &str| places(&format!("{subnet}{text}"));
    let ranges = "ranges = [\"10.0.0.0-10.0.0.9\", \"10.0.0.20-10.0.0.255\"]";
    let at = "subnet[0].dhcp";
    assert_eq!(
        wrong(ranges),
        [format!("{at}.ranges[0]"), format!("{at}.ranges[1]")]
    );
    assert_eq!(wrong("boot = {}"), [format!("{at}.boot")]);
    for (text, place) in [
        ("tftp = \"srv\", file = \"a\"", "tftp"),
        ("tftp = \"/srv/../etc\", file = \"a\"", "tftp"),
        ("file = \"\"", "file"),
        ("rule = [{ file = \"a\" }]", "rule[0]"),
        (
            "rule = [{ file = \"a\", arch = [\"amiga\"] }]",
            "rule[0].arch[0]",
        ),
        ("file = \"a\", server = \"here\"", "server"),
    ] {
        let boot = format!("boot = {{ {text} }}");
        assert_eq!(wrong(&boot), [format!("{at}.boot.{place}")], "{text}");
    }
}

#[test]
fn several_networks_in_one_file() {
    let docs = from_toml("[[network]]\nname = \"a\"\n[[network]]\nname = \"b\"\n").unwrap();
    assert_eq!(
        docs.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(
        from_json("[{\"name\":\"a\"},{\"name\":\"b\"}]")
            .unwrap()
            .len(),
        2
    );
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one mistake a line")]
fn mistakes_are_told_with_their_place() {
    let subnet =
        |rest: &str| format!("name = \"x\"\n[[subnet]]\naddress = \"10.0.0.1/24\"\n{rest}");
    for (text, at) in [
        ("name = \"../x\"".to_owned(), "name"),
        (
            "name = \"x\"\n[bridge]\nname = \"sixteen-bytes-xx\"".to_owned(),
            "bridge.name",
        ),
        (
            "name = \"x\"\n[bridge]\nmac = \"01:00:00:00:00:00\"".to_owned(),
            "bridge.mac",
        ),
        ("name = \"x\"\n[bridge]\nmtu = 100".to_owned(), "bridge.mtu"),
        (
            "name = \"x\"\n[forward]\nmode = \"route\"".to_owned(),
            "forward.mode",
        ),
        (
            "name = \"x\"\n[forward]\nmode = \"isolated\"\negress = \"eth0\"".to_owned(),
            "forward.egress",
        ),
        (
            "name = \"x\"\n[forward]\nmode = \"nat\"\nports = \"9-1\"".to_owned(),
            "forward.ports",
        ),
        (
            "name = \"x\"\n[[subnet]]\naddress = \"10.0.0.0/24\"".to_owned(),
            "subnet[0].address",
        ),
        (
            "name = \"x\"\n[[subnet]]\naddress = \"10.0.0.1/31\"".to_owned(),
            "subnet[0].address",
        ),
        (
            "name = \"x\"\n[[subnet]]\naddress = \"127.0.0.1/8\"".to_owned(),
            "subnet[0].address",
        ),
        (
            "name = \"x\"\n[[subnet]]\naddress = \"fe80::1/64\"".to_owned(),
            "subnet[0].address",
        ),
        (
            subnet("[subnet.dhcp]\nranges = [\"10.0.1.2-10.0.1.9\"]"),
            "subnet[0].dhcp.ranges[0]",
        ),
        (
            subnet("[subnet.dhcp]\nranges = [\"10.0.0.2-10.0.0.9\", \"10.0.0.9-10.0.0.12\"]"),
            "subnet[0].dhcp.ranges[1]",
        ),
        (
            subnet("[subnet.dhcp]\nlease_time = \"1s\""),
            "subnet[0].dhcp.lease_time",
        ),
        (
            subnet("[subnet.dhcp.options]\nnonsense = 1"),
            "subnet[0].dhcp.options.nonsense",
        ),
        (
            subnet("[[subnet.dhcp.host]]\nname = \"a\"\nip = \"10.0.0.1\""),
            "subnet[0].dhcp.host[0].ip",
        ),
        (
            subnet("[[subnet.dhcp.host]]\nip = \"10.0.0.9\""),
            "subnet[0].dhcp.host[0]",
        ),
        (
            subnet(
                "[[subnet.dhcp.host]]\nname = \"a\"\n[[subnet.dhcp.host]]\nname = \"a\"\nip = \"10.0.0.9\"",
            ),
            "subnet[0].dhcp.host[1].name",
        ),
        (subnet("[[subnet]]\naddress = \"10.0.0.129/25\""), "subnet"),
        (
            "name = \"x\"\n[[subnet]]\naddress = \"fd00::1/64\"\ndhcp.lease_time = \"2h\"".to_owned(),
            "subnet[0].dhcp.lease_time",
        ),
        (
            "name = \"x\"\n[[subnet]]\naddress = \"fd00::1/64\"\ndhcp.mode = \"stateless\"\n\
             [[subnet.dhcp.host]]\nip = \"fd00::9\"\nmac = \"52:54:00:00:00:09\"\nlease_time = \"2h\""
                .to_owned(),
            "subnet[0].dhcp.host[0].lease_time",
        ),
        (
            subnet("[[route]]\nto = \"10.9.0.0/16\"\nvia = \"10.9.0.1\""),
            "route[0].via",
        ),
        (
            subnet("[[publish]]\nguest = \"10.9.0.1\"\nports = \"80:80\""),
            "publish[0].guest",
        ),
        (
            subnet("[[publish]]\nguest = \"web\"\nports = \"80\""),
            "publish[0].ports",
        ),
        (
            subnet("[[dns.host]]\nip = \"x\"\nnames = [\"a\"]"),
            "dns.host[0].ip",
        ),
        (
            "name = \"x\"\n[forward]\nmode = \"bridge\"".to_owned(),
            "bridge.name",
        ),
    ] {
        let told = places(&text);
        assert!(
            told.iter().any(|place| place == at),
            "{text}\nwanted {at}, told {told:?}"
        );
    }
}

#[test]
fn a_reservation_is_for_one_guest_and_of_one_address() {
    let hosts = |address: &str, hosts: &str| {
        places(&format!(
            "name = \"x\"\n[[subnet]]\naddress = \"{address}\"\n[subnet.dhcp]\n{hosts}"
        ))
    };
    for (address, field, first, second) in [
        (
            "10.0.0.1/24",
            "ip",
            "mac = \"52:54:00:00:00:01\", ip = \"10.0.0.9\"",
            "mac = \"52:54:00:00:00:02\", ip = \"10.0.0.9\"",
        ),
        (
            "10.0.0.1/24",
            "mac",
            "mac = \"52:54:00:00:00:01\", ip = \"10.0.0.8\"",
            "mac = \"52:54:00:00:00:01\", ip = \"10.0.0.9\"",
        ),
        (
            "fd00::1/64",
            "ip",
            "mac = \"52:54:00:00:00:01\", ip = \"fd00::9\"",
            "duid = \"00:03:00:01\", ip = \"fd00::9\"",
        ),
        (
            "fd00::1/64",
            "mac",
            "mac = \"52:54:00:00:00:01\", ip = \"fd00::8\"",
            "mac = \"52:54:00:00:00:01\", ip = \"fd00::9\"",
        ),
        (
            "fd00::1/64",
            "duid",
            "duid = \"00:03:00:01\", ip = \"fd00::8\"",
            "duid = \"00:03:00:01\", ip = \"fd00::9\"",
        ),
    ] {
        let both = format!("host = [{{ {first} }}, {{ {second} }}]");
        let wanted = format!("subnet[0].dhcp.host[1].{field}");
        assert_eq!(hosts(address, &both), [wanted], "{both}");
    }
    // A guest may have one of each subnet.
    let two = "name = \"x\"\n[[subnet]]\naddress = \"fd00:1::1/64\"\n\
               dhcp.host = [{ mac = \"52:54:00:00:00:01\", ip = \"fd00:1::9\" }]\n\
               [[subnet]]\naddress = \"fd00:2::1/64\"\n\
               dhcp.host = [{ mac = \"52:54:00:00:00:01\", ip = \"fd00:2::9\" }]\n";
    assert!(read(two).is_ok());
}

#[test]
fn what_the_server_says_itself_is_no_option() {
    let base = "name = \"x\"\n[[subnet]]\naddress = \"10.0.0.1/24\"\n[subnet.dhcp]\n";
    for code in [51, 61, 80, 81, 82, 97, 118] {
        let option = format!("{base}options = {{ {code} = \"00\" }}");
        assert_eq!(places(&option), [format!("subnet[0].dhcp.options.{code}")]);
        let always = format!("{base}always = [\"{code}\"]");
        assert_eq!(places(&always), ["subnet[0].dhcp.always[0]"]);
    }
}

#[test]
fn ranges_of_ipv6_are_apart_and_for_leases() {
    let with = |mode: &str, ranges: &str| {
        format!(
            "name = \"x\"\n[[subnet]]\naddress = \"fd00::1/64\"\n\
             dhcp = {{ mode = \"{mode}\", ranges = [{ranges}] }}\n"
        )
    };
    let apart = "\"fd00::10-fd00::1f\", \"fd00::20-fd00::2f\"";
    for mode in ["stateful", "both"] {
        assert!(read(&with(mode, apart)).is_ok());
    }
    for second in ["fd00::1f-fd00::2f", "fd00::12", "fd00::2-fd00::ff"] {
        let both = format!("\"fd00::10-fd00::1f\", \"{second}\"");
        let told = places(&with("stateful", &both));
        assert_eq!(told, ["subnet[0].dhcp.ranges[1]"], "{both}");
    }
    for mode in ["slaac", "stateless"] {
        assert_eq!(places(&with(mode, apart)), ["subnet[0].dhcp.ranges"]);
        assert!(read(&with(mode, "")).is_ok());
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "name = \"/\"\nhost_access = \"some\"\n[forward]\nmode = \"nat\"\nports = \"x\"\n";
    assert_eq!(places(text), ["name", "forward.ports", "host_access"]);
}

#[test]
fn a_broken_text_is_told_by_line() {
    let at = |text: &str| from_toml(text).unwrap_err().0.remove(0);
    assert_eq!(at("name = \"x\"\nnmae = \"y\"\n").at, "line 2, column 1");
    assert_eq!(
        at("name = \"x\"\n[bridge\n").at.split(',').next(),
        Some("line 2")
    );
    let json = from_json("{\"name\":\"x\",\"subnet\":[{\"address\":5}]}").unwrap_err();
    assert_eq!(json.0[0].at, "subnet[0].address");
}
