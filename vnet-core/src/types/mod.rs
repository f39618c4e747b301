//! Values that exist only if they are valid: parse once at the door, then trust the type.
//!
//! Each type has `FromStr`, `Display`, and serde as a string (where it has a natural text form). The error of a
//! parse is an [`Invalid`]: one sentence that says what the rule is.

mod mac;
mod name;
mod range;
mod rate;
mod units;

pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use mac::Mac;
pub use name::{DomainName, IfName, NetworkName, PortName};
pub use range::Range4;
pub use rate::Rate;
pub use units::{LeaseTime, Mtu};

/// Why a text is not a value of its type: a sentence for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

/// Serde through `FromStr` and `Display`, so that a document can never hold an invalid value.
macro_rules! serde_as_text {
    ($($t:ty),+) => {$(
        impl serde::Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_text;
