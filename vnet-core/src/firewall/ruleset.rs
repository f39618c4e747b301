//! A whole ruleset as one value: desired and observed are the same type, and the difference is data too.
//!
//! Rules follow from the [`Translation`]s in use and from nothing else, so a ruleset is a [`Frame`] and elements.
//! Not here: why an element is where it is (`forward`, `guard`, `publish`), and how nft is told (`render`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::rule::Chain;
use super::set::{Atom, Element, Key, SetName, Table, Translation};
use super::{forward, guard, publish};

/// The tables, sets, chains and rules, apart from their elements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Frame {
    /// There are no tables of ours.
    #[default]
    Absent,
    /// Every table, set, chain and rule is as it should be.
    Whole,
    /// Something is missing, added, changed or out of order; only ever observed.
    Broken(String),
}

/// Everything that our two tables hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    frame: Frame,
    elements: BTreeMap<SetName, BTreeSet<Element>>,
}

/// What turns one ruleset into another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// They are equal.
    None,
    /// The same rules: some elements come and go.
    Elements(Vec<ElementChange>),
    /// The rules differ: everything of ours is replaced, in one transaction. (An absent ruleset: deleted.)
    Whole(Ruleset),
}

/// What changes in one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementChange {
    /// Which.
    pub set: SetName,
    /// These go, first.
    pub remove: BTreeSet<Element>,
    /// These come.
    pub add: BTreeSet<Element>,
}

impl Ruleset {
    /// Our tables with empty sets.
    pub(super) fn empty() -> Self {
        let fixed = SetName::FIXED.iter().map(|set| (*set, BTreeSet::new()));
        Self {
            frame: Frame::Whole,
            elements: fixed.collect(),
        }
    }

    /// What was read from the kernel.
    pub(super) const fn observed(
        frame: Frame,
        elements: BTreeMap<SetName, BTreeSet<Element>>,
    ) -> Self {
        Self { frame, elements }
    }

    /// Whether there is nothing of ours.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self.frame, Frame::Absent)
    }

    /// The tables and rules, without their elements.
    #[must_use]
    pub const fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The elements of one set.
    pub fn elements(&self, set: SetName) -> impl Iterator<Item = &Element> {
        self.elements.get(&set).into_iter().flatten()
    }

    /// Every set, and its elements.
    pub fn sets(&self) -> impl Iterator<Item = (SetName, &BTreeSet<Element>)> {
        self.elements.iter().map(|(set, elements)| (*set, elements))
    }

    /// Every chain, in the order in which they are made: none jumps to a later one.
    #[must_use]
    pub fn chains(&self) -> Vec<Chain> {
        match self.frame {
            Frame::Whole => chains(&self.translations()),
            Frame::Absent | Frame::Broken(_) => Vec::new(),
        }
    }

    /// How many rules there are.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.chains().iter().map(|chain| chain.rules.len()).sum()
    }

    /// What turns this ruleset into `desired`.
    #[must_use]
    pub fn change_to(&self, desired: &Self) -> Change {
        if self == desired {
            return Change::None;
        }
        let same_sets = self.elements.keys().eq(desired.elements.keys());
        if self.frame != Frame::Whole || desired.frame != Frame::Whole || !same_sets {
            return Change::Whole(desired.clone());
        }
        let pairs = self.elements.iter().zip(desired.elements.values());
        let changes = pairs.filter(|((_, is), should)| is != should);
        let change =
            |((set, is), should): ((&SetName, &BTreeSet<_>), &BTreeSet<_>)| ElementChange {
                set: *set,
                remove: is.difference(should).cloned().collect(),
                add: should.difference(is).cloned().collect(),
            };
        Change::Elements(changes.map(change).collect())
    }

    /// What turns this ruleset into itself with the elements of another besides.
    #[must_use]
    pub fn lacking(&self, more: &Self) -> Change {
        let none = BTreeSet::new();
        let change = |(set, wanted): (&SetName, &BTreeSet<Element>)| {
            let have = self.elements.get(set).unwrap_or(&none);
            ElementChange {
                set: *set,
                remove: BTreeSet::new(),
                add: wanted.difference(have).cloned().collect(),
            }
        };
        let changes = more.elements.iter().map(change);
        let changes: Vec<_> = changes.filter(|change| !change.add.is_empty()).collect();
        match changes.is_empty() {
            true => Change::None,
            false => Change::Elements(changes),
        }
    }

    /// Adds the elements of another.
    pub fn absorb(&mut self, more: Self) {
        for (set, elements) in more.elements {
            self.elements.entry(set).or_default().extend(elements);
        }
    }

    /// Changes this ruleset as the kernel changes its own.
    pub fn make(&mut self, change: &Change) {
        match change {
            Change::None => {}
            Change::Whole(desired) => self.clone_from(desired),
            Change::Elements(changes) => {
                for ElementChange { set, remove, add } in changes {
                    let elements = self.elements.entry(*set).or_default();
                    for element in remove {
                        elements.remove(element);
                    }
                    elements.extend(add.iter().cloned());
                }
            }
        }
    }

    /// This ruleset after a change: what the kernel does, as a pure function.
    #[must_use]
    pub fn after(mut self, change: &Change) -> Self {
        self.make(change);
        self
    }

    /// Put an element where it belongs.
    pub(super) fn add<const N: usize>(&mut self, set: SetName, key: [Atom; N]) {
        self.insert(set, key, None);
    }

    /// Put a pair into a map.
    pub(super) fn map<const N: usize>(&mut self, set: SetName, key: [Atom; N], value: Atom) {
        self.insert(set, key, Some(value));
    }

    fn insert<const N: usize>(&mut self, set: SetName, key: [Atom; N], value: Option<Atom>) {
        debug_assert_eq!(set.spec().key.len(), N, "{set:?}");
        debug_assert_eq!(set.spec().value.is_some(), value.is_some(), "{set:?}");
        let key = Key::of(key);
        let elements = self.elements.entry(set).or_default();
        elements.insert(Element { key, value });
    }

    fn translations(&self) -> Vec<Translation> {
        let sets = self.elements.keys();
        sets.filter_map(|set| set.translation()).collect()
    }
}

/// Every chain of a ruleset with these translations.
pub(super) fn chains(translations: &[Translation]) -> Vec<Chain> {
    let mut all = forward::chains();
    all.extend(publish::chains(translations));
    all.extend(guard::chains());
    all
}

impl Change {
    /// The change that takes this one back, given what there was before it.
    #[must_use]
    pub fn inverse(&self, before: &Ruleset) -> Self {
        let back = |change: &ElementChange| ElementChange {
            set: change.set,
            remove: change.add.clone(),
            add: change.remove.clone(),
        };
        match self {
            Self::None => Self::None,
            Self::Elements(changes) => Self::Elements(changes.iter().map(back).collect()),
            Self::Whole(_) => Self::Whole(before.clone()),
        }
    }
}

/// nft's own text form: `nft -f` takes it.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.frame {
            Frame::Absent => return writeln!(f, "# no tables of ours"),
            Frame::Broken(what) => return writeln!(f, "# broken: {what}"),
            Frame::Whole => {}
        }
        let chains = self.chains();
        for table in Table::ALL {
            writeln!(f, "table {} {} {{", table.family(), Table::NAME)?;
            for (set, elements) in self.sets().filter(|(set, _)| set.spec().table == table) {
                write_set(f, set, elements)?;
            }
            for chain in chains.iter().filter(|chain| chain.table == table) {
                write!(f, "{chain}")?;
            }
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}

fn write_set(
    f: &mut fmt::Formatter<'_>,
    set: SetName,
    elements: &BTreeSet<Element>,
) -> fmt::Result {
    let spec = set.spec();
    let key: Vec<_> = spec.key.iter().map(|column| column.word()).collect();
    let kind = if spec.value.is_some() { "map" } else { "set" };
    let value = spec
        .value
        .map_or(String::new(), |v| format!(" : {}", v.word()));
    writeln!(f, "\t{kind} {} {{", set.name())?;
    writeln!(f, "\t\ttype {}{value}", key.join(" . "))?;
    if spec.interval() {
        writeln!(f, "\t\tflags interval")?;
    }
    if !elements.is_empty() {
        let all: Vec<_> = elements.iter().map(Element::to_string).collect();
        writeln!(f, "\t\telements = {{ {} }}", all.join(",\n\t\t\t     "))?;
    }
    writeln!(f, "\t}}")
}
