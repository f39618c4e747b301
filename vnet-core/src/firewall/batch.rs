//! A change of some elements as the message that nf_tables itself takes: one batch, all or nothing.
//!
//! Tables, chains, rules and whole sets go as JSON through `nft`, which knows all of its language. A port is a dozen
//! elements of sets that are there already, and for those the kernel's own form is shorter than starting a program. What
//! is not here (prefixes, and changes of thousands of elements) goes by `nft` as well.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Atom, Change, Column, Element, ElementChange, SetName, Table};
use crate::model::Protocol;
use crate::types::IfName;

/// The elements of one message are one attribute, whose length is 16 bits; more than this many fit.
const MOST: usize = 400;
/// Messages of one batch; with [`MOST`], what a socket takes at once by default is not reached.
const MESSAGES: usize = 64;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`
const NF_TABLES: u16 = 10;
const NEW_ELEMENTS: u16 = NF_TABLES << 8 | 12;
const DELETE_ELEMENTS: u16 = NF_TABLES << 8 | 14;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const CREATE: u16 = 0x400;

/// `NFTA_SET_ELEM_LIST_TABLE`
const LIST_TABLE: u16 = 1;
/// `NFTA_SET_ELEM_LIST_SET`
const LIST_SET: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`
const LIST_ELEMENTS: u16 = 3;
/// `NFTA_LIST_ELEM`
const ELEMENT: u16 = 1;
/// `NFTA_SET_ELEM_KEY`
const KEY: u16 = 1;
/// `NFTA_SET_ELEM_DATA`
const DATA: u16 = 2;
/// `NFTA_DATA_VALUE`
const VALUE: u16 = 1;
/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// `IFNAMSIZ`: a name is filled up to it.
const NAME: usize = 16;

/// A batch, ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The bytes for a netfilter netlink socket.
    pub bytes: Vec<u8>,
    /// How many acknowledgements will come if all goes well.
    pub acknowledged: usize,
}

/// The batch that makes this change; `None` when it takes `nft`.
#[must_use]
pub fn batch(change: &Change) -> Option<Batch> {
    let Change::Elements(changes) = change else {
        return None;
    };
    let gone = changes.iter().filter(|c| !c.remove.is_empty());
    let come = changes.iter().filter(|c| !c.add.is_empty());
    if gone.clone().count() + come.clone().count() > MESSAGES || !changes.iter().all(is_plain) {
        return None;
    }
    let mut writer = Writer {
        bytes: Vec::with_capacity(2048),
    };
    let mut acknowledged = 0;
    writer.edge(BATCH_BEGIN);
    for change in gone {
        writer.elements(DELETE_ELEMENTS, 0, change.set, &change.remove);
        acknowledged += 1;
    }
    for change in come {
        writer.elements(NEW_ELEMENTS, CREATE, change.set, &change.add);
        acknowledged += 1;
    }
    writer.edge(BATCH_END);
    Some(Batch {
        bytes: writer.bytes,
        acknowledged,
    })
}

/// Whether the elements are single values, and few enough for one message.
fn is_plain(change: &ElementChange) -> bool {
    !change.set.spec().interval() && change.add.len().max(change.remove.len()) <= MOST
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// The messages that begin and end a batch.
    fn edge(&mut self, kind: u16) {
        self.message(kind, 0, 0, NF_TABLES, |_| {});
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: SetName,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let spec = set.spec();
        let family = match spec.table {
            Table::Inet => 1,
            Table::Bridge => 7,
        };
        self.message(kind, ACKNOWLEDGE | flags, family, 0, |w| {
            w.text(LIST_TABLE, Table::NAME);
            w.text(LIST_SET, &set.name());
            w.nested(LIST_ELEMENTS, |w| {
                for element in elements {
                    w.nested(ELEMENT, |w| w.element(spec.key, element));
                }
            });
        });
    }

    /// The columns of a key of several lie in registers of four bytes each.
    fn element(&mut self, columns: &[Column], element: &Element) {
        self.nested(KEY, |w| {
            w.attribute(VALUE, |w| {
                for atom in element.key.iter() {
                    w.atom(atom);
                    if columns.len() > 1 {
                        w.pad();
                    }
                }
            });
        });
        if let Some(value) = &element.value {
            self.nested(DATA, |w| w.attribute(VALUE, |w| w.atom(value)));
        }
    }

    fn atom(&mut self, atom: &Atom) {
        match atom {
            Atom::Interface(name) => self.name(name),
            Atom::Mac(mac) => self.bytes.extend(mac.octets()),
            Atom::Ip4(address) => self.ip4(*address),
            Atom::Net4(net) => self.ip4(net.addr()),
            Atom::Ip6(address) => self.ip6(*address),
            Atom::Net6(net) => self.ip6(net.addr()),
            Atom::Protocol(Protocol::Tcp) => self.bytes.push(6),
            Atom::Protocol(Protocol::Udp) => self.bytes.push(17),
            Atom::Port(port) => self.bytes.extend(port.to_be_bytes()),
            // The one column that the kernel has in its own byte order.
            Atom::Mark(mark) => self.bytes.extend(mark.to_ne_bytes()),
        }
    }

    fn ip4(&mut self, address: Ipv4Addr) {
        self.bytes.extend(address.octets());
    }

    fn ip6(&mut self, address: Ipv6Addr) {
        self.bytes.extend(address.octets());
    }

    fn name(&mut self, name: &IfName) {
        let end = self.bytes.len() + NAME;
        self.bytes.extend(name.as_str().as_bytes());
        self.bytes.resize(end, 0);
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |w| {
            w.bytes.extend(text.as_bytes());
            w.bytes.push(0);
        });
    }

    fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, inside);
    }

    fn attribute(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        inside(self);
        // Few enough elements never reach 16 bits; if they did, the kernel would refuse the batch.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// netlink's header, nfnetlink's, and what is inside.
    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        inside: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        // Sequence and sender: a batch is alone on its socket.
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        inside(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Key;
    use super::*;

    fn change(set: SetName, atoms: &[&[Atom]]) -> ElementChange {
        let element = |atoms: &&[Atom]| Element {
            key: Key::new(atoms).unwrap(),
            value: None,
        };
        ElementChange {
            set,
            remove: BTreeSet::new(),
            add: atoms.iter().map(element).collect(),
        }
    }

    /// Byte for byte; that the kernel takes it, and `nft` reads back what was meant, is for the tests with a kernel.
    #[test]
    fn a_mac_of_a_port() {
        let name: IfName = "p1".parse().unwrap();
        let mac = "52:54:00:00:00:01".parse().unwrap();
        let atoms = [Atom::Interface(name), Atom::Mac(mac)];
        let change = Change::Elements(vec![change(SetName::PortMac, &[&atoms])]);
        let batch = batch(&change).unwrap();
        assert_eq!(batch.acknowledged, 1);
        let value = [b"p1".as_slice(), &[0; 14], &[0x52, 0x54, 0, 0, 0, 1, 0, 0]].concat();
        let at = batch.bytes.windows(value.len()).position(|w| w == value);
        // Its own header, and those of key, element and list around it.
        let at = at.unwrap();
        let header = |back: usize| {
            let bytes = &batch.bytes[at - back..];
            let number = |i: usize| u16::from_ne_bytes([bytes[i], bytes[i + 1]]);
            (number(0), number(2))
        };
        assert_eq!(header(4), (28, VALUE));
        assert_eq!(header(8), (32, KEY | NESTED));
        assert_eq!(header(12), (36, ELEMENT | NESTED));
        assert_eq!(header(16), (40, LIST_ELEMENTS | NESTED));
        assert_eq!(batch.bytes.len() % 4, 0);
        assert_eq!(batch.bytes[4..6], BATCH_BEGIN.to_ne_bytes());
    }

    #[test]
    fn what_takes_nft() {
        assert_eq!(batch(&Change::None), None);
        let bridge: IfName = "virbr0".parse().unwrap();
        let net: crate::types::Ipv4Net = "10.0.0.0/8".parse().unwrap();
        let atoms = [Atom::Interface(bridge), Atom::from(net)];
        let prefixes = Change::Elements(vec![change(SetName::Source4, &[&atoms])]);
        assert_eq!(batch(&prefixes), None);
        let many: Vec<[Atom; 1]> = (0..=u32::try_from(MOST).unwrap())
            .map(|n| [Atom::Ip4(n.into())])
            .collect();
        let many: Vec<&[Atom]> = many.iter().map(<[Atom; 1]>::as_slice).collect();
        let fits = Change::Elements(vec![change(SetName::Owned4, &many[1..])]);
        assert!(batch(&fits).is_some());
        let many = Change::Elements(vec![change(SetName::Owned4, &many)]);
        assert_eq!(batch(&many), None);
    }
}
