//! OVS with DPDK as a peer, from Debian packages that are unpacked and never installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::{Ns, Proc, image, process, tool, wait_for};

/// A running switch. It spins while it is up.
pub(crate) struct Ovs {
    switch: Proc,
    _database: Proc,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Ovs {
    /// Starts it with one bridge and two client ports, its worker on core 1.
    pub(crate) fn start(ns: &Ns, sockets: &[&Path]) -> anyhow::Result<Self> {
        let root = unpacked()?;
        let folder = ns.scratch().join("ovs");
        std::fs::create_dir_all(&folder)?;
        let shown = folder.display().to_string();
        let command = |program: &str| {
            let mut command = Command::new(root.join(program));
            for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
                command.env(variable, &folder);
            }
            command
        };
        let schema = root.join("usr/share/openvswitch/vswitch.ovsschema");
        let mut create = command("usr/bin/ovsdb-tool");
        create.arg("create").arg(folder.join("db")).arg(schema);
        ns.run_command(create, PATIENCE)?.ok()?;
        let mut database = command("usr/sbin/ovsdb-server");
        database
            .arg(folder.join("db"))
            .arg(format!("--remote=punix:{shown}/db.sock"));
        let database = ns.spawn_command(database)?;
        wait_for("the database", PATIENCE, || {
            folder.join("db.sock").metadata()
        })?;
        let configure = |line: &str, wait: bool| -> anyhow::Result<String> {
            let mut control = command("usr/bin/ovs-vsctl");
            control
                .arg(format!("--db=unix:{shown}/db.sock"))
                .arg("--timeout=15");
            if !wait {
                control.arg("--no-wait");
            }
            control.args(line.split('|'));
            ns.run_command(control, PATIENCE)?.ok()
        };
        configure("init", false)?;
        configure(
            "set|Open_vSwitch|.|other_config:dpdk-init=true|other_config:dpdk-extra=--no-huge --legacy-mem -m 1024 --no-pci\
             |other_config:pmd-cpu-mask=0x2",
            false,
        )?;
        let mut switch = command("usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk");
        switch.arg(format!("unix:{shown}/db.sock"));
        let switch = ns.spawn_command(switch)?;
        configure("add-br|br0|--|set|bridge|br0|datapath_type=netdev", true)?;
        for (i, socket) in sockets.iter().enumerate() {
            let path = socket.display();
            configure(
                &format!(
                    "add-port|br0|p{i}|--|set|Interface|p{i}|type=dpdkvhostuserclient|options:vhost-server-path={path}"
                ),
                true,
            )?;
        }
        Ok(Self {
            switch,
            _database: database,
        })
    }
}

impl Ovs {
    /// What it said last.
    pub(crate) fn log(&self) -> String {
        process::tail(&self.switch.log(), 10).to_owned()
    }
}

fn unpacked() -> anyhow::Result<PathBuf> {
    let root = image::cache().join("ovs");
    if !root.join("usr/sbin/ovsdb-server").exists() {
        anyhow::ensure!(
            tool::find("dpkg").is_some(),
            "OVS is fetched as Debian packages, and there is no dpkg"
        );
        std::fs::create_dir_all(&root)?;
        let mut fetch = Command::new("sh");
        fetch.arg("-c").current_dir(&root).arg(
            "apt-get download openvswitch-switch-dpdk openvswitch-switch openvswitch-common \
             && for package in *.deb; do dpkg -x $package .; done",
        );
        process::run(fetch, Duration::from_secs(120))?.ok()?;
    }
    Ok(root)
}
