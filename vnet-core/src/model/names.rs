//! Names that no guest has by its own word. DHCP gives none of them and DNS neither, or the one would promise what the
//! other refuses, and whoever reads the leases would take a guest for what it is not.

use hickory_proto::rr::RecordType;

use super::{Network, World};
use crate::types::{DomainName, PortName};

/// Names that programs look up and obey (VU#598349: web proxy discovery, IPv6 tunnels) or hold for themselves (RFC 6761
/// section 6.3).
pub(crate) const HARMFUL: [&str; 3] = ["isatap", "localhost", "wpad"];

/// What the gateway is called in every domain.
pub(crate) const GATEWAY: [&str; 2] = ["gateway", "_gateway"];

impl World {
    /// The names in a network's domain that are no guest's to choose: those above, the host's own, and those that the
    /// document gives an address or an alias.
    pub fn withheld(&self, network: &Network) -> impl Iterator<Item = PortName> {
        let fixed = HARMFUL.iter().chain(&GATEWAY);
        let fixed = fixed.filter_map(|name| name.parse().ok());
        fixed.chain(self.host.clone()).chain(network.documented())
    }
}

impl Network {
    /// The labels in its domain that the document gives an address or an alias.
    fn documented(&self) -> impl Iterator<Item = PortName> {
        let hosts = self.dns.hosts.iter().flat_map(|host| &host.names);
        let claims = |code: u16| {
            let claiming = [RecordType::A, RecordType::AAAA, RecordType::CNAME];
            claiming.contains(&code.into())
        };
        let records = self.dns.records.iter();
        let records = records.filter(move |r| !r.name.wildcard && claims(r.data.code()));
        let names = hosts.chain(records.map(|record| &record.name.name));
        names.filter_map(|name| self.label(name))
    }

    /// A name directly in its domain, or a plain one, as a label.
    fn label(&self, name: &DomainName) -> Option<PortName> {
        let domain = self.domain.as_ref();
        let inner = domain.and_then(|d| name.as_str().strip_suffix(d.as_str())?.strip_suffix('.'));
        inner.unwrap_or(name.as_str()).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::config::{Fill, native};

    #[test]
    fn what_the_document_gives_is_no_guests() {
        let document = r#"
name = "lab"
domain.name = "lab.test"
subnet = [{ address = "10.0.0.1/24" }]
[dns]
host = [{ ip = "10.0.0.8", names = ["printer", "scanner.lab.test", "web.example.org", "a.b.lab.test"] }]
[[dns.record]]
name = "alias"
type = "CNAME"
value = "printer"
[[dns.record]]
name = "mail"
type = "MX"
value = "10 elsewhere"
[[dns.record]]
name = "*.apps"
type = "A"
value = "10.0.0.9"
"#;
        let fill = Fill {
            uuid: Uuid::nil(),
            bridge: "br0".parse().unwrap(),
            mac: crate::types::Mac([2; 6]),
            subnets: Vec::new(),
        };
        let network = native::from_toml(document).unwrap()[0]
            .settle(&fill)
            .unwrap();
        let world = World {
            host: Some("box".parse().unwrap()),
            ..World::default()
        };
        let names: Vec<String> = world.withheld(&network).map(|n| n.to_string()).collect();
        let wanted = ["box", "printer", "scanner", "alias"];
        assert!(names.ends_with(&wanted.map(str::to_owned)), "{names:?}");
        assert!(names.contains(&"wpad".to_owned()) && names.contains(&"_gateway".to_owned()));
    }
}
