//! What does not work and is tried again, by network and by who said so: a warning goes when its cause does.

use std::collections::BTreeMap;

use vnet_core::types::NetworkName;

/// Who warns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Something on the host is in the network's way.
    Host,
    /// DHCP, router advertisements, DNS.
    Services,
    /// Files for machines that boot.
    Files,
    /// The process that serves vhost-user ports.
    Backend,
}

/// Those who serve guests.
const SERVICES: [Source; 2] = [Source::Services, Source::Files];

/// What everybody said last.
#[derive(Debug, Default)]
pub(super) struct Warnings(BTreeMap<NetworkName, BTreeMap<Source, Vec<String>>>);

impl Warnings {
    /// One of them says all it has to say of a network; what of that is new.
    pub(super) fn say(
        &mut self,
        network: &NetworkName,
        source: Source,
        texts: Vec<String>,
    ) -> Vec<String> {
        let of_it = self.0.entry(network.clone()).or_default();
        let before = of_it.remove(&source).unwrap_or_default();
        let fresh = texts.iter().filter(|text| !before.contains(text));
        let fresh = fresh.cloned().collect();
        if !texts.is_empty() {
            of_it.insert(source, texts);
        }
        if of_it.is_empty() {
            self.0.remove(network);
        }
        fresh
    }

    /// Whether one of them has something to say of a network.
    pub(super) fn has(&self, network: &NetworkName, source: Source) -> bool {
        let of_it = self.0.get(network);
        of_it.is_some_and(|of_it| of_it.contains_key(&source))
    }

    /// Whether a network has no service, or not all of it.
    pub(super) fn is_unserved(&self, network: &NetworkName) -> bool {
        SERVICES.iter().any(|source| self.has(network, *source))
    }

    /// The networks of which that is so.
    pub(super) fn unserved(&self) -> Vec<NetworkName> {
        let names = self.0.keys();
        names
            .filter(|name| self.is_unserved(name))
            .cloned()
            .collect()
    }

    /// The network is to have no services.
    pub(super) fn ask_nothing(&mut self, network: &NetworkName) {
        for source in SERVICES {
            self.say(network, source, Vec::new());
        }
    }

    /// All that is said of a network.
    pub(super) fn of(&self, network: &NetworkName) -> Vec<String> {
        let of_it = self.0.get(network).into_iter();
        of_it
            .flat_map(BTreeMap::values)
            .flatten()
            .cloned()
            .collect()
    }

    /// All that is said, with the networks.
    pub(super) fn all(&self) -> impl Iterator<Item = (&NetworkName, &String)> {
        let all = self.0.iter();
        all.flat_map(|(name, of_it)| of_it.values().flatten().map(move |text| (name, text)))
    }

    /// The network does not run, or is no more.
    pub(super) fn forget(&mut self, network: &NetworkName) {
        self.0.remove(network);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_goes_with_its_cause_and_is_new_once() {
        let lab: NetworkName = "lab".parse().expect("a name");
        let mut warnings = Warnings::default();
        let taken = || vec!["port 53 is taken".to_owned()];
        assert_eq!(warnings.say(&lab, Source::Services, taken()), taken());
        assert_eq!(warnings.say(&lab, Source::Services, taken()), [""; 0]);
        let folder = vec!["no such folder".to_owned()];
        assert_eq!(warnings.say(&lab, Source::Files, folder.clone()), folder);
        assert_eq!(warnings.of(&lab), [taken(), folder].concat());
        assert_eq!(warnings.unserved(), std::slice::from_ref(&lab));
        assert_eq!(warnings.say(&lab, Source::Services, Vec::new()), [""; 0]);
        assert!(!warnings.has(&lab, Source::Services));
        assert!(warnings.is_unserved(&lab), "files are missing still");
        warnings.ask_nothing(&lab);
        assert!(!warnings.is_unserved(&lab));
        warnings.say(&lab, Source::Backend, taken());
        assert_eq!(warnings.unserved(), []);
        assert_eq!(warnings.all().count(), 1);
        warnings.forget(&lab);
        assert_eq!(warnings.all().count(), 0);
    }
}
