//! The kernel and the initramfs of test guests: Debian's (or Ubuntu's) own kernel, downloaded but not installed, and
//! a busybox. Made once, kept in `.cache`, made by one process at a time.
//!
//! The kernel is kept *uncompressed*: under TCG the decompressor costs more than the whole boot, and an ELF with a PVH
//! note starts without it (11 s against 3-4 s to user space on a busy two-core machine).

mod kernel;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use crate::cpio::Archive;
use crate::{process, tool};

const INIT: &str = include_str!("init.sh");
const UDHCPC: &str = include_str!("udhcpc.sh");

/// What a guest needs of the kernel's modules; those built in and what they depend on are found out.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_console", "virtio_net"];

/// Programs of this machine that guests have too, where it has them.
const TOOLS: [&str; 3] = ["iperf3", "ethtool", "dnsperf"];

/// A bootable pair.
#[derive(Debug, Clone)]
pub struct Image {
    /// An ELF `vmlinux`, or the packaged `vmlinuz` where no ELF could be found in it.
    pub kernel: PathBuf,
    /// An uncompressed cpio.
    pub initrd: PathBuf,
}

/// The folder for what is expensive to make: `VNET_CACHE`, else `.cache` of the workspace.
#[must_use]
pub fn cache() -> PathBuf {
    std::env::var_os("VNET_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache"),
        PathBuf::from,
    )
}

/// The image, from the cache or made now. The first time it downloads the kernel package (70 MB).
pub fn image() -> anyhow::Result<Image> {
    let cache = cache();
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let cache = fs::canonicalize(cache)?;
    // Held until the end of this function; the kernel releases it if we die.
    let lock = File::create(cache.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;

    let kernel = cache.join(format!("kernel-{}", MODULES.join("-")));
    if !kernel.join("vmlinux").exists() {
        kernel::fetch(&kernel, &MODULES)?;
    }
    let initrd = build_initrd(&cache, &kernel)?;
    Ok(Image {
        kernel: kernel.join("vmlinux"),
        initrd,
    })
}

/// The initramfs, made anew whenever something in it changed. Others may be booting from an older one: it is left.
fn build_initrd(cache: &Path, kernel: &Path) -> anyhow::Result<PathBuf> {
    let busybox = tool::find("busybox")
        .context("busybox is not installed (apt-get install busybox-static)")?;
    let tools: Vec<PathBuf> = TOOLS.into_iter().filter_map(tool::find).collect();
    let mut hash = DefaultHasher::new();
    (INIT, UDHCPC, MODULES).hash(&mut hash);
    let vmlinux = kernel.join("vmlinux");
    for path in [&busybox, &vmlinux].into_iter().chain(&tools) {
        let about = fs::metadata(path)?;
        (
            path,
            about.len(),
            about.modified()?.duration_since(UNIX_EPOCH)?.as_nanos(),
        )
            .hash(&mut hash);
    }
    let initrd = cache.join(format!("initrd-{:016x}.cpio", hash.finish()));
    if initrd.exists() {
        return Ok(initrd);
    }
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "var/run"] {
        archive.folder(folder);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/udhcpc.script", 0o755, UDHCPC.as_bytes());
    for program in std::iter::once(&busybox).chain(&tools) {
        add_program(&mut archive, program)?;
    }
    for applet in process::host(&format!("{} --list", busybox.display()))?
        .lines()
        .filter(|name| *name != "busybox")
    {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    for module in kernel::entries(&kernel.join("modules"))? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &fs::read(&module)?);
    }
    let making = initrd.with_extension("making");
    fs::write(&making, archive.finish())?;
    fs::rename(making, &initrd)?;
    Ok(initrd)
}

/// A program in `bin`, and the libraries that it is linked with in their places.
fn add_program(archive: &mut Archive, program: &Path) -> anyhow::Result<()> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    archive.file(&format!("bin/{name}"), 0o755, &fs::read(program)?);
    // ldd fails for a static program: then there is nothing to add.
    let libraries = process::host(&format!("ldd {}", program.display())).unwrap_or_default();
    for library in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        archive.file(library.trim_start_matches('/'), 0o755, &fs::read(library)?);
    }
    Ok(())
}
