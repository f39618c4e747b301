use crate::types::Invalid;

/// How a network's router advertisements go out, and what they say of the gateway as a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ra {
    /// Seconds between two that nobody asked for, at most (`MaxRtrAdvInterval`).
    pub interval: u16,
    /// For how many seconds the gateway is a default router without another; zero: it is none.
    pub router_lifetime: Option<u16>,
    /// For how many seconds addresses made from a prefix are used for something new, without another advertisement.
    pub preferred_lifetime: u32,
    /// For how many seconds they are valid; the largest number: for ever.
    pub valid_lifetime: u32,
    /// Which of several routers guests take.
    pub preference: Preference,
}

/// Which of several routers guests take (RFC 4191 section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preference {
    /// Before others.
    High,
    /// As any.
    Medium,
    /// After others.
    Low,
}

impl Preference {
    /// Every preference, in the order documents list them.
    pub const ALL: [Self; 3] = [Self::High, Self::Medium, Self::Low];

    /// The word documents use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }
}

impl Default for Ra {
    /// The defaults of RFC 4861 section 6.2.1; of lifetimes shorter ones, as its authors would choose today (RFC 9096
    /// section 3.3): a guest that missed a change is rid of a dead prefix in hours and not in a month.
    fn default() -> Self {
        Self {
            interval: 600,
            router_lifetime: None,
            preferred_lifetime: 14_400,
            valid_lifetime: 86_400,
            preference: Preference::Medium,
        }
    }
}

impl Ra {
    /// Checks the bounds of RFC 4861 section 6.2.1: the field that breaks one, and the rule.
    ///
    /// # Errors
    /// Which field is wrong, and how.
    pub fn check(&self) -> Result<(), (&'static str, Invalid)> {
        if !(4..=1800).contains(&self.interval) {
            let rule = "takes 4 to 1800 seconds";
            return Err(("interval", Invalid::new(rule)));
        }
        let fits = |s: u16| s == 0 || (self.interval..=9000).contains(&s);
        if self.router_lifetime.is_some_and(|s| !fits(s)) {
            let least = self.interval;
            let rule =
                format!("takes 0 (no default router), or {least} (the interval) to 9000 seconds");
            return Err(("router_lifetime", Invalid::new(rule)));
        }
        let (least, most) = (u32::from(self.interval), self.valid_lifetime);
        if !(least..=most).contains(&self.preferred_lifetime) {
            let rule = format!(
                "takes {least} (the interval) to {most} (the valid lifetime) seconds: what is deprecated before the \
                 next advertisement, or after its end, serves nobody"
            );
            return Err(("preferred_lifetime", Invalid::new(rule)));
        }
        Ok(())
    }

    /// The least and the most time between two advertisements.
    #[must_use]
    pub fn between(&self) -> (u64, u64) {
        let most = u64::from(self.interval);
        let least = if most >= 9 { most / 3 } else { most };
        (least, most)
    }

    /// How long what an advertisement says holds without another: three intervals (RFC 8106 section 5.1).
    #[must_use]
    pub const fn lifetime(&self) -> u16 {
        self.interval.saturating_mul(3)
    }

    /// The router's own lifetime.
    #[must_use]
    pub fn router(&self) -> u16 {
        self.router_lifetime.unwrap_or_else(|| self.lifetime())
    }
}
