//! The machine code that runs an array of system calls inside a task.
//!
//! r12 points at the first [`RawCall`], r13 counts them. A negative number is no call but a copy of
//! eight bytes (from arg 0 to arg 1), by which a result becomes an argument of a later call.
//! At the end a stub traps (int3); a live task runs rt_sigreturn on a frame that rsp points at.

/// One call as the gadget reads it.
pub const CALL_SIZE: usize = 64;
/// Offset of the result in it.
pub const RET_OFFSET: usize = 56;
/// Number that means «copy» instead of a system call.
pub const COPY: i64 = -1;

std::arch::global_asm!(
    ".pushsection .rodata",
    ".macro arctern_call_loop after",
    "1: test %r13, %r13",
    "   jz 2f",
    "   mov (%r12), %rax",
    "   mov 8(%r12), %rdi",
    "   mov 16(%r12), %rsi",
    "   test %rax, %rax",
    "   js 3f",
    "   mov 24(%r12), %rdx",
    "   mov 32(%r12), %r10",
    "   mov 40(%r12), %r8",
    "   mov 48(%r12), %r9",
    "   syscall",
    ".globl \\after",
    "\\after:",
    "4: mov %rax, 56(%r12)",
    "   add $64, %r12",
    "   dec %r13",
    "   jmp 1b",
    "3: mov (%rdi), %rax",
    "   mov %rax, (%rsi)",
    "   jmp 4b",
    "2:",
    ".endm",
    ".globl arctern_gadget_stub",
    ".globl arctern_gadget_stub_end",
    ".globl arctern_gadget_live",
    ".globl arctern_gadget_live_end",
    "arctern_gadget_stub:",
    "arctern_call_loop arctern_gadget_stub_after",
    "   int3",
    "5: pause",
    "   jmp 5b",
    "arctern_gadget_stub_end:",
    "arctern_gadget_live:",
    "arctern_call_loop arctern_gadget_live_after",
    "   mov $15, %eax", // rt_sigreturn
    "   syscall",
    "   ud2",
    "arctern_gadget_live_end:",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    static arctern_gadget_stub: u8;
    static arctern_gadget_stub_end: u8;
    static arctern_gadget_live: u8;
    static arctern_gadget_live_end: u8;
    static arctern_gadget_live_after: u8;
}

fn code(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both symbols delimit bytes of our own read-only data, defined above in this order.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// The code for a task of our own.
pub fn for_stub() -> &'static [u8] {
    code(&raw const arctern_gadget_stub, &raw const arctern_gadget_stub_end)
}

/// The code for a live task.
pub fn for_live() -> &'static [u8] {
    code(&raw const arctern_gadget_live, &raw const arctern_gadget_live_end)
}

/// Offset in [`for_live`] of the instruction after the system call: where a thread stands when it
/// stops in the batch's last call.
pub fn live_stop_offset() -> u64 {
    (&raw const arctern_gadget_live_after) as u64 - (&raw const arctern_gadget_live) as u64
}

/// Registers by their `mov r64, imm64` opcodes.
const MOV: [(u8, u8); 10] = [
    (0x48, 0xb8), // rax
    (0x48, 0xb9), // rcx
    (0x48, 0xba), // rdx
    (0x48, 0xbb), // rbx
    (0x48, 0xbe), // rsi
    (0x48, 0xbf), // rdi
    (0x49, 0xb8), // r8
    (0x49, 0xb9), // r9
    (0x49, 0xba), // r10
    (0x49, 0xbb), // r11
];
const RAX: usize = 0;
const RDX: usize = 2;
const RSI: usize = 4;
const RDI: usize = 5;
const R10: usize = 8;

/// What a trampoline puts back when nobody is left to do it.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// rax, rcx, rdx, rbx, rsi, rdi, r8, r9, r10, r11.
    pub registers: [u64; 10],
    /// Where the thread goes on.
    pub resume: u64,
    /// Its blocked signals.
    pub mask: u64,
}

/// The code for one call in a live thread, without any memory but itself.
///
/// It runs the call that the registers hold, keeps the result in rbx, and sends its own thread the
/// signal `stop`, at which a traced thread stops and which an untraced one ignores. What follows
/// runs only if the controller died meanwhile: it puts the signal mask and every register that was
/// used back, and jumps on. The stack is not touched and the flags never change.
pub fn trampoline(stop: StopSignal, recovery: &Recovery) -> Trampoline {
    let mut code = vec![0x0f, 0x05, 0x48, 0x89, 0xc3]; // syscall; mov rbx, rax
    let mov = |code: &mut Vec<u8>, register: usize, value: u64| {
        code.extend([MOV[register].0, MOV[register].1]);
        code.extend(value.to_le_bytes());
    };
    mov(&mut code, RAX, libc::SYS_tgkill as u64);
    mov(&mut code, RDI, stop.tgid as u64);
    mov(&mut code, RSI, stop.tid as u64);
    mov(&mut code, RDX, stop.signal as u64);
    code.extend([0x0f, 0x05]);
    let stop_offset = code.len() as u64;
    // rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8)
    mov(&mut code, RAX, libc::SYS_rt_sigprocmask as u64);
    mov(&mut code, RDI, libc::SIG_SETMASK as u64);
    mov(&mut code, RDX, 0);
    mov(&mut code, R10, 8);
    code.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip + mask]
    let lea_operand = code.len();
    code.extend([0; 4]);
    code.extend([0x0f, 0x05]);
    for (register, value) in recovery.registers.into_iter().enumerate() {
        mov(&mut code, register, value);
    }
    code.extend([0xff, 0x25, 0, 0, 0, 0]); // jmp [rip + 0]
    code.extend(recovery.resume.to_le_bytes());
    let mask_at = code.len();
    code.extend(recovery.mask.to_le_bytes());
    let relative = (mask_at - (lea_operand + 4)) as u32;
    code[lea_operand..lea_operand + 4].copy_from_slice(&relative.to_le_bytes());
    Trampoline { code, stop_offset }
}

/// Bytes of a trampoline and where in them a traced thread stops.
#[derive(Clone, Debug)]
pub struct Trampoline {
    /// Machine code.
    pub code: Vec<u8>,
    /// Offset of the instruction at which the thread stands in its stop.
    pub stop_offset: u64,
}

/// The signal by which a live thread stops at the end of a batch, and whom it goes to (ids in the
/// thread's own pid namespace).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal {
    /// Thread group.
    pub tgid: i32,
    /// Thread.
    pub tid: i32,
    /// Signal whose disposition is «ignore».
    pub signal: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_small_and_starts_with_the_loop() {
        assert_eq!(for_stub()[..3], for_live()[..3]);
        assert!(for_live().len() < 128);
        let after = live_stop_offset() as usize;
        assert_eq!(for_live()[after - 2..after], [0x0f, 0x05], "a system call comes before");
    }

    #[test]
    fn a_trampoline_holds_its_mask_last() {
        let recovery = Recovery { registers: [1; 10], resume: 2, mask: 3 };
        let stop = StopSignal { tgid: 7, tid: 8, signal: 23 };
        let made = trampoline(stop, &recovery);
        assert_eq!(made.code[..2], [0x0f, 0x05]);
        assert_eq!(made.code[made.code.len() - 8..], 3u64.to_le_bytes());
        let at = made.stop_offset as usize;
        assert_eq!(made.code[at - 2..at], [0x0f, 0x05]);
        assert!(made.code.len() < 256);
    }
}
