//! The machine: KVM's file descriptors, and the loop that serves their exits.
#![allow(unsafe_code, reason = "KVM is handed the address of guest memory")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use virtio_net_backend::device::{Memory, Settings};
use virtio_net_backend::transport::mmio::{self, Nic};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use super::long_mode::{self, Entries, INTERRUPT_VECTOR, KERNEL_STACK};
use super::{CARD_AT, IMAGE, IMAGE_AT, MEMORY, Mailbox, POWER_AT, Task};

/// The interrupt line of the card; any number, since it is routed to a message.
const GSI: u32 = 24;

/// A machine that has not run yet.
#[derive(Debug)]
pub struct Machine {
    /// Dropped before the memory that it maps.
    vcpu: VcpuFd,
    vm: VmFd,
    nic: Nic,
    memory: Arc<Memory>,
}

impl Machine {
    /// A machine with the guest in it and a card with those settings.
    ///
    /// # Errors
    /// When there is no KVM (it is then the cause that can be downcast), or it refuses.
    pub fn new(settings: &Settings, task: Task) -> anyhow::Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = kvm.create_vm()?;
        let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?);
        map(&vm, &memory)?;
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        let nic = Nic::new(settings, Arc::clone(&memory))?;

        // The ten lines that a VMM author needs: a doorbell, an interrupt; and the two exits in `run`.
        vm.register_ioevent(
            nic.doorbell(),
            &IoEventAddress::Mmio(CARD_AT + mmio::NOTIFY),
            NoDatamatch,
        )?;
        vm.register_irqfd(nic.interrupt(), GSI)?;
        vm.set_gsi_routing(&message_route()?)?;

        memory.map().write_slice(IMAGE, GuestAddress(IMAGE_AT))?;
        Mailbox::put(&memory, task)?;
        set_registers(&vcpu, memory.map())?;
        Ok(Self {
            vcpu,
            vm,
            nic,
            memory,
        })
    }

    /// The card, to be served by a network thread.
    #[must_use]
    pub fn nic(&self) -> Nic {
        self.nic.clone()
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// When it crashes, or is not done in time; the text says how far it came.
    pub fn run(self, patience: Duration) -> anyhow::Result<Mailbox> {
        let Self {
            mut vcpu,
            vm,
            nic,
            memory,
        } = self;
        register_signal_handler(SIGRTMIN(), wake)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (done, ended) = mpsc::channel();
        let stopping = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("vcpu".to_owned())
            .spawn(move || {
                let outcome = serve_exits(&mut vcpu, &nic, &stopping);
                // Nobody listens any more when the patience has run out in this moment.
                let _ = done.send(outcome);
            })?;
        let outcome = ended.recv_timeout(patience);
        stop.store(true, Ordering::Release);
        while !thread.is_finished() {
            // A signal ends KVM_RUN, but one that comes just before it is lost: so again.
            thread.kill(SIGRTMIN())?;
            thread::sleep(Duration::from_millis(1));
        }
        drop(vm);
        let mailbox = Mailbox::of(&memory).context("no mailbox")?;
        match outcome {
            Ok(Ok(0)) => Ok(mailbox),
            Ok(Ok(code)) => bail!("the guest ended with {code:#x}: {mailbox:?}"),
            Ok(Err(error)) => Err(error.context(format!("{mailbox:?}"))),
            Err(_) => bail!("the guest was not done in {patience:?}: {mailbox:?}"),
        }
    }
}

/// Serves exits until the guest writes to its power register: what it wrote.
fn serve_exits(vcpu: &mut VcpuFd, nic: &Nic, stop: &AtomicBool) -> anyhow::Result<u32> {
    while !stop.load(Ordering::Acquire) {
        match vcpu.run() {
            Ok(VcpuExit::MmioRead(at, data)) if mmio::holds(CARD_AT, at) => {
                nic.read(at - CARD_AT, data)
            }
            Ok(VcpuExit::MmioWrite(at, data)) if mmio::holds(CARD_AT, at) => {
                nic.write(at - CARD_AT, data)
            }
            Ok(VcpuExit::MmioWrite(POWER_AT, &[a, b, c, d])) => {
                return Ok(u32::from_le_bytes([a, b, c, d]));
            }
            Ok(VcpuExit::Intr) => {}
            Ok(other) => bail!("the guest left in a way that nobody expects: {other:?}"),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("stopped")
}

extern "C" fn wake(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn map(vm: &VmFd, memory: &Memory) -> anyhow::Result<()> {
    let start = memory.whole(0, MEMORY).context("memory in one piece")?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: start.as_raw().0 as u64,
    };
    // SAFETY: the mapping is MEMORY bytes long and `Machine` keeps it longer than the VM: fields drop in order, and
    // `run` drops the VM first.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
}

/// The card's interrupt as a message to the local APIC, which is edge-triggered: no resampling, no IOAPIC.
fn message_route() -> anyhow::Result<KvmIrqRouting> {
    let mut entry = kvm_irq_routing_entry {
        gsi: GSI,
        type_: KVM_IRQ_ROUTING_MSI,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi.address_lo = 0xfee0_0000;
    entry.u.msi.data = u32::from(INTERRUPT_VECTOR);
    KvmIrqRouting::from_entries(&[entry]).map_err(|error| anyhow::anyhow!("{error:?}"))
}

fn set_registers(vcpu: &VcpuFd, memory: &GuestMemoryMmap) -> anyhow::Result<()> {
    let [begin, interrupt, wait, fault]: [u64; 4] = memory.read_obj(GuestAddress(IMAGE_AT))?;
    long_mode::write_tables(
        memory,
        Entries {
            interrupt,
            wait,
            fault,
        },
    )?;
    let mut sregs = vcpu.get_sregs()?;
    long_mode::enter(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rsp, regs.rflags) = (begin, KERNEL_STACK, 2);
    Ok(vcpu.set_regs(&regs)?)
}
