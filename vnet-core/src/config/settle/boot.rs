//! Network boot of a subnet.

use std::net::Ipv4Addr;
use std::path::{Component, PathBuf};

use crate::config::check::Check;
use crate::config::native::{BootDoc, BootRuleDoc};
use crate::model::{Arch, Boot, BootRule};

/// The longest name of a file: what one option holds.
const LONGEST: usize = 255;

pub(super) fn boot(at: &str, doc: &BootDoc, check: &mut Check) -> Boot {
    let tftp = doc.tftp.as_deref();
    let rules = doc.rule.iter().enumerate();
    let boot = Boot {
        tftp: tftp.and_then(|path| folder(&format!("{at}.tftp"), path, check)),
        server: address(&format!("{at}.server"), doc.server.as_deref(), check),
        file: doc.file.clone(),
        rules: rules
            .map(|(i, doc)| rule(&format!("{at}.rule[{i}]"), doc, check))
            .collect(),
    };
    if let Some(file) = &boot.file {
        name(&format!("{at}.file"), file, check);
    }
    if boot.file.is_none() && boot.rules.is_empty() {
        check.wrong(at, "boots nothing: give a `file`, or a `rule` with one");
    }
    boot
}

/// Over IPv6 a machine is told a URL and nothing else (RFC 5970 section 3.1): who has the file is part of it.
pub(super) fn boot6(at: &str, doc: &BootDoc, check: &mut Check) -> Boot {
    let rules = doc.rule.iter().enumerate();
    let elsewhere = rules
        .clone()
        .map(|(i, rule)| (format!("{at}.rule[{i}].server"), &rule.server));
    let elsewhere = elsewhere.chain([
        (format!("{at}.server"), &doc.server),
        (format!("{at}.tftp"), &doc.tftp),
    ]);
    for (at, _) in elsewhere.filter(|(_, is)| is.is_some()) {
        check.wrong(
            at,
            "is IPv4's: write the whole URL as `file`, like tftp://[fd00::1]/ipxe.efi",
        );
    }
    let files = rules.map(|(i, rule)| (format!("{at}.rule[{i}].file"), Some(&rule.file)));
    for (at, file) in files.chain([(format!("{at}.file"), doc.file.as_ref())]) {
        if file.is_some_and(|file| !file.contains("://")) {
            check.wrong(at, "takes a URL, like http://[fd00::1]/ipxe.efi");
        }
    }
    boot(at, doc, check)
}

fn rule(at: &str, doc: &BootRuleDoc, check: &mut Check) -> BootRule {
    if doc.arch.is_empty() && doc.vendor_class.is_none() && doc.user_class.is_none() {
        check.wrong(
            at,
            "fits every machine: say `arch`, `vendor_class` or `user_class`, or use `boot.file`",
        );
    }
    name(&format!("{at}.file"), &doc.file, check);
    let arch = doc.arch.iter().enumerate().filter_map(|(i, text)| {
        let here = format!("{at}.arch[{i}]");
        check.take(here, Arch::parse(text))
    });
    BootRule {
        arch: arch.flatten().collect(),
        vendor_class: doc.vendor_class.clone(),
        user_class: doc.user_class.clone(),
        file: doc.file.clone(),
        server: address(&format!("{at}.server"), doc.server.as_deref(), check),
    }
}

fn address(at: &str, text: Option<&str>, check: &mut Check) -> Option<Ipv4Addr> {
    check.form(at, text?, "an IPv4 address")
}

fn name(at: &str, file: &str, check: &mut Check) {
    if file.is_empty() || file.len() > LONGEST || file.bytes().any(|b| b.is_ascii_control()) {
        check.wrong(at, format!("takes 1 to {LONGEST} printable characters"));
    }
}

fn folder(at: &str, text: &str, check: &mut Check) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || climbs || text.contains('\0') {
        check.wrong(at, "takes the whole path of a folder, like /srv/tftp");
        return None;
    }
    Some(path)
}
