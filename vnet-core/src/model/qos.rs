use serde::{Deserialize, Serialize};

use crate::types::Rate;

/// How much a port may carry, as its guest sees it. None is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Qos {
    /// What comes in to the guest. What is more than its bucket holds is dropped.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub inward: Option<Rate>,
    /// What the guest sends out. It is not taken faster from it, so nothing is lost.
    #[serde(rename = "out", skip_serializing_if = "Option::is_none")]
    pub outward: Option<Rate>,
}

impl Qos {
    /// Whether nothing is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.inward.is_none() && self.outward.is_none()
    }
}
