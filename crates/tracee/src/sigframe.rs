//! The frame from which rt_sigreturn puts a whole thread back: registers, extended state, signal
//! mask. Layout: struct rt_sigframe of arch/x86 (asm/sigframe.h, asm/sigcontext.h), 64-bit.

use arctern_sys::ptrace::Registers;

use crate::thread::StoppedThread;

const UC_FLAGS: u64 = 0x1 | 0x2 | 0x4; // UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
const UCONTEXT_SIZE: usize = 40 + 256 + 8;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of the software-reserved bytes in the legacy save area.
const SW_RESERVED: usize = 464;

/// Bytes of a frame at an address.
pub(crate) struct SigFrame {
    /// The frame.
    pub(crate) bytes: Vec<u8>,
}

impl SigFrame {
    /// Builds the frame for a thread; `base` must be a multiple of 64. The stack pointer for
    /// rt_sigreturn is `base` itself: the return address in front was popped.
    pub(crate) fn new(thread: &StoppedThread, base: u64) -> SigFrame {
        let regs = resumed(&thread.registers);
        let fp_at = UCONTEXT_SIZE.next_multiple_of(64);
        let mut bytes = vec![0u8; fp_at];
        let mut put = |at: usize, value: u64| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(0, UC_FLAGS);
        // An alternate stack with unknown flags is ignored: the thread keeps its own.
        put(24, 0xffff_ffff);
        let context = [
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rdi,
            regs.rsi,
            regs.rbp,
            regs.rbx,
            regs.rdx,
            regs.rax,
            regs.rcx,
            regs.rsp,
            regs.rip,
            regs.eflags,
        ];
        for (i, value) in context.into_iter().enumerate() {
            put(40 + i * 8, value);
        }
        put(40 + 144, (regs.cs & 0xffff) | (regs.ss & 0xffff) << 48);
        put(40 + 184, base + fp_at as u64);
        put(40 + 256, thread.mask);
        let state = &thread.xstate;
        bytes.extend_from_slice(state);
        if state.len() >= 576 {
            // The header of the XSAVE area tells which components are there.
            let features = u64::from_le_bytes(
                state[SW_RESERVED..SW_RESERVED + 8].try_into().expect("eight bytes"),
            );
            let mut put = |at: usize, value: &[u8]| {
                bytes[fp_at + at..fp_at + at + value.len()].copy_from_slice(value);
            };
            let size = state.len() as u32;
            put(SW_RESERVED, &FP_XSTATE_MAGIC1.to_le_bytes());
            put(SW_RESERVED + 4, &(size + 4).to_le_bytes());
            put(SW_RESERVED + 8, &features.to_le_bytes());
            put(SW_RESERVED + 16, &size.to_le_bytes());
            bytes.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
        }
        SigFrame { bytes }
    }
}

/// The registers with which a thread goes on that nobody traces any more: rt_sigreturn knows no
/// restart of an interrupted system call, so the call is prepared to run again, or to say EINTR
/// where only the kernel knew how much time was left.
pub(crate) fn resumed(at_stop: &Registers) -> Registers {
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    const ERESTARTNOHAND: i64 = -514;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    let mut regs = *at_stop;
    if regs.orig_rax as i64 >= 0 {
        match regs.rax as i64 {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                regs.rax = regs.orig_rax;
                regs.rip = regs.rip.wrapping_sub(2);
            }
            ERESTART_RESTARTBLOCK => regs.rax = -i64::from(libc::EINTR) as u64,
            _ => {}
        }
    }
    regs
}
