//! The DNS service with clients that nobody here wrote: `dig`, `kdig`, and dnsmasq as the upstream.

use tests::dns::{DnsHost, dig, short};
use tests::tool;
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
[[dns.host]]
ip = "10.94.1.200"
names = ["printer", "paper.example.com"]
"#;

fn ready(test: &str) -> bool {
    tool::ready(&format!("dns::{test}"), &["dig"])
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
