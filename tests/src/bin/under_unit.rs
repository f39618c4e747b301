//! Becomes a program under what a systemd unit forbids by system calls, where no systemd runs: what tests of the unit start
//! netd under.
//!
//! `under_unit UNIT PROGRAM ARGUMENTS...` knows `RestrictAddressFamilies`, `RestrictNamespaces`,
//! `MemoryDenyWriteExecute`, `RestrictRealtime` and `LockPersonality`. The rest of a unit is for others (`setpriv`, mounts).

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, bail};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(unit), Some(program)) = (args.next(), args.next()) else {
        bail!("usage: under_unit UNIT PROGRAM ARGUMENTS...");
    };
    let unit = std::fs::read_to_string(unit)?;
    let said = |key: &str| {
        let value = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned());
        let line = unit.lines().find_map(value);
        line.with_context(|| format!("the unit says no {key}"))
    };
    let mut rules = Rules::new();
    families(&mut rules, &said("RestrictAddressFamilies")?)?;
    for (key, forbid) in [
        ("RestrictNamespaces", namespaces as fn(&mut Rules) -> _),
        ("MemoryDenyWriteExecute", code),
        ("RestrictRealtime", realtime),
        ("LockPersonality", personality),
    ] {
        let value = said(key)?;
        anyhow::ensure!(value == "yes", "{key}={value} is not known here");
        forbid(&mut rules)?;
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Err(Command::new(program).args(args).exec().into())
}

/// Forbids a call when all of these are true of its arguments.
fn forbid(rules: &mut Rules, call: i64, when: &[(u8, Op, i32)]) -> anyhow::Result<()> {
    let conditions = when.iter().map(|(argument, operator, value)| {
        let value = u64::from(value.cast_unsigned());
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), value)
    });
    let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
    rules.entry(call).or_default().push(rule);
    Ok(())
}

/// Every family but these.
fn families(rules: &mut Rules, allowed: &str) -> anyhow::Result<()> {
    let number = |name: &str| match name {
        "AF_UNIX" => Ok(libc::AF_UNIX),
        "AF_INET" => Ok(libc::AF_INET),
        "AF_INET6" => Ok(libc::AF_INET6),
        "AF_NETLINK" => Ok(libc::AF_NETLINK),
        "AF_PACKET" => Ok(libc::AF_PACKET),
        other => bail!("{other} is not known here"),
    };
    let allowed = allowed.split_whitespace().map(number);
    let mut when = Vec::new();
    for family in allowed {
        when.push((0, Op::Ne, family?));
    }
    forbid(rules, libc::SYS_socket, &when)
}

fn namespaces(rules: &mut Rules) -> anyhow::Result<()> {
    let kinds = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWCGROUP,
    ];
    for kind in kinds {
        let bit = Op::MaskedEq(u64::from(kind.cast_unsigned()));
        forbid(rules, libc::SYS_clone, &[(0, bit.clone(), kind)])?;
        forbid(rules, libc::SYS_unshare, &[(0, bit, kind)])?;
    }
    rules.insert(libc::SYS_setns, Vec::new());
    Ok(())
}

fn code(rules: &mut Rules) -> anyhow::Result<()> {
    let both = libc::PROT_WRITE | libc::PROT_EXEC;
    let mask = |bits: i32| Op::MaskedEq(u64::from(bits.cast_unsigned()));
    forbid(rules, libc::SYS_mmap, &[(2, mask(both), both)])?;
    for call in [libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        forbid(rules, call, &[(2, mask(libc::PROT_EXEC), libc::PROT_EXEC)])?;
    }
    let shared = libc::SHM_EXEC;
    forbid(rules, libc::SYS_shmat, &[(2, mask(shared), shared)])
}

fn realtime(rules: &mut Rules) -> anyhow::Result<()> {
    let ordinary = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE];
    let when = ordinary.map(|policy| (1, Op::Ne, policy));
    forbid(rules, libc::SYS_sched_setscheduler, &when)
}

fn personality(rules: &mut Rules) -> anyhow::Result<()> {
    // Asking is allowed.
    forbid(rules, libc::SYS_personality, &[(0, Op::Ne, -1)])
}
