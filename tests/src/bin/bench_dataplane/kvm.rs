//! A guest on KVM in this very process: that of `examples/guest`, its driver at CPL3, its port guarded. Its frames go
//! through rings, device and switch to the host's port, where they are counted.

/// K1: how fast 64 bytes get to the switch.
#[cfg(target_arch = "x86_64")]
pub(crate) fn example_vmm(rounds: usize) -> anyhow::Result<()> {
    use std::fs::File;
    use std::time::{Duration, Instant};

    use anyhow::Context as _;
    use examples::scenario;
    use examples::vmm::Task;
    use rustix::time::{ClockId, clock_gettime};

    use crate::table::{line, median};

    const FRAMES: u32 = 4_000_000;

    let mut device = File::options();
    device
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("/dev/kvm")?;
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Duration::new(time.tv_sec.unsigned_abs(), nanos)
    };
    let (mut rates, mut cost, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (start, before) = (Instant::now(), cpu());
        let outcome = scenario::run(Task {
            pings: 1,
            flood: FRAMES,
        })?;
        anyhow::ensure!(
            outcome.frames == u64::from(FRAMES),
            "frames were lost: {outcome}"
        );
        let used = (cpu() - before).as_secs_f64();
        rates.push(outcome.rate() / 1e6);
        cost.push(used * 1e9 / f64::from(FRAMES));
        busy.push(used / start.elapsed().as_secs_f64());
    }
    let note = format!(
        "Mpps, {:.0} ns CPU a frame, guest included; {:.2} cores {rates:.2?}",
        median(&cost),
        median(&busy)
    );
    let measure = "example VMM to the switch, 64 B";
    line(
        "K1",
        measure,
        "virtio-net-backend",
        median(&rates),
        None,
        &note,
    );
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn example_vmm(_rounds: usize) -> anyhow::Result<()> {
    anyhow::bail!("the guest is x86_64 code")
}
