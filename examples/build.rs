//! Builds the guest of `tiny_vmm` with the C compiler that linked this very program.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Flags of freestanding code at a fixed address. SSE is fine: the C part runs at CPL3.
const FLAGS: &str = "-O2 -Wall -Wextra -Werror -ffreestanding -nostdlib -static -fno-pic -no-pie -mno-red-zone \
     -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -Wl,--build-id=none -Wl,--oformat=binary \
     -Wno-main -T guest/guest.ld guest/start.S guest/guest.c -o";

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-env-changed=CC");
    let image = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("guest.bin");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        std::fs::write(&image, []).expect("an empty guest: the example says that it needs x86_64");
        return;
    }
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(&compiler)
        .args(FLAGS.split_whitespace())
        .arg(&image)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "`{compiler}` cannot build guest/: install build-essential"
    );
}
