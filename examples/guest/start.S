/* What runs at CPL0: the way down to CPL3, and the three ways back. No SSE here, and little of anything: where KVM
   itself runs in a guest without VMX, CPL0 code is emulated, at a thousandth of the speed of CPL3. */

.section .start, "ax"
        /* The VMM reads these four addresses from the head of the image. */
        .quad begin, on_interrupt, on_wait, on_fault

begin:  mov     $0xfee000f0, %eax       /* local APIC: spurious vector 255, and on */
        movl    $0x1ff, (%rax)
        pushq   $0x1b                   /* ss, rsp, rflags with IF, cs, rip of CPL3 */
        pushq   $0x3ffff8
        pushq   $0x202
        pushq   $0x23
        pushq   $main
        iretq

on_interrupt:
        push    %rax
        incl    interrupts(%rip)
        mov     $0xfee000b0, %eax       /* end of interrupt */
        movl    $0, (%rax)
        pop     %rax
        iretq

/* `ud2` with edi = interrupts seen so far: sleep unless one came since. Interrupts are off from the look to the halt. */
on_wait:
        addq    $2, (%rsp)
        cmp     %edi, interrupts(%rip)
        jne     1f
        sti
        hlt
1:      iretq

on_fault:
        mov     $0xd0001000, %eax       /* the VMM ends the guest and says that it crashed */
        movl    $0xdead, (%rax)
        jmp     on_fault
