//! Remote calls in threads of a program that must go on afterwards.
//!
//! A session belongs to one address space. Its code lies in the unused end of the vDSO's last page
//! (a private copy, as for a debugger's breakpoint), its data in one anonymous mapping. Both are
//! gone after [`LiveSession::close`].
//!
//! If the controller dies, its tasks run on at once, so at every moment the thread's own path leads
//! back to where it was: see [`gadget::trampoline`] and [`gadget::for_live`]. At most the mapping
//! stays behind.

use std::io;

use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::ptrace::{self, EVENT_STOP, WaitStatus};
use arctern_sys::{PAGE_SIZE, Pid};

use crate::batch::{Batch, Pause};
use crate::error::TraceeError;
use crate::gadget::{self, Recovery, StopSignal};
use crate::sigframe::{SigFrame, resumed};
use crate::thread::StoppedThread;

/// Room for one thread's signal frame and calls when several threads run at a time. The frame of a
/// processor with AMX takes 12 KiB.
const SLOT_SIZE: u64 = 32 * 1024;
const HEADROOM: u64 = 8 * 1024;
const DATA_SIZE: u64 = 1024 * 1024;
/// Room that the gadget needs in the vDSO: the loop and a trampoline.
const CAVE_SIZE: u64 = 512;
const TRAMPOLINE_OFFSET: u64 = 128;

/// Signals that are ignored by default and whose sending has no other effect.
const STOP_SIGNALS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

/// Where a process's vDSO is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vdso {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

/// What a session must know of the thread in which it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadSignals {
    /// Thread group id in the thread's own pid namespace.
    pub inner_tgid: i32,
    /// Caught signals of the process (`SigCgt`).
    pub caught: u64,
}

/// A part of the data area: a frame, then calls.
#[derive(Clone, Copy)]
struct Slot {
    at: RemoteAddr,
    size: u64,
}

/// A batch that a thread is running.
struct Started {
    signal: i32,
    calls_at: RemoteAddr,
    with_stop: Batch,
}

/// An open session in one live address space.
#[derive(Debug)]
pub struct LiveSession {
    pid: Pid,
    cave: u64,
    saved_cave: Vec<u8>,
    data: RemoteAddr,
    signals: ThreadSignals,
    frame_of: Option<Pid>,
}

impl LiveSession {
    /// Opens a session in the address space of `thread`, which is stopped, as all other threads
    /// that share the address space must be.
    pub fn open(
        pid: Pid,
        thread: &mut StoppedThread,
        vdso: Vdso,
        signals: ThreadSignals,
    ) -> Result<Self, TraceeError> {
        let (cave, saved_cave) = find_cave(pid, vdso)?;
        let tid = thread.tid;
        let mut session =
            LiveSession { pid, cave, saved_cave, data: RemoteAddr(0), signals, frame_of: None };
        session.poke(tid, cave, gadget::for_live())?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapped = session.single_call(
            thread,
            libc::SYS_mmap,
            [0, DATA_SIZE, prot as u64, flags as u64, u64::MAX, 0],
        );
        match mapped {
            Ok(addr) => session.data = RemoteAddr(addr),
            Err(e) => {
                session.restore_cave(tid)?;
                return Err(e);
            }
        }
        Ok(session)
    }

    /// Runs the calls of `batch` in `thread`.
    pub fn run(
        &mut self,
        thread: &mut StoppedThread,
        batch: &mut Batch,
    ) -> Result<(), TraceeError> {
        if batch.is_empty() {
            return Ok(());
        }
        let whole = Slot { at: self.data, size: DATA_SIZE };
        let started = self.start(thread, batch, whole)?;
        self.finish(thread, batch, &started)
    }

    /// As [`LiveSession::run`], and calls `middle` while the thread stands at the pause, with the
    /// results of the calls before it. If this program dies there, the thread makes the calls after the
    /// pause by itself.
    pub fn run_paused<T>(
        &mut self,
        thread: &mut StoppedThread,
        batch: &mut Batch,
        pause: Pause,
        middle: impl FnOnce(&Batch) -> T,
    ) -> Result<T, TraceeError> {
        let whole = Slot { at: self.data, size: DATA_SIZE };
        let started = self.start(thread, batch, whole)?;
        let stop = self.cave + gadget::live_stop_offset();
        let left = started.with_stop.left_at(pause);
        self.wait_for_stop(thread.tid, started.signal, stop, Some(left))?;
        self.take_results(thread.tid, batch, &started)?;
        let result = middle(batch);
        ptrace::cont(thread.tid, 0).map_err(TraceeError::request(thread.tid, "resume"))?;
        self.finish(thread, batch, &started)?;
        Ok(result)
    }

    /// Runs a batch in each of several threads at the same time: the waiting for one overlaps with
    /// the work of the others. All batches must be small (4 KiB).
    pub fn run_each(
        &mut self,
        threads: &mut [StoppedThread],
        batches: &mut [Batch],
    ) -> Result<(), TraceeError> {
        assert_eq!(threads.len(), batches.len(), "a batch a thread");
        let slots = (DATA_SIZE / SLOT_SIZE) as usize;
        for (threads, batches) in threads.chunks_mut(slots).zip(batches.chunks_mut(slots)) {
            let mut started = Vec::with_capacity(threads.len());
            for (i, (thread, batch)) in threads.iter_mut().zip(batches.iter()).enumerate() {
                let slot = Slot { at: self.data.offset(i as u64 * SLOT_SIZE), size: SLOT_SIZE };
                self.frame_of = None;
                started.push(self.start(thread, batch, slot)?);
            }
            for ((thread, batch), started) in threads.iter_mut().zip(batches).zip(&started) {
                self.finish(thread, batch, started)?;
            }
        }
        self.frame_of = None;
        Ok(())
    }

    /// Lets `thread` begin with a batch whose frame and calls lie in `slot`.
    fn start(
        &mut self,
        thread: &mut StoppedThread,
        batch: &Batch,
        slot: Slot,
    ) -> Result<Started, TraceeError> {
        // Below the frame there is room for a handler that runs while nobody traces.
        let slot = Slot { at: slot.at.offset(HEADROOM), size: slot.size - HEADROOM };
        let stop = self.stop_signal(thread);
        let request = TraceeError::request;
        let frame = SigFrame::new(thread, slot.at.0);
        let frame_room = (frame.bytes.len() as u64).next_multiple_of(64);
        let calls_at = slot.at.offset(frame_room);
        // The last call makes the thread stop; it is not part of the caller's batch.
        let mut with_stop = batch.clone();
        let to_itself = [stop.tgid.into(), stop.tid.into(), stop.signal.into()];
        with_stop.set_pauses(libc::SYS_tgkill, to_itself);
        with_stop.call(libc::SYS_tgkill, &to_itself);
        let bytes = with_stop.encode(calls_at.0);
        let room = slot.size.saturating_sub(frame_room) as usize;
        if bytes.len() > room {
            return Err(TraceeError::BatchTooLarge { bytes: bytes.len(), room });
        }
        let (at, bytes) = if self.frame_of == Some(thread.tid) {
            (calls_at, bytes)
        } else {
            let mut both = frame.bytes;
            both.resize(frame_room as usize, 0);
            both.extend_from_slice(&bytes);
            (slot.at, both)
        };
        memory::write(self.pid, at, &bytes).map_err(request(thread.tid, "write the memory"))?;
        self.frame_of = Some(thread.tid);
        thread.disturb();
        let mut regs = thread.registers;
        regs.rip = self.cave;
        regs.rsp = slot.at.0;
        regs.r12 = calls_at.0;
        regs.r13 = with_stop.len() as u64;
        regs.rax = 0;
        regs.orig_rax = u64::MAX;
        // Registers first: if we die in between, the thread runs the gadget with its own mask and
        // gets home. The other way round it would go on with every signal blocked.
        ptrace::set_registers(thread.tid, &regs)
            .map_err(request(thread.tid, "set the registers"))?;
        self.block_signals(thread, stop.signal)?;
        ptrace::cont(thread.tid, 0).map_err(request(thread.tid, "resume"))?;
        Ok(Started { signal: stop.signal, calls_at, with_stop })
    }

    /// Waits for the end of a started batch and takes its results.
    fn finish(
        &self,
        thread: &mut StoppedThread,
        batch: &mut Batch,
        started: &Started,
    ) -> Result<(), TraceeError> {
        let end = self.cave + gadget::live_stop_offset();
        self.wait_for_stop(thread.tid, started.signal, end, Some(1))?;
        // From here on neither the frame nor the gadget is needed: other batches may overwrite them,
        // and the session may be closed, while this thread waits.
        thread.put_back()?;
        self.take_results(thread.tid, batch, started)
    }

    fn take_results(
        &self,
        tid: Pid,
        batch: &mut Batch,
        started: &Started,
    ) -> Result<(), TraceeError> {
        let Started { calls_at, with_stop, .. } = started;
        let mut back = vec![0; with_stop.read_back()];
        memory::read(self.pid, *calls_at, &mut back)
            .map_err(TraceeError::request(tid, "read the memory"))?;
        let arena = back.split_off(with_stop.len() * gadget::CALL_SIZE);
        back.truncate(batch.len() * gadget::CALL_SIZE);
        back.extend(arena);
        batch.decode(&back[..batch.read_back()]);
        Ok(())
    }

    /// Removes data and code. `thread` is any stopped thread of the address space.
    pub fn close(mut self, thread: &mut StoppedThread) -> Result<(), TraceeError> {
        let unmapped =
            self.single_call(thread, libc::SYS_munmap, [self.data.0, DATA_SIZE, 0, 0, 0, 0]);
        self.restore_cave(thread.tid)?;
        unmapped.map(drop)
    }

    /// The mapping that the session added: not the program's.
    pub fn data_range(&self) -> (u64, u64) {
        (self.data.0, self.data.0 + DATA_SIZE)
    }

    /// Where the session's code lies in the vDSO, and the bytes that were there before.
    pub fn replaced_code(&self) -> (u64, Vec<u8>) {
        (self.cave, self.saved_cave.clone())
    }

    fn stop_signal(&self, thread: &StoppedThread) -> StopSignal {
        let free = |signal: &i32| {
            let bit = 1 << (signal - 1);
            self.signals.caught & bit == 0 && thread.mask & bit == 0
        };
        // A program that handles or blocks all of them is still captured; only if the controller
        // dies in the middle of a call does it see one signal too many.
        let signal = STOP_SIGNALS.into_iter().find(free).unwrap_or(libc::SIGURG);
        StopSignal { tgid: self.signals.inner_tgid, tid: thread.inner_tid, signal }
    }

    fn block_signals(&self, thread: &StoppedThread, but: i32) -> Result<(), TraceeError> {
        ptrace::set_signal_mask(thread.tid, !(1u64 << (but - 1)))
            .map_err(TraceeError::request(thread.tid, "block the signals"))
    }

    /// One call that needs no memory.
    fn single_call(
        &mut self,
        thread: &mut StoppedThread,
        nr: i64,
        args: [u64; 6],
    ) -> Result<u64, TraceeError> {
        let stop = self.stop_signal(thread);
        let regs = resumed(&thread.registers);
        let recovery = Recovery {
            registers: [
                regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsi, regs.rdi, regs.r8, regs.r9,
                regs.r10, regs.r11,
            ],
            resume: regs.rip,
            mask: thread.mask,
        };
        let trampoline = gadget::trampoline(stop, &recovery);
        let at = self.cave + TRAMPOLINE_OFFSET;
        self.poke(thread.tid, at, &trampoline.code)?;
        thread.disturb();
        let mut regs = thread.registers;
        regs.rip = at;
        regs.rax = nr as u64;
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        ptrace::set_registers(thread.tid, &regs)
            .map_err(TraceeError::request(thread.tid, "set the registers"))?;
        self.block_signals(thread, stop.signal)?;
        ptrace::cont(thread.tid, 0).map_err(TraceeError::request(thread.tid, "resume"))?;
        self.wait_for_stop(thread.tid, stop.signal, at + trampoline.stop_offset, None)?;
        let result = ptrace::registers(thread.tid)
            .map_err(TraceeError::request(thread.tid, "read the registers"))?
            .rbx as i64;
        thread.put_back()?;
        if (-4095..0).contains(&result) {
            return Err(TraceeError::Call {
                tid: thread.tid,
                name: format!("number {nr} of the gadget"),
                source: io::Error::from_raw_os_error(-result as i32),
            });
        }
        Ok(result as u64)
    }

    /// Waits until the running thread's own signal stops it at `address`.
    fn wait_for_stop(
        &self,
        tid: Pid,
        signal: i32,
        address: u64,
        calls_left: Option<u64>,
    ) -> Result<(), TraceeError> {
        loop {
            let status = ptrace::wait(tid).map_err(TraceeError::request(tid, "wait"))?;
            match status {
                WaitStatus::Exited(_) | WaitStatus::Killed(_) => {
                    return Err(TraceeError::Died { tid });
                }
                WaitStatus::Signal(seen) if seen == signal => {
                    let regs = ptrace::registers(tid)
                        .map_err(TraceeError::request(tid, "read the registers"))?;
                    if regs.rip == address && calls_left.is_none_or(|n| regs.r13 == n) {
                        return Ok(());
                    }
                    // Somebody else sent the signal, which the program ignores: so do we.
                }
                // A group stop that was pending: it takes effect again after the detach.
                WaitStatus::Event { event: EVENT_STOP, .. } => {}
                WaitStatus::Signal(_) | WaitStatus::Event { .. } => {
                    let regs = ptrace::registers(tid).map(|r| r.rip).unwrap_or(0);
                    return Err(TraceeError::UnexpectedStop {
                        tid,
                        status: format!("{status:?} at {regs:#x}"),
                    });
                }
            }
            ptrace::cont(tid, 0).map_err(TraceeError::request(tid, "resume"))?;
        }
    }

    fn poke(&self, tid: Pid, addr: u64, bytes: &[u8]) -> Result<(), TraceeError> {
        if memory::write_forced(self.pid, RemoteAddr(addr), bytes).is_ok() {
            return Ok(());
        }
        // The kernel may forbid that; a tracer's own request it cannot.
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0x90; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            ptrace::poke(tid, addr + i as u64 * 8, u64::from_le_bytes(word))
                .map_err(TraceeError::request(tid, "write the vDSO"))?;
        }
        Ok(())
    }

    fn restore_cave(&self, tid: Pid) -> Result<(), TraceeError> {
        self.poke(tid, self.cave, &self.saved_cave)
    }
}

/// The unused bytes between the end of the vDSO's loaded segment and the end of its mapping: where
/// they begin, and what they hold.
fn find_cave(pid: Pid, vdso: Vdso) -> Result<(u64, Vec<u8>), TraceeError> {
    /// Longest vDSO that is looked at; they take two pages.
    const MOST: u64 = 64 * 1024;
    let missing = |why| TraceeError::NoVdso { pid, why };
    let length = vdso.end.saturating_sub(vdso.start);
    if !(CAVE_SIZE..=MOST).contains(&length) {
        return Err(missing("its mapping has an unknown size"));
    }
    let mut image = vec![0; length as usize];
    memory::read(pid, RemoteAddr(vdso.start), &mut image)
        .map_err(TraceeError::request(pid, "read the vDSO"))?;
    if &image[..4] != b"\x7fELF" || image[4] != 2 {
        return Err(missing("it is not a 64-bit ELF image"));
    }
    let half = |at: usize| u64::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let word = |at: u64| -> Option<u64> {
        let bytes = image.get(usize::try_from(at).ok()?..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let (table, size, count) = (word(32).unwrap_or(u64::MAX), half(54), half(56));
    let mut end = 0;
    for i in 0..count.min(64) {
        // p_type and p_flags; p_vaddr and p_memsz (elf(5)).
        let entry = table.saturating_add(i * size);
        let fields = (word(entry), word(entry.saturating_add(16)), word(entry.saturating_add(40)));
        let (Some(kind), Some(address), Some(length)) = fields else {
            return Err(missing("its program headers lie outside of it"));
        };
        if kind as u32 == libc::PT_LOAD {
            end = end.max(address.saturating_add(length));
        }
    }
    let cave = (vdso.end & !(PAGE_SIZE - 1)).saturating_sub(CAVE_SIZE);
    if end == 0 || vdso.start.saturating_add(end) > cave {
        return Err(missing("its last page has no room"));
    }
    let at = (cave - vdso.start) as usize;
    Ok((cave, image[at..at + CAVE_SIZE as usize].to_vec()))
}
