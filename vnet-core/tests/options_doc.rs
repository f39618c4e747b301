//! The list of DHCPv4 options in `docs/dhcp-options.md` is the table's. `UPDATE=1` writes it.
#![allow(
    clippy::unwrap_used,
    reason = "a test's own set-up is small and must not fail"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use vnet_core::model::{DHCP_OPTION_ALIASES, DHCP_OPTIONS, DhcpOption};

const HEAD: &str = "\
# DHCPv4 options by name

What `[subnet.dhcp.options]`, a range's and a reservation's `options` take, and `always` (see [networks.md](networks.md)). An
option without a name is given by its number, in hexadecimal: `224 = \"01:02:ff\"`. `[]` as value: clients are not told. In
options that take addresses, 0.0.0.0 is this host. A name of the third column is dnsmasq's and does as well.

| number | name | or | value |
|---|---|---|---|
";

#[test]
fn the_list_is_the_tables() {
    let mut text = HEAD.to_owned();
    let settable = |name: &str| DhcpOption::code_of(name).is_ok();
    for row in DHCP_OPTIONS.iter().filter(|r| settable(r.name)) {
        let aliases = DHCP_OPTION_ALIASES
            .iter()
            .filter(|(_, code)| *code == row.code);
        let aliases: Vec<String> = aliases.map(|(name, _)| format!("`{name}`")).collect();
        let (code, name, value) = (row.code, row.name, row.kind.words());
        let _ = writeln!(
            text,
            "| {code} | `{name}` | {} | {value} |",
            aliases.join(", ")
        );
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/dhcp-options.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let said = fs::read_to_string(&file).unwrap();
    assert_eq!(said, text, "docs/dhcp-options.md is stale: UPDATE=1");
}
