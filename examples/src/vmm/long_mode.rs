//! The tables of a processor in long mode, written into the guest's memory before it starts.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
/// 2 MiB pages of the first and of the fourth GiB.
const LOW: u64 = 0x3000;
const HIGH: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
/// Top of the stack that interrupts switch to.
pub(super) const KERNEL_STACK: u64 = 0x9000;

/// The ways back to CPL0, from the head of the guest's image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    pub interrupt: u64,
    pub wait: u64,
    pub fault: u64,
}

/// The vector of the card's interrupt, and of `ud2`.
pub(super) const INTERRUPT_VECTOR: u8 = 0x41;
const INVALID_OPCODE: usize = 6;

/// Writes all tables.
pub(super) fn write_tables(memory: &GuestMemoryMmap, entries: Entries) -> anyhow::Result<()> {
    const USER_PAGE: u64 = 0b111;
    const LARGE: u64 = 1 << 7;
    memory.write_obj(PDPT | USER_PAGE, GuestAddress(PML4))?;
    for (table, gib) in [(LOW, 0), (HIGH, 3)] {
        memory.write_obj(table | USER_PAGE, GuestAddress(PDPT + gib * 8))?;
        for page in 0..512 {
            let at = gib << 30 | page << 21;
            memory.write_obj(at | USER_PAGE | LARGE, GuestAddress(table + page * 8))?;
        }
    }
    // Null; code and data of CPL0; data and code of CPL3; TSS in two words.
    let tss_low = 0x67 | (TSS & 0xff_ffff) << 16 | 0x89 << 40;
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss_low,
        0,
    ];
    for (word, at) in gdt.into_iter().zip((GDT..).step_by(8)) {
        memory.write_obj::<u64>(word, GuestAddress(at))?;
    }
    for vector in 0..256 {
        let target = match vector {
            INVALID_OPCODE => entries.wait,
            vector if vector == usize::from(INTERRUPT_VECTOR) => entries.interrupt,
            _ => entries.fault,
        };
        let gate = (target & 0xffff) | 0x8 << 16 | 0x8e00 << 32 | (target >> 16 & 0xffff) << 48;
        let at = IDT + 16 * vector as u64;
        memory.write_obj(gate, GuestAddress(at))?;
        memory.write_obj(target >> 32, GuestAddress(at + 8))?;
    }
    memory.write_obj(KERNEL_STACK, GuestAddress(TSS + 4))?;
    // No I/O bitmap: the guest uses no ports.
    memory.write_obj(0x68u16, GuestAddress(TSS + 0x66))?;
    Ok(())
}

/// Puts a processor into long mode at CPL0, over those tables.
pub(super) fn enter(sregs: &mut kvm_sregs) {
    let segment = |selector, type_, long| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l: long,
        db: 1 - long,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = segment(0x8, 11, 1);
    let data = segment(0x10, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: 0x28,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 7 * 8 - 1,
        ..kvm_dtable::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 0xfff,
        ..kvm_dtable::default()
    };
    sregs.cr3 = PML4;
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10; // PAE, and SSE for the CPL3 part
    sregs.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31; // PE, MP, ET, NE, PG
    sregs.efer = 1 << 8 | 1 << 10; // LME, LMA
}
