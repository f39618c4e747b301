//! A host made of data: behaves as the kernel does where it matters to a plan, and can fail at any step.

use super::{Host, HostState, Knob, Link, NewLink, PortFlags, Scope, Step, StepError, Sysctl};
use crate::types::{IfName, Mac};

/// The other [`Host`]. Its state is public: a test looks at it and meddles with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FakeHost {
    /// What an observer sees.
    pub state: HostState,
    /// Every step taken, in order.
    pub taken: Vec<Step>,
    countdown: Option<usize>,
}

impl FakeHost {
    /// A host in that state.
    #[must_use]
    pub fn new(state: HostState) -> Self {
        Self {
            state,
            ..Self::default()
        }
    }

    /// The step after `n` more will fail, once.
    pub fn fail_at(&mut self, n: usize) {
        self.countdown = Some(n);
    }

    fn take(&mut self, step: &Step) -> Result<(), StepError> {
        if let Some(n) = &mut self.countdown {
            if *n == 0 {
                self.countdown = None;
                return Err(StepError("told to fail".to_owned()));
            }
            *n -= 1;
        }
        self.act(step)?;
        self.taken.push(step.clone());
        Ok(())
    }

    fn act(&mut self, step: &Step) -> Result<(), StepError> {
        let state = &mut self.state;
        match step {
            Step::Create(new) => self.create(new),
            Step::Delete(gone) => self.delete(&gone.name),
            Step::Change { name, from: _, to } => self.change(name, to),
            Step::AddAddress(dev, address) => {
                known(state, dev)?;
                unless(
                    state.addresses.insert((dev.clone(), *address)),
                    "address is there",
                )
            }
            Step::RemoveAddress(dev, address) => {
                unless(
                    state.addresses.remove(&(dev.clone(), *address)),
                    "no such address",
                )?;
                if !state.addresses.iter().any(|(d, _)| d == dev) {
                    state.routes.retain(|route| route.dev != *dev);
                }
                Ok(())
            }
            Step::AddRoute(route) => {
                let link = known(state, &route.dev)?;
                unless(link.up, "network is down")?;
                let near = |(d, a): &(IfName, crate::types::IpNet)| {
                    *d == route.dev && a.contains(&route.via)
                };
                unless(
                    state.addresses.iter().any(near),
                    "nexthop has invalid gateway",
                )?;
                unless(state.routes.insert(route.clone()), "route is there")
            }
            Step::Firewall { change, back: _ } => {
                state.firewall = state.firewall.take().map(|rules| rules.after(change));
                Ok(())
            }
            Step::RemoveRoute(route) => unless(state.routes.remove(route), "no such route"),
            Step::Set { key, to, .. } => {
                let value = state.sysctls.get_mut(key);
                let value = value.ok_or_else(|| StepError(format!("no sysctl {key}")))?;
                value.clone_from(to);
                Ok(())
            }
        }
    }

    fn create(&mut self, new: &NewLink) -> Result<(), StepError> {
        let state = &mut self.state;
        unless(!state.links.contains_key(&new.name), "link is there")?;
        let mut link = new.link.clone();
        link.mac = link.mac.or(Some(Mac([2, 0, 0, 0, 0, 1])));
        link.mtu = link.mtu.or(Some(1500));
        state.links.insert(new.name.clone(), link);
        for knob in Knob::ALL {
            let key = Sysctl::Interface(new.name.clone(), knob);
            let value = new.sysctls.get(&key).map_or(default(knob), String::as_str);
            state.sysctls.insert(key, value.to_owned());
        }
        for port in &new.ports {
            if let Some(link) = state.links.get_mut(port) {
                link.master = Some(new.name.clone());
            }
        }
        Ok(())
    }

    fn delete(&mut self, name: &IfName) -> Result<(), StepError> {
        let state = &mut self.state;
        unless(state.links.remove(name).is_some(), "no such link")?;
        state.addresses.retain(|(dev, _)| dev != name);
        state.routes.retain(|route| route.dev != *name);
        state.sysctls.retain(|key, _| key.interface() != Some(name));
        for link in state.links.values_mut() {
            if link.master.as_ref() == Some(name) {
                link.master = None;
                link.flags = PortFlags::default();
            }
        }
        Ok(())
    }

    fn change(&mut self, name: &IfName, to: &Link) -> Result<(), StepError> {
        if let Some(master) = &to.master {
            unless(known(&self.state, master)?.is_bridge(), "not a bridge")?;
        }
        let have = known(&self.state, name)?;
        let (mac, mtu, down) = (have.mac, have.mtu, have.up && !to.up);
        let mut link = to.clone();
        link.mac = link.mac.or(mac);
        link.mtu = link.mtu.or(mtu);
        self.state.links.insert(name.clone(), link);
        if down {
            self.state.routes.retain(|route| route.dev != *name);
        }
        Ok(())
    }
}

impl Host for FakeHost {
    async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.take(step)
    }

    async fn observe(&mut self, scope: &Scope) -> Result<HostState, StepError> {
        let mut state = self.state.clone();
        state.links.retain(|name, _| scope.covers(name));
        state.addresses.retain(|(dev, _)| scope.covers(dev));
        state.routes.retain(|route| scope.covers(&route.dev));
        state
            .sysctls
            .retain(|key, _| key.interface().is_none_or(|dev| scope.covers(dev)));
        Ok(state)
    }
}

fn unless(fine: bool, complaint: &str) -> Result<(), StepError> {
    if fine {
        Ok(())
    } else {
        Err(StepError(complaint.to_owned()))
    }
}

fn known<'a>(state: &'a HostState, name: &IfName) -> Result<&'a Link, StepError> {
    let link = state.links.get(name);
    link.ok_or_else(|| StepError(format!("no link {name}")))
}

const fn default(knob: Knob) -> &'static str {
    match knob {
        Knob::AcceptRa | Knob::Autoconf => "1",
        Knob::RouteLocalnet | Knob::DisableIpv6 => "0",
    }
}
