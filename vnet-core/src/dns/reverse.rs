//! Names of addresses: `in-addr.arpa` (RFC 1035 section 3.5) and `ip6.arpa` (RFC 3596 section 2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[cfg(test)]
use super::wire::NameBuf;
use super::wire::{labels, parent};
use crate::types::{IpNet, Ipv4Net, Ipv6Net};

/// The network that a reverse name stands for: complete for a whole address, wider for the zones above. `None` for
/// names outside the reverse trees, and for such in them that stand for nothing.
pub(super) fn network_of(name: &[u8]) -> Option<IpNet> {
    const V4: &[u8] = b"\x07in-addr\x04arpa\0";
    const V6: &[u8] = b"\x03ip6\x04arpa\0";
    if let Some(front) = name.strip_suffix(V4) {
        let mut octets = [0u8; 4];
        let count = read(front, &mut octets, octet)?;
        return IpNet::new(Ipv4Addr::from(octets).into(), 8 * count).ok();
    }
    let front = name.strip_suffix(V6)?;
    let mut nibbles = [0u8; 32];
    let count = read(front, &mut nibbles, nibble)?;
    let bits = nibbles
        .iter()
        .fold(0u128, |acc, n| acc << 4 | u128::from(*n));
    IpNet::new(Ipv6Addr::from(bits).into(), 4 * count).ok()
}

/// The longest end of a name that stands for something, and where in the name it begins: `lb._dns-sd._udp.0.1.94.10`
/// is about 10.94.1.0. `None` outside the reverse trees, and for their heads.
pub(super) fn closest(name: &[u8]) -> Option<(IpNet, usize)> {
    const TREES: [&[u8]; 2] = [b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"];
    if !TREES.iter().any(|tree| name.ends_with(tree)) {
        return None;
    }
    let mut rest = Some(name);
    while let Some(part) = rest {
        if let Some(network) = network_of(part) {
            let offset = name.len() - part.len();
            return (network.prefix_len() > 0).then_some((network, offset));
        }
        rest = parent(part);
    }
    None
}

/// The address whose whole name this is.
pub(super) fn address_of(name: &[u8]) -> Option<IpAddr> {
    let (part, offset) = closest(name)?;
    let whole = offset == 0 && part.prefix_len() == part.max_prefix_len();
    whole.then(|| part.addr())
}

/// The last labels of a name, or all of it.
pub(super) fn suffix(name: &[u8], kept: usize) -> &[u8] {
    let dropped = labels(name).count().saturating_sub(kept);
    let offset: usize = labels(name).take(dropped).map(|l| l.len() + 1).sum();
    &name[offset..]
}

/// Whose addresses an empty zone is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Empty {
    /// Private networks: somebody may have names for them.
    Private,
    /// Nobody's.
    Nobody,
}

/// The networks whose names every resolver answers for, empty (RFC 6303 section 4, RFC 7793).
const EMPTY: [(IpNet, Empty); 16] = [
    v4([10, 0, 0, 0], 8, Empty::Private),
    v4([100, 64, 0, 0], 10, Empty::Private),
    v4([172, 16, 0, 0], 12, Empty::Private),
    v4([192, 168, 0, 0], 16, Empty::Private),
    v4([0, 0, 0, 0], 8, Empty::Nobody),
    v4([127, 0, 0, 0], 8, Empty::Nobody),
    v4([169, 254, 0, 0], 16, Empty::Nobody),
    v4([192, 0, 2, 0], 24, Empty::Nobody),
    v4([198, 51, 100, 0], 24, Empty::Nobody),
    v4([203, 0, 113, 0], 24, Empty::Nobody),
    v4([255, 255, 255, 255], 32, Empty::Nobody),
    v6([0xfd00, 0], 0, 8, Empty::Private),
    v6([0, 0], 0, 128, Empty::Nobody),
    v6([0, 0], 1, 128, Empty::Nobody),
    v6([0xfe80, 0], 0, 10, Empty::Nobody),
    v6([0x2001, 0xdb8], 0, 32, Empty::Nobody),
];

const fn v4(octets: [u8; 4], bits: u8, empty: Empty) -> (IpNet, Empty) {
    let [a, b, c, d] = octets;
    let network = Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits);
    (IpNet::V4(network), empty)
}

const fn v6(first: [u16; 2], last: u16, bits: u8, empty: Empty) -> (IpNet, Empty) {
    let address = Ipv6Addr::new(first[0], first[1], 0, 0, 0, 0, 0, last);
    (IpNet::V6(Ipv6Net::new_assert(address, bits)), empty)
}

/// The empty zone that a part of the reverse trees lies in: rounded to whole labels, it is one of several that the
/// network has.
pub(super) fn empty_zone(part: &IpNet) -> Option<(IpNet, Empty)> {
    let holds =
        |zone: &IpNet| zone.contains(&part.network()) && zone_labels(part) >= zone_labels(zone);
    EMPTY.iter().find(|(zone, _)| holds(zone)).copied()
}

/// The name by which an address is asked about, as text.
#[must_use]
pub fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = (0..32).map(|i| format!("{:x}.", u128::from(v6) >> (4 * i) & 15));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    }
}

/// The name of a subnet's own zone, if the subnet ends between labels.
pub(super) fn zone_of(subnet: &IpNet) -> Option<String> {
    let bits = usize::from(subnet.prefix_len());
    match subnet {
        IpNet::V4(v4) if bits >= 8 && bits % 8 == 0 => {
            let octets = v4.network().octets();
            let labels = octets[..bits / 8].iter().rev().map(|o| format!("{o}."));
            Some(labels.collect::<String>() + "in-addr.arpa")
        }
        IpNet::V6(v6) if bits >= 4 && bits % 4 == 0 => {
            let whole = u128::from(v6.network());
            let nibbles = (32 - bits / 4..32).map(|i| format!("{:x}.", whole >> (4 * i) & 15));
            Some(nibbles.collect::<String>() + "ip6.arpa")
        }
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// How many labels the zone of a subnet has in front of the tree's own: rounded up to whole labels, so that a /26 never
/// claims the /24 around it.
pub(super) fn zone_labels(subnet: &IpNet) -> usize {
    let bits = usize::from(subnet.prefix_len());
    match subnet {
        IpNet::V4(_) => bits.div_ceil(8),
        IpNet::V6(_) => bits.div_ceil(4),
    }
}

/// Reads the labels before the tree's own name, last label first.
fn read(front: &[u8], parts: &mut [u8], part: fn(&[u8]) -> Option<u8>) -> Option<u8> {
    let count = labels(front).count();
    if count > parts.len() {
        return None;
    }
    for (i, label) in labels(front).enumerate() {
        parts[count - 1 - i] = part(label)?;
    }
    u8::try_from(count).ok()
}

fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

fn nibble(label: &[u8]) -> Option<u8> {
    let [digit] = label else { return None };
    let value = char::from(*digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Option<String> {
        network_of(NameBuf::from_text(text)?.as_bytes()).map(|n| n.to_string())
    }

    #[test]
    fn names_of_addresses() {
        for text in ["10.20.30.4", "fd00::1:2", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            let name = NameBuf::from_text(&reverse_name(address)).unwrap();
            let net = network_of(name.as_bytes()).unwrap();
            assert_eq!(
                (net.addr(), net.prefix_len()),
                (address, net.max_prefix_len())
            );
        }
    }

    #[test]
    fn parts_of_addresses_and_what_is_none() {
        assert_eq!(
            network("122.168.192.in-addr.arpa").as_deref(),
            Some("192.168.122.0/24")
        );
        assert_eq!(network("in-addr.arpa").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(network("0.0.d.f.ip6.arpa").as_deref(), Some("fd00::/16"));
        for bad in [
            "256.in-addr.arpa",
            "01.in-addr.arpa",
            "x.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "10.ip6.arpa",
            "lab.test",
        ] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }

    #[test]
    fn zones_of_subnets() {
        for (subnet, zone) in [
            ("10.94.1.0/24", Some("1.94.10.in-addr.arpa")),
            ("172.16.0.0/12", None),
            ("10.94.1.64/26", None),
            (
                "fd94:1::/64",
                Some("0.0.0.0.0.0.0.0.1.0.0.0.4.9.d.f.ip6.arpa"),
            ),
        ] {
            let net: IpNet = subnet.parse().unwrap();
            let named = zone_of(&net);
            assert_eq!(named.as_deref(), zone);
            if let Some(named) = named {
                assert_eq!(network(&named), Some(net.to_string()));
            }
        }
    }

    #[test]
    fn a_subnet_between_labels_claims_only_what_is_its_own() {
        let labels = |text: &str| zone_labels(&text.parse().unwrap());
        assert_eq!(
            [
                labels("10.0.0.0/8"),
                labels("10.0.0.0/24"),
                labels("10.0.0.0/26")
            ],
            [1, 3, 4]
        );
        assert_eq!([labels("fd00::/64"), labels("fd00::/65")], [16, 17]);
    }
}
