//! libvirtd of the distribution, whole, in a network and mount namespace: its /etc, /var and /run are a folder of ours.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::{Ns, Proc, Scratch, wait_for};

pub(crate) struct Libvirt {
    _daemon: Proc,
    ns: Ns,
    files: Scratch,
}

impl Libvirt {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let files = Scratch::new("libvirt")?;
        let ns = Ns::new("libvirt")?;
        for folder in [
            "run",
            "etc",
            "var/lib/libvirt/dnsmasq",
            "var/cache/libvirt",
            "var/log/libvirt",
            "var/tmp",
        ] {
            fs::create_dir_all(files.join(folder))?;
        }
        std::os::unix::fs::symlink("/run", files.join("var/run"))?;
        let copied = Command::new("cp")
            .args(["-r", "/etc/libvirt/."])
            .arg(files.join("etc"))
            .status()?;
        anyhow::ensure!(copied.success(), "cannot copy /etc/libvirt");
        // The users that libvirt-daemon-system would make.
        let with = |file: &str, line: &str| -> anyhow::Result<_> {
            let text = fs::read_to_string(Path::new("/etc").join(file))? + line;
            files.write(file, &text)
        };
        ns.bind(
            with("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false\n")?,
            "/etc/passwd",
        );
        ns.bind(with("group", "libvirt-qemu:x:64055:\n")?, "/etc/group");
        ns.bind(files.join("etc"), "/etc/libvirt");
        ns.bind(files.join("var"), "/var");
        ns.bind(files.join("run"), "/run");
        let conf = files.write(
            "libvirtd.conf",
            "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n",
        )?;
        let daemon = ns.spawn(&["libvirtd", "-f", &conf.to_string_lossy()])?;
        let libvirt = Self {
            _daemon: daemon,
            ns,
            files,
        };
        wait_for("libvirtd", Duration::from_secs(30), || {
            libvirt.virsh(&["net-list"])
        })?;
        Ok(libvirt)
    }

    pub(crate) fn ns(&self) -> &Ns {
        &self.ns
    }

    /// How long a whole `virsh` takes.
    pub(crate) fn virsh(&self, args: &[&str]) -> anyhow::Result<Duration> {
        let mut command = Command::new("virsh");
        command.args(["-c", "network:///system"]).args(args);
        crate::timed(&self.ns, command)
    }

    pub(crate) fn define(&self, name: &str, xml: &str) -> anyhow::Result<()> {
        let file = self.files.write(&format!("{name}.xml"), xml)?;
        self.virsh(&["net-define", &file.to_string_lossy()])
            .map(drop)
    }

    /// Creates and starts networks with one `virsh` that does nothing else.
    pub(crate) fn create_many(&self, count: u8) -> anyhow::Result<Duration> {
        let mut commands = String::new();
        for at in 0..count {
            let file = self.files.write(
                &format!("n{at}.xml"),
                &network(&format!("n{at}"), &format!("b{at}"), at),
            )?;
            commands += &format!("net-create {};", file.display());
        }
        let took = self.virsh(&[&commands])?;
        let bridges = self.ns.ip("-o link show type bridge")?.lines().count();
        anyhow::ensure!(
            bridges == usize::from(count),
            "libvirt made {bridges} bridges"
        );
        Ok(took)
    }
}

/// A NAT network with DHCP, as libvirt's own default.
pub(crate) fn network(name: &str, bridge: &str, subnet: u8) -> String {
    let base = format!("192.168.{subnet}");
    format!(
        "<network><name>{name}</name><forward mode='nat'/><bridge name='{bridge}' stp='on' delay='0'/>\
         <ip address='{base}.1' netmask='255.255.255.0'><dhcp><range start='{base}.2' end='{base}.254'/></dhcp></ip></network>"
    )
}
