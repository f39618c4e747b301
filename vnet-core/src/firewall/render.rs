//! A change as the JSON that `nft -j -f -` takes, through the types of the `nftables` crate: one transaction.
//!
//! Only writing: those types cannot read back all that nft prints, so `read` takes plain JSON values.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, JHash, Map, Meta, MetaKey, NamedExpression, Payload,
    PayloadBase, PayloadField, PayloadRaw, Prefix, Range, SetItem,
};
use nftables::schema::{self, NfCmd, NfListObject, NfObject, Nftables, SetFlag, SetType};
use nftables::stmt::{
    self, JumpTarget, Match, NAT, NATFamily, Operator, Reject, RejectType, Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};

use super::rule::{TARGET_MODULUS, TARGET_SEED};
use super::{
    Action, At, Atom, Change, Column, Element, ElementChange, Field, Place, Rule, Ruleset, SetName,
    Table, Test, Value, With,
};
use crate::types::Range4;

/// What `nft -j -f -` reads; `None` when there is nothing to do.
#[must_use]
pub fn render(change: &Change) -> Option<Nftables<'static>> {
    let commands = match change {
        Change::None => return None,
        Change::Elements(changes) => elements(changes),
        Change::Whole(desired) => whole(desired),
    };
    let objects: Vec<_> = commands.into_iter().map(NfObject::CmdObject).collect();
    (!objects.is_empty()).then_some(Nftables {
        objects: Cow::Owned(objects),
    })
}

fn elements(changes: &[ElementChange]) -> Vec<NfCmd<'static>> {
    let gone = changes.iter().filter(|c| !c.remove.is_empty());
    let gone = gone.map(|c| NfCmd::Delete(element_object(c.set, &c.remove)));
    let come = changes.iter().filter(|c| !c.add.is_empty());
    let come = come.map(|c| NfCmd::Add(element_object(c.set, &c.add)));
    gone.chain(come).collect()
}

/// Adding before deleting makes deleting what may not be there valid; all of it happens at once or not at all.
fn whole(desired: &Ruleset) -> Vec<NfCmd<'static>> {
    let mut all = Vec::new();
    for table in Table::ALL {
        all.push(NfCmd::Add(table_object(table)));
        all.push(NfCmd::Delete(table_object(table)));
    }
    if desired.is_absent() {
        return all;
    }
    all.extend(Table::ALL.map(|table| NfCmd::Add(table_object(table))));
    all.extend(
        desired
            .sets()
            .map(|(set, elements)| NfCmd::Add(set_object(set, elements))),
    );
    let chains = desired.chains();
    all.extend(chains.iter().map(|chain| NfCmd::Add(chain_object(chain))));
    for chain in &chains {
        let rules = chain.rules.iter();
        all.extend(rules.map(|rule| NfCmd::Add(rule_object(chain.table, chain.name, rule))));
    }
    all
}

const fn family(table: Table) -> NfFamily {
    match table {
        Table::Inet => NfFamily::INet,
        Table::Bridge => NfFamily::Bridge,
    }
}

fn table_object(table: Table) -> NfListObject<'static> {
    NfListObject::Table(schema::Table {
        family: family(table),
        name: Table::NAME.into(),
        handle: None,
    })
}

fn chain_object(chain: &super::Chain) -> NfListObject<'static> {
    let hook = chain.hook;
    NfListObject::Chain(schema::Chain {
        family: family(chain.table),
        table: Table::NAME.into(),
        name: chain.name.into(),
        _type: hook.map(|h| match h.nat {
            true => NfChainType::NAT,
            false => NfChainType::Filter,
        }),
        hook: hook.map(|h| match h.at {
            At::Prerouting => NfHook::Prerouting,
            At::Input => NfHook::Input,
            At::Forward => NfHook::Forward,
            At::Output => NfHook::Output,
            At::Postrouting => NfHook::Postrouting,
        }),
        prio: hook.map(|h| h.priority),
        policy: hook.map(|_| NfChainPolicy::Accept),
        ..schema::Chain::default()
    })
}

fn rule_object(table: Table, chain: &'static str, rule: &Rule) -> NfListObject<'static> {
    let tests = rule.tests.iter().map(test);
    let statements: Vec<_> = tests.chain([action(rule.action)]).collect();
    NfListObject::Rule(schema::Rule {
        family: family(table),
        table: Table::NAME.into(),
        chain: chain.into(),
        expr: Cow::Owned(statements),
        comment: Some(rule.tag().into()),
        ..schema::Rule::default()
    })
}

fn column(column: Column) -> SetType {
    match column {
        Column::Interface => SetType::Ifname,
        Column::Mac => SetType::EtherAddr,
        Column::Ip4 | Column::Net4 => SetType::Ipv4Addr,
        Column::Ip6 | Column::Net6 => SetType::Ipv6Addr,
        Column::Protocol => SetType::InetProto,
        Column::Port => SetType::InetService,
        Column::Mark => SetType::Mark,
    }
}

fn set_object(set: SetName, elements: &BTreeSet<Element>) -> NfListObject<'static> {
    let spec = set.spec();
    let key: Vec<_> = spec.key.iter().map(|c| column(*c)).collect();
    let set_type = match &key[..] {
        [one] => schema::SetTypeValue::Single(*one),
        _ => schema::SetTypeValue::Concatenated(Cow::Owned(key)),
    };
    let flags = spec.interval().then(|| HashSet::from([SetFlag::Interval]));
    let elem = (!elements.is_empty()).then(|| elements.iter().map(element).collect());
    let name: Cow<'static, str> = set.name();
    match spec.value {
        Some(value) => NfListObject::Map(Box::new(schema::Map {
            family: family(spec.table),
            table: Table::NAME.into(),
            name,
            set_type,
            map: schema::SetTypeValue::Single(column(value)),
            flags,
            elem,
            ..schema::Map::default()
        })),
        None => NfListObject::Set(Box::new(schema::Set {
            family: family(spec.table),
            table: Table::NAME.into(),
            name,
            set_type,
            flags,
            elem,
            ..schema::Set::default()
        })),
    }
}

fn element_object(set: SetName, elements: &BTreeSet<Element>) -> NfListObject<'static> {
    NfListObject::Element(schema::Element {
        family: family(set.spec().table),
        table: Table::NAME.into(),
        name: set.name(),
        elem: elements.iter().map(element).collect(),
    })
}

fn element(element: &Element) -> Expression<'static> {
    let mut atoms: Vec<_> = element.key.iter().map(atom).collect();
    let key = match atoms.len() {
        1 => atoms.remove(0),
        _ => Expression::Named(NamedExpression::Concat(atoms)),
    };
    match &element.value {
        Some(value) => Expression::List(vec![key, atom(value)]),
        None => key,
    }
}

fn text(value: impl ToString) -> Expression<'static> {
    Expression::String(value.to_string().into())
}

fn prefix(address: impl ToString, len: u8) -> Expression<'static> {
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(text(address)),
        len: len.into(),
    }))
}

fn atom(atom: &Atom) -> Expression<'static> {
    match atom {
        Atom::Interface(name) => text(name),
        Atom::Mac(mac) => text(mac),
        Atom::Ip4(address) => text(address),
        Atom::Net4(net) if net.prefix_len() == 32 => text(net.addr()),
        Atom::Net4(net) => prefix(net.addr(), net.prefix_len()),
        Atom::Ip6(address) => text(address),
        Atom::Net6(net) if net.prefix_len() == 128 => text(net.addr()),
        Atom::Net6(net) => prefix(net.addr(), net.prefix_len()),
        Atom::Protocol(protocol) => text(protocol),
        Atom::Port(port) => Expression::Number((*port).into()),
        Atom::Mark(mark) => Expression::Number(*mark),
    }
}

fn value(value: &Value) -> Expression<'static> {
    match value {
        Value::Word(word) => Expression::String(Cow::Borrowed(word)),
        Value::Number(number) => Expression::Number((*number).into()),
        Value::Prefix(address, length) => prefix(address, *length),
    }
}

fn test(test: &Test) -> Statement<'static> {
    let right = match &test.with {
        With::Set(set) => text(format!("@{}", set.name())),
        With::Values(values) => match &values[..] {
            [one] => value(one),
            _ => {
                let items = values.iter().map(value).map(SetItem::Element);
                Expression::Named(NamedExpression::Set(items.collect()))
            }
        },
    };
    // A word of a bit field is one of the bits that may be set.
    let bits = matches!(test.fields[..], [Field::CtState | Field::CtStatus]);
    let op = match (test.not, bits) {
        (true, _) => Operator::NEQ,
        (false, true) => Operator::IN,
        (false, false) => Operator::EQ,
    };
    Statement::Match(Match {
        left: together(&test.fields),
        right,
        op,
    })
}

fn together(fields: &[Field]) -> Expression<'static> {
    match fields {
        [one] => field(*one),
        _ => {
            let all = fields.iter().copied().map(field);
            Expression::Named(NamedExpression::Concat(all.collect()))
        }
    }
}

fn field(field: Field) -> Expression<'static> {
    Expression::Named(match field.place() {
        Place::Meta(key) => NamedExpression::Meta(Meta {
            key: match key {
                "iifname" => MetaKey::Iifname,
                "oifname" => MetaKey::Oifname,
                "nfproto" => MetaKey::Nfproto,
                "l4proto" => MetaKey::L4proto,
                _ => MetaKey::Mark,
            },
        }),
        Place::Header(protocol, field) => {
            NamedExpression::Payload(Payload::PayloadField(PayloadField {
                protocol: protocol.into(),
                field: field.into(),
            }))
        }
        Place::Raw(base, offset, len) => {
            NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
                base: match base {
                    "th" => PayloadBase::TH,
                    _ => PayloadBase::NH,
                },
                offset,
                len,
            }))
        }
        Place::Ct(key) => NamedExpression::CT(CT {
            key: key.into(),
            family: None,
            dir: None,
        }),
        Place::Fib => NamedExpression::Fib(Fib {
            result: FibResult::Type,
            flags: HashSet::from([FibFlag::Daddr]),
        }),
    })
}

fn action(action: Action) -> Statement<'static> {
    match action {
        Action::Accept => Statement::Accept(None),
        Action::Drop => Statement::Drop(None),
        Action::Jump(target) => Statement::Jump(JumpTarget {
            target: target.into(),
        }),
        Action::Reset => Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None))),
        Action::Prohibit => Statement::Reject(Some(Reject::new(
            Some(RejectType::ICMPX),
            Some(RejectCode::AdminProhibited),
        ))),
        Action::Dnat { v6, address, port } => Statement::DNAT(Some(NAT {
            addr: Some(published(address)),
            family: Some(if v6 { NATFamily::IP6 } else { NATFamily::IP }),
            port: Some(published(port)),
            flags: None,
        })),
        Action::Masquerade { ports } => Statement::Masquerade(ports.map(|ports| NAT {
            addr: None,
            family: None,
            port: Some(port_range(ports)),
            flags: None,
        })),
        Action::Snat { addresses, ports } => Statement::SNAT(Some(NAT {
            addr: Some(address_range(addresses)),
            family: Some(NATFamily::IP),
            port: ports.map(port_range),
            flags: None,
        })),
        Action::MarkTarget => set_mark(Expression::Named(NamedExpression::JHash(JHash {
            hash_mod: TARGET_MODULUS,
            offset: None,
            expr: Box::new(Expression::Named(NamedExpression::Payload(
                Payload::PayloadRaw(PayloadRaw {
                    base: PayloadBase::TH,
                    offset: 64,
                    len: 128,
                }),
            ))),
            seed: Some(TARGET_SEED),
        }))),
        Action::ClearMark => set_mark(Expression::Number(0)),
    }
}

fn set_mark(value: Expression<'static>) -> Statement<'static> {
    let key = field(Field::Mark);
    Statement::Mangle(stmt::Mangle { key, value })
}

fn published(map: SetName) -> Expression<'static> {
    Expression::Named(NamedExpression::Map(Box::new(Map {
        key: together(&[Field::Transport, Field::DestinationPort]),
        data: text(format!("@{}", map.name())),
    })))
}

fn address_range(range: Range4) -> Expression<'static> {
    if range.start() == range.end() {
        return text(range.start());
    }
    let range = [text(range.start()), text(range.end())];
    Expression::Range(Box::new(Range { range }))
}

fn port_range((from, to): (u16, u16)) -> Expression<'static> {
    let [from, to] = [from, to].map(|port| Expression::Number(port.into()));
    if from == to {
        return from;
    }
    Expression::Range(Box::new(Range { range: [from, to] }))
}
