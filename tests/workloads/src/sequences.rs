//! Restartable sequences (rseq(2)): threads that count in a critical section all the time. One that
//! is stopped inside must go on at its abort handler.

use crate::must;
use crate::stage::{Checks, Stage};
use std::arch::asm;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where the C library has registered the calling thread's area, None if it has not.
fn area() -> Option<usize> {
    // SAFETY: NUL-terminated names.
    let offset =
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) } as *const isize;
    let size = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) } as *const u32;
    // SAFETY: the C library exports variables of these types under these names.
    if offset.is_null() || size.is_null() || unsafe { *size } == 0 {
        return None;
    }
    let pointer: usize;
    // SAFETY: fs:0 holds the thread pointer in the x86_64 ABI.
    unsafe { asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly)) };
    // SAFETY: as above.
    Some(pointer.wrapping_add_signed(unsafe { *offset }))
}

/// Runs a section that counts to `turns` in a register and then stores `value` in `word`: the store is
/// its commit. True if it was committed, false if it was aborted.
fn section(area: usize, word: &AtomicU64, value: u64, turns: u64) -> bool {
    let committed: u64;
    // SAFETY: the descriptor (struct rseq_cs: version and flags, start, length, abort) is read-only
    // data of this program; 8 bytes at area + 8 are rseq_cs; RSEQ_SIG of x86 stands before the abort
    // handler, as the C library registered it.
    unsafe {
        asm!(
            ".pushsection .data.rel.ro.rseq_cs, \"aw\"",
            ".balign 32",
            "77:",
            ".long 0, 0",
            ".quad 71f, 72f - 71f, 74f",
            ".popsection",
            "lea {scratch}, [rip + 77b]",
            "mov qword ptr [{area} + 8], {scratch}",
            "71:",
            "73: dec {turns}",
            "jnz 73b",
            "mov qword ptr [{word}], {value}",
            "72:",
            "mov {committed}, 1",
            "jmp 75f",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "74:",
            "mov {committed}, 0",
            "75:",
            "mov qword ptr [{area} + 8], 0",
            area = in(reg) area, word = in(reg) word.as_ptr(), value = in(reg) value,
            turns = inout(reg) turns => _, scratch = out(reg) _, committed = out(reg) committed,
            options(nostack));
    }
    committed == 1
}

/// Two threads in such sections nearly all the time.
pub fn rseq_section(stage: &Stage, checks: &mut Checks) {
    if area().is_none() {
        stage.skip("the C library has registered no restartable sequences");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let rounds: Arc<[AtomicU64; 2]> = Arc::default();
    let threads: Vec<_> = (0..2)
        .map(|index| {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            std::thread::spawn(move || {
                let Some(area) = area() else { return u64::MAX };
                let word = AtomicU64::new(0);
                let (mut value, mut wrong) = (1, 0);
                while !stop.load(Ordering::Relaxed) {
                    let before = word.load(Ordering::Relaxed);
                    // What was aborted must not have stored.
                    let want = if section(area, &word, value, 2_000_000) { value } else { before };
                    wrong += u64::from(word.load(Ordering::Relaxed) != want);
                    value += 1;
                    rounds[index].fetch_add(1, Ordering::Relaxed);
                }
                wrong
            })
        })
        .collect();
    let wait = |more: u64| {
        for round in rounds.iter() {
            let want = round.load(Ordering::Relaxed) + more;
            while round.load(Ordering::Relaxed) < want {
                must!(libc::usleep(1000));
            }
        }
    };
    wait(3);
    stage.ready();
    stage.wait_for_verify();
    wait(3);
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        checks.eq("sections that went on without their abort", Some(0), thread.join().ok());
    }
}
