//! The distribution's kernel: downloaded, not installed (an installation would build an initramfs for this machine).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::process;

/// Downloads the kernel that the distribution would install now, and puts into `folder` its `vmlinux` and, numbered in
/// the order of loading, the wanted `modules` with what they depend on.
pub(super) fn fetch(folder: &Path, wanted: &[&str]) -> anyhow::Result<()> {
    let making = folder.with_extension("making");
    let _ = fs::remove_dir_all(&making);
    fs::create_dir_all(&making)?;
    for package in kernel_packages()? {
        let download = apt(&making, &["apt-get", "download", &package]);
        if download.is_err() {
            process::run(
                command(&making, &["apt-get", "update"]),
                Duration::from_secs(180),
            )?
            .ok()?;
            apt(&making, &["apt-get", "download", &package])?;
        }
    }
    for deb in entries(&making)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
    {
        apt(&making, &["dpkg", "-x", &deb.to_string_lossy(), "root"])?;
        fs::remove_file(deb)?;
    }
    let packed = entries(&making.join("root/boot"))?
        .into_iter()
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        })
        .context("the kernel package has no vmlinuz")?;
    let packed = fs::read(packed)?;
    fs::write(
        making.join("vmlinux"),
        elf_inside(&packed).unwrap_or(packed),
    )?;

    let mut modules = Modules::of(&making.join("root"))?;
    for module in wanted {
        modules.choose(module)?;
    }
    fs::create_dir(making.join("modules"))?;
    for (serial, (module, content)) in modules.chosen.iter().enumerate() {
        fs::write(
            making.join(format!("modules/{serial:02}-{module}.ko")),
            content,
        )?;
    }
    fs::remove_dir_all(making.join("root"))?;
    let _ = fs::remove_dir_all(folder);
    Ok(fs::rename(&making, folder)?)
}

/// The packages that hold kernel and modules: those that the distribution's meta package depends on.
fn kernel_packages() -> anyhow::Result<Vec<String>> {
    for meta in ["linux-image-amd64", "linux-image-virtual"] {
        let Ok(depends) = process::host(&format!("apt-cache depends {meta}")) else {
            continue;
        };
        let image = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        if let Some(version) = image {
            // Ubuntu keeps the modules in a package of their own.
            let modules = format!("linux-modules-{version}");
            let split = process::host(&format!("apt-cache show {modules}")).is_ok();
            return Ok(std::iter::once(format!("linux-image-{version}"))
                .chain(split.then_some(modules))
                .collect());
        }
    }
    bail!("apt knows no kernel package (`apt-get update`?)")
}

fn command(folder: &Path, argv: &[&str]) -> Command {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).current_dir(folder);
    command
}

fn apt(folder: &Path, argv: &[&str]) -> anyhow::Result<String> {
    process::run(command(folder, argv), Duration::from_secs(300))?.ok()
}

pub(super) fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = read
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The ELF kernel within a bzImage, whichever way it is packed.
fn elf_inside(packed: &[u8]) -> Option<Vec<u8>> {
    let forms: [(&[u8], &[&str]); 3] = [
        (b"\xfd7zXZ\x00", &["xz", "-dc", "--single-stream"]),
        (b"\x28\xb5\x2f\xfd", &["zstd", "-dc"]),
        (b"\x1f\x8b\x08", &["gzip", "-dc"]),
    ];
    forms.iter().find_map(|(magic, unpacker)| {
        let at = packed
            .windows(magic.len())
            .position(|window| window == *magic)?;
        let bytes = filter(unpacker, &packed[at..])?;
        bytes.starts_with(b"\x7fELF").then_some(bytes)
    })
}

/// Sends bytes through a program. Its exit code is not asked: what follows the kernel in a bzImage is garbage to it.
fn filter(argv: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new(argv[0]);
    command
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let mut stdin = child.stdin.take()?;
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).ok());
        Some(child.wait_with_output().ok()?.stdout)
    })
}

/// The modules of an unpacked kernel package, and those chosen so far, each after its dependencies.
struct Modules {
    files: Vec<PathBuf>,
    seen: BTreeSet<String>,
    chosen: Vec<(String, Vec<u8>)>,
}

impl Modules {
    fn of(root: &Path) -> anyhow::Result<Self> {
        let base = ["lib/modules", "usr/lib/modules"].map(|path| root.join(path));
        let base = base
            .into_iter()
            .find(|path| path.is_dir())
            .context("the kernel package has no modules")?;
        let mut files = Vec::new();
        collect(&base, &mut files)?;
        Ok(Self {
            files,
            seen: BTreeSet::new(),
            chosen: Vec::new(),
        })
    }

    fn choose(&mut self, module: &str) -> anyhow::Result<()> {
        // What has no file is built in.
        let Some(path) = self.files.iter().find(|path| stem(path) == module) else {
            return Ok(());
        };
        if !self.seen.insert(module.to_owned()) {
            return Ok(());
        }
        let packed = fs::read(path)?;
        let content = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => filter(&["xz", "-dc"], &packed).context("xz failed")?,
            Some("zst") => filter(&["zstd", "-dc"], &packed).context("zstd failed")?,
            _ => packed,
        };
        // modules.dep is made at installation, which did not happen; the module names its dependencies itself.
        for dependency in depends(&content) {
            self.choose(&dependency)?;
        }
        self.chosen.push((module.to_owned(), content));
        Ok(())
    }
}

/// The module's name, as other modules and the kernel write it.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko")
        .next()
        .unwrap_or_default()
        .replace('-', "_")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for path in entries(folder)? {
        // `build` and `source` are links to elsewhere.
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.to_string_lossy().contains(".ko") {
            files.push(path);
        }
    }
    Ok(())
}

/// The `depends=a,b` of a module's info section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_its_dependencies() {
        let info = b"license=GPL\0depends=net_failover,virtio-ring\0name=virtio_net\0";
        assert_eq!(
            depends(&[b"\0", &info[..]].concat()),
            ["net_failover", "virtio_ring"]
        );
        assert!(depends(b"\0depends=\0name=x\0").is_empty());
    }
}
