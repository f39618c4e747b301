use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Time;
use crate::types::{Mac, NetworkName, PortName};

/// Who a lease belongs to: what the protocol recognises the client by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// Its hardware address (a port of ours, or a client that sent no identifier).
    Mac(Mac),
    /// The client identifier it sent (DHCPv4 option 61, raw).
    Id(Vec<u8>),
    /// A DHCPv6 identity association.
    Ia {
        /// The DUID, raw.
        duid: Vec<u8>,
        /// Which of the client's associations.
        iaid: u32,
    },
}

/// What became of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseState {
    /// Granted, and held until it expires.
    Held,
    /// Given back. Remembered, so that the client gets the same address when it returns.
    Released,
    /// Found in use by somebody else: nobody gets it until it expires.
    Declined,
}

/// One lease, as it is kept on disk, listed and announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The network.
    pub network: NetworkName,
    /// The address; with the network it is the lease's identity.
    pub address: IpAddr,
    /// What became of it.
    pub state: LeaseState,
    /// Whose it is.
    pub client: Client,
    /// The client's hardware address, where it is known.
    pub mac: Option<Mac>,
    /// The client identifier it sent (DHCPv4), even where it is known by something else.
    pub client_id: Option<Vec<u8>>,
    /// The Ethernet source of its messages, where that is not `mac`: what a limit per port counts.
    pub via: Option<Mac>,
    /// Its name.
    pub hostname: Option<PortName>,
    /// When it began.
    pub granted: Time,
    /// When it ends; [`Time::NEVER`] for one without end.
    pub expires: Time,
}

/// Bytes that are not a record of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a lease record that this version can read")]
pub struct Bad;

/// The first byte of every record; a later layout gets another.
const VERSION: u8 = 1;
/// The longest identifier: protocols have shorter ones.
const MOST: usize = 1024;

impl LeaseRecord {
    /// Whether the address is the client's at that moment.
    #[must_use]
    pub fn is_held(&self, now: Time) -> bool {
        self.state == LeaseState::Held && self.expires > now
    }

    /// The key in the store: network, a zero, address.
    #[must_use]
    pub fn key(network: &NetworkName, address: IpAddr) -> Vec<u8> {
        let mut key = Vec::with_capacity(network.as_str().len() + 17);
        key.extend_from_slice(network.as_str().as_bytes());
        key.push(0);
        match address {
            IpAddr::V4(a) => key.extend_from_slice(&a.octets()),
            IpAddr::V6(a) => key.extend_from_slice(&a.octets()),
        }
        key
    }

    /// The value in the store.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        out.push(VERSION);
        out.push(match self.state {
            LeaseState::Held => 0,
            LeaseState::Released => 1,
            LeaseState::Declined => 2,
        });
        out.extend_from_slice(&self.granted.0.to_be_bytes());
        out.extend_from_slice(&self.expires.0.to_be_bytes());
        match &self.client {
            Client::Mac(mac) => {
                out.push(0);
                out.extend_from_slice(&mac.octets());
            }
            Client::Id(id) => {
                out.push(1);
                put_bytes(&mut out, Some(id));
            }
            Client::Ia { duid, iaid } => {
                out.push(2);
                put_bytes(&mut out, Some(duid));
                out.extend_from_slice(&iaid.to_be_bytes());
            }
        }
        put_bytes(&mut out, self.mac.as_ref().map(|m| m.0.as_slice()));
        put_bytes(&mut out, self.client_id.as_deref());
        put_bytes(&mut out, self.via.as_ref().map(|m| m.0.as_slice()));
        put_bytes(
            &mut out,
            self.hostname.as_ref().map(|n| n.as_str().as_bytes()),
        );
        out
    }

    /// The two halves of a key: the network's name, and the address.
    ///
    /// # Errors
    /// [`Bad`] for bytes that are no key.
    pub fn split(key: &[u8]) -> Result<(&[u8], IpAddr), Bad> {
        let zero = key.iter().position(|b| *b == 0).ok_or(Bad)?;
        let (network, address) = (&key[..zero], &key[zero + 1..]);
        let v4 = || {
            Some(IpAddr::V4(Ipv4Addr::from(
                <[u8; 4]>::try_from(address).ok()?,
            )))
        };
        let v6 = || {
            Some(IpAddr::V6(Ipv6Addr::from(
                <[u8; 16]>::try_from(address).ok()?,
            )))
        };
        Ok((network, v4().or_else(v6).ok_or(Bad)?))
    }

    /// From a key and a value of the store.
    ///
    /// # Errors
    /// [`Bad`] for bytes of another version, or damaged ones.
    pub fn from_bytes(key: &[u8], value: &[u8]) -> Result<Self, Bad> {
        let (network, address) = Self::split(key)?;
        let network = text(network)?.parse().map_err(|_| Bad)?;
        let mut from = Reader(value);
        if from.byte()? != VERSION {
            return Err(Bad);
        }
        let state = match from.byte()? {
            0 => LeaseState::Held,
            1 => LeaseState::Released,
            2 => LeaseState::Declined,
            _ => return Err(Bad),
        };
        let granted = Time(u64::from_be_bytes(from.array()?));
        let expires = Time(u64::from_be_bytes(from.array()?));
        let client = match from.byte()? {
            0 => Client::Mac(Mac(from.array()?)),
            1 => Client::Id(from.bytes()?.ok_or(Bad)?),
            2 => Client::Ia {
                duid: from.bytes()?.ok_or(Bad)?,
                iaid: u32::from_be_bytes(from.array()?),
            },
            _ => return Err(Bad),
        };
        let record = Self {
            network,
            address,
            state,
            client,
            mac: from.mac()?,
            client_id: from.bytes()?,
            via: from.mac()?,
            hostname: match from.bytes()? {
                Some(name) => Some(text(&name)?.parse().map_err(|_| Bad)?),
                None => None,
            },
            granted,
            expires,
        };
        if from.0.is_empty() {
            Ok(record)
        } else {
            Err(Bad)
        }
    }
}

/// A length of two bytes (one more than the length, zero for none) and the bytes.
fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        out.extend_from_slice(&[0, 0]);
        return;
    };
    let bytes = &bytes[..bytes.len().min(MOST)];
    let len = u16::try_from(bytes.len() + 1).unwrap_or(0);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn text(bytes: &[u8]) -> Result<&str, Bad> {
    std::str::from_utf8(bytes).map_err(|_| Bad)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Bad)?;
        self.0 = rest;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, Bad> {
        self.array::<1>().map(|[b]| b)
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>, Bad> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        let Some(len) = len.checked_sub(1) else {
            return Ok(None);
        };
        // Nobody writes a longer one, so it would not be written back.
        let (head, rest) = self.0.split_at_checked(len).ok_or(Bad)?;
        self.0 = rest;
        (len <= MOST).then(|| Some(head.to_vec())).ok_or(Bad)
    }

    fn mac(&mut self) -> Result<Option<Mac>, Bad> {
        self.bytes()?
            .map(|b| b.try_into().map(Mac).map_err(|_| Bad))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<LeaseRecord> {
        let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
        let plain = LeaseRecord {
            network: "lab.a_b".parse().unwrap(),
            address: "10.0.0.9".parse().unwrap(),
            state: LeaseState::Held,
            client: Client::Mac(mac),
            mac: Some(mac),
            client_id: None,
            via: None,
            hostname: None,
            granted: Time(7),
            expires: Time::NEVER,
        };
        let known = LeaseRecord {
            state: LeaseState::Released,
            client: Client::Id(vec![]),
            client_id: Some(vec![]),
            hostname: Some("web".parse().unwrap()),
            ..plain.clone()
        };
        let six = LeaseRecord {
            address: "fd00::9".parse().unwrap(),
            state: LeaseState::Declined,
            client: Client::Ia {
                duid: vec![0, 3, 0, 1],
                iaid: 99,
            },
            via: Some(Mac([2; 6])),
            ..plain.clone()
        };
        vec![plain, known, six]
    }

    #[test]
    fn bytes_round_trip() {
        for record in samples() {
            let key = LeaseRecord::key(&record.network, record.address);
            assert_eq!(
                LeaseRecord::from_bytes(&key, &record.to_bytes()),
                Ok(record)
            );
        }
    }

    #[test]
    fn damaged_bytes_are_refused_and_never_panic() {
        for record in samples() {
            let key = LeaseRecord::key(&record.network, record.address);
            let good = record.to_bytes();
            for cut in 0..good.len() {
                assert_eq!(LeaseRecord::from_bytes(&key, &good[..cut]), Err(Bad));
            }
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0xff;
                let _ = LeaseRecord::from_bytes(&key, &bad);
            }
            assert_eq!(LeaseRecord::from_bytes(b"no-address\0", &good), Err(Bad));
            assert_eq!(LeaseRecord::from_bytes(b"", &good), Err(Bad));
        }
    }
}
