//! libFuzzer at one door: the one that `FUZZ_DOOR` names. All are in one program, so that it is linked once.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static DOOR: LazyLock<fn(&[u8]) -> usize> = LazyLock::new(|| {
    let named = std::env::var("FUZZ_DOOR").expect("FUZZ_DOOR says which door");
    let all = [
        vnet_core::fuzz::DOORS,
        virtio_net_backend::fuzz::DOORS,
        netd::fuzz::DOORS,
    ];
    let mut all = all.into_iter().flatten();
    let found = all.find(|(name, _)| *name == named);
    found.expect("FUZZ_DOOR is the name of a corpus").1
});

fuzz_target!(|bytes: &[u8]| {
    DOOR(bytes);
});
