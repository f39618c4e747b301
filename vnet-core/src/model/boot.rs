//! Network boot: which file a machine that has no system is told to load, and from where.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::types::Invalid;

/// Network boot of one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Boot {
    /// The folder that the gateway serves by TFTP, read-only; `None`: no TFTP of ours.
    pub tftp: Option<PathBuf>,
    /// Who has the files, if not the gateway.
    pub server: Option<Ipv4Addr>,
    /// What a machine is told for which no rule is made.
    pub file: Option<String>,
    /// The first that fits wins.
    pub rules: Vec<BootRule>,
}

/// A file for machines of one kind; everything that is said must fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BootRule {
    /// One of these firmwares (option 93); empty: any.
    pub arch: Vec<Arch>,
    /// What the vendor class (option 60) begins with: `PXEClient`, `HTTPClient`.
    pub vendor_class: Option<String>,
    /// The user class (option 77): `iPXE`.
    pub user_class: Option<String>,
    /// The file, or a URL where the firmware takes one.
    pub file: String,
    /// Who has it, if not the subnet's server.
    pub server: Option<Ipv4Addr>,
}

/// A kind of firmware, by its numbers at IANA ("Processor Architecture Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arch(pub u16);

/// Names of firmwares. Intel's x64 has two numbers: one was meant for something else and is used all the same.
const NAMES: &[(&str, &[u16])] = &[
    ("bios", &[0]),
    ("uefi-x86", &[6]),
    ("uefi-x64", &[7, 9]),
    ("uefi-arm32", &[10]),
    ("uefi-arm64", &[11]),
    ("uefi-x64-http", &[16]),
    ("uefi-arm64-http", &[19]),
];

impl Arch {
    /// The numbers that a name (or a number) stands for.
    ///
    /// # Errors
    /// A sentence that lists the names.
    pub fn parse(text: &str) -> Result<Vec<Self>, Invalid> {
        if let Some((_, codes)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(codes.iter().copied().map(Self).collect());
        }
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        let number = text.parse().map(|code| vec![Self(code)]);
        number.map_err(|_| {
            Invalid::new(format!(
                "`{}` is no firmware: use {}, or IANA's number",
                text.escape_debug(),
                names.join(", ")
            ))
        })
    }

    /// A list as documents spell it.
    #[must_use]
    pub fn spell(all: &[Self]) -> Vec<String> {
        let mut rest: Vec<u16> = all.iter().map(|arch| arch.0).collect();
        let mut words = Vec::new();
        for (name, codes) in NAMES {
            if codes.iter().all(|code| rest.contains(code)) {
                rest.retain(|code| !codes.contains(code));
                words.push((*name).to_owned());
            }
        }
        words.extend(rest.iter().map(ToString::to_string));
        words
    }
}

/// What a booting machine says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Booting<'a> {
    /// Option 93: numbers of two bytes.
    pub arch: &'a [u8],
    /// Option 60.
    pub vendor_class: &'a [u8],
    /// Option 77.
    pub user_class: &'a [u8],
}

impl Boot {
    /// The file for a machine, and who has it where that is not the gateway.
    #[must_use]
    pub fn choose(&self, machine: &Booting<'_>) -> Option<(&str, Option<Ipv4Addr>)> {
        match self.rules.iter().find(|rule| rule.fits(machine)) {
            Some(rule) => Some((&rule.file, rule.server.or(self.server))),
            None => Some((self.file.as_deref()?, self.server)),
        }
    }
}

impl BootRule {
    fn fits(&self, machine: &Booting<'_>) -> bool {
        let mut said = machine
            .arch
            .chunks_exact(2)
            .map(|c| Arch(u16::from_be_bytes([c[0], c[1]])));
        let arch = self.arch.is_empty() || said.any(|code| self.arch.contains(&code));
        let vendor = self
            .vendor_class
            .as_ref()
            .is_none_or(|class| machine.vendor_class.starts_with(class.as_bytes()));
        let user = self
            .user_class
            .as_ref()
            .is_none_or(|class| machine.has_user_class(class.as_bytes()));
        arch && vendor && user
    }
}

impl Booting<'_> {
    /// iPXE sends the bare word, RFC 3004 wants a length before each of several.
    fn has_user_class(&self, wanted: &[u8]) -> bool {
        if self.user_class == wanted {
            return true;
        }
        let mut rest = self.user_class;
        while let Some((len, more)) = rest.split_first() {
            let Some((class, more)) = more.split_at_checked(usize::from(*len)) else {
                return false;
            };
            if class == wanted {
                return true;
            }
            rest = more;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_wins() {
        let rule = |arch: &[u16], user: Option<&str>, file: &str| BootRule {
            arch: arch.iter().copied().map(Arch).collect(),
            user_class: user.map(str::to_owned),
            file: file.to_owned(),
            ..BootRule::default()
        };
        let boot = Boot {
            file: Some("other".to_owned()),
            rules: vec![
                rule(&[], Some("iPXE"), "menu.ipxe"),
                rule(&[7, 9], None, "ipxe.efi"),
                rule(&[0], None, "undionly.kpxe"),
            ],
            ..Boot::default()
        };
        let file = |arch: &[u8], user: &[u8]| {
            let machine = Booting {
                arch,
                user_class: user,
                ..Booting::default()
            };
            boot.choose(&machine).unwrap().0.to_owned()
        };
        assert_eq!(file(&[0, 0], b""), "undionly.kpxe");
        assert_eq!(file(&[0, 9], b""), "ipxe.efi");
        assert_eq!(file(&[0, 9], b"iPXE"), "menu.ipxe");
        assert_eq!(file(&[0, 9], b"\x03foo\x04iPXE"), "menu.ipxe");
        assert_eq!(file(&[0, 9], b"\x03foo\x40iPXE"), "ipxe.efi");
        assert_eq!(file(&[0], b""), "other");
        assert_eq!(file(&[0, 42, 0, 0], b""), "undionly.kpxe");
    }

    #[test]
    fn names_of_firmwares_round_trip() {
        for text in ["bios", "uefi-x64", "uefi-arm64-http", "77"] {
            assert_eq!(Arch::spell(&Arch::parse(text).unwrap()), [text]);
        }
        assert!(Arch::parse("amiga").is_err());
    }
}
