//! Tasks of our own that are built up by remote calls.
//!
//! A stub begins as a clone of the controller that executes nothing ([`Stub::adopt`]). It gets the
//! gadget at an address that is free in everything that will be built, and loses the rest. Its
//! children are made by remote clone3 and have the gadget at the same place from the start.
//! PTRACE_O_EXITKILL removes them all if the controller dies.

use std::io;

use arctern_sys::clone::{CloneArgs, stub_syscall_address};
use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::pidfd::PidFd;
use arctern_sys::ptrace::{self, EVENT_CLONE_MAX, EVENT_STOP, WaitStatus};
use arctern_sys::{PAGE_SIZE, Pid};

use crate::batch::Batch;
use crate::error::TraceeError;
use crate::gadget;
use crate::thread::wait_for_stop;

/// Size of the gadget: a page of code, then data.
pub const GADGET_SIZE: u64 = PAGE_SIZE + DATA_SIZE;
const DATA_SIZE: u64 = 1024 * 1024;
/// All signals but SIGTRAP: the kernel resets the disposition of a trap that is blocked.
const BLOCK_ALL: u64 = !(1 << (libc::SIGTRAP - 1));

/// Bytes that one batch may take.
pub const BATCH_ROOM: usize = DATA_SIZE as usize;

/// A stopped thread of a task under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    tid: Pid,
    gadget: u64,
    /// Where its calls go in the data area, and how much room they have.
    area: (u64, u64),
}

impl Stub {
    /// Takes a child that [`arctern_sys::clone::spawn_stub`] made: seizes it and maps the gadget at
    /// `gadget`, which must be free in it. Everything else is still the controller's copy.
    pub fn adopt(tid: Pid, gadget: u64) -> Result<Self, TraceeError> {
        let options = ptrace::O_EXITKILL | ptrace::O_TRACE_CHILDREN;
        ptrace::seize(tid, options).map_err(TraceeError::request(tid, "seize"))?;
        ptrace::interrupt(tid).map_err(TraceeError::request(tid, "interrupt"))?;
        if !wait_for_stop(tid)? {
            return Err(TraceeError::Died { tid });
        }
        let stub = Stub { tid, gadget, area: (0, DATA_SIZE) };
        stub.block_signals()?;
        // From here on the tracer's death kills it, and its parent's must not.
        let args = [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0];
        stub.step_call(stub_syscall_address(), "prctl", libc::SYS_prctl, args)?;
        let map = |addr: u64, len: u64, prot: i32| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let args = [addr, len, prot as u64, flags as u64, u64::MAX, 0];
            stub.step_call(stub_syscall_address(), "mmap", libc::SYS_mmap, args)
        };
        // The kernel writes into the registered area at every switch: unregister before unmapping.
        let rseq = ptrace::rseq_configuration(tid).unwrap_or_default();
        if rseq.pointer != 0 {
            let args = [rseq.pointer, rseq.size.into(), 1, rseq.signature.into(), 0, 0];
            stub.step_call(stub_syscall_address(), "rseq", libc::SYS_rseq, args)?;
        }
        map(gadget, PAGE_SIZE, libc::PROT_READ | libc::PROT_EXEC)?;
        map(gadget + PAGE_SIZE, DATA_SIZE, libc::PROT_READ | libc::PROT_WRITE)?;
        for (i, chunk) in gadget::for_stub().chunks(8).enumerate() {
            let mut word = [0x90; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            ptrace::poke(tid, gadget + i as u64 * 8, u64::from_le_bytes(word))
                .map_err(TraceeError::request(tid, "write the gadget"))?;
        }
        Ok(stub)
    }

    /// The thread, as the controller sees it.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Runs the calls of `batch`. Results, errors too, are in the batch.
    pub fn run(&self, batch: &mut Batch) -> Result<(), TraceeError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.start(batch)?;
        self.finish(batch)
    }

    /// Runs the calls of `batch` and turns the first failed one into an error that says `what`.
    pub fn run_all(&self, batch: &mut Batch, what: &str) -> Result<(), TraceeError> {
        self.run(batch)?;
        match batch.first_error() {
            None => Ok(()),
            Some((_, nr, source)) => Err(TraceeError::Call {
                tid: self.tid,
                name: format!("number {nr} ({what})"),
                source,
            }),
        }
    }

    /// Runs one call.
    pub fn call(&self, what: &str, nr: i64, args: &[crate::Arg]) -> Result<u64, TraceeError> {
        let mut batch = Batch::new();
        let call = batch.call(nr, args);
        self.run(&mut batch)?;
        batch.result(call).map_err(|source| TraceeError::Call {
            tid: self.tid,
            name: what.to_owned(),
            source,
        })
    }

    /// Clones the stub (clone3). The child is a stub with the gadget at the same address, stopped
    /// before its first instruction. `set_tid` lists the wanted ids, innermost namespace first.
    pub fn clone_child(
        &self,
        flags: u64,
        exit_signal: i32,
        set_tid: &[i32],
    ) -> Result<Stub, TraceeError> {
        let mut batch = Batch::new();
        let tids: Vec<u8> = set_tid.iter().flat_map(|t| t.to_ne_bytes()).collect();
        let tids = batch.bytes(&tids);
        let args = CloneArgs {
            flags,
            exit_signal: exit_signal as u64,
            set_tid_size: set_tid.len() as u64,
            ..CloneArgs::default()
        };
        let args = batch.bytes(&args.to_bytes());
        if !set_tid.is_empty() {
            batch.pointer(args.at(64), tids);
        }
        let call = batch.call(libc::SYS_clone3, &[args.into(), 88.into()]);
        self.start(&batch)?;
        let mut child = None;
        loop {
            let status = ptrace::wait(self.tid).map_err(TraceeError::request(self.tid, "wait"))?;
            match status {
                WaitStatus::Event { event, .. } if event <= EVENT_CLONE_MAX => {
                    let tid = ptrace::event_message(self.tid)
                        .map_err(TraceeError::request(self.tid, "read the event"))?;
                    child = Some(Pid(tid as i32));
                }
                WaitStatus::Signal(libc::SIGTRAP) => break,
                WaitStatus::Event { event: EVENT_STOP, .. } => {}
                other => return Err(self.unexpected(other)),
            }
            ptrace::cont(self.tid, 0).map_err(TraceeError::request(self.tid, "resume"))?;
        }
        self.read_back(&mut batch)?;
        batch.result(call).map_err(|source| TraceeError::Call {
            tid: self.tid,
            name: format!("clone3 of a task with ids {set_tid:?}"),
            source,
        })?;
        let Some(tid) = child else {
            return Err(TraceeError::Call {
                tid: self.tid,
                name: "clone3".to_owned(),
                source: io::Error::other("no event for the new task"),
            });
        };
        if !wait_for_stop(tid)? {
            return Err(TraceeError::Died { tid });
        }
        let stub = Stub { tid, gadget: self.gadget, area: (0, DATA_SIZE) };
        stub.block_signals()?;
        Ok(stub)
    }

    /// Runs two batches at the same time: one here and one in a helper thread that lives no longer
    /// than that. Each batch has half of the room.
    pub fn run_two(&self, here: &mut Batch, there: &mut Batch) -> Result<(), TraceeError> {
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD;
        let half = DATA_SIZE / 2;
        let first = Stub { area: (0, half), ..*self };
        let second = Stub { area: (half, half), ..self.clone_child(flags as u64, 0, &[])? };
        first.start(here)?;
        second.start(there)?;
        second.finish(there)?;
        first.finish(here)?;
        let mut last = Batch::new();
        last.call(libc::SYS_exit, &[0.into()]);
        second.run_last(&mut last).map(drop)
    }

    /// Runs calls after which the stub no longer exists (exit), and reaps it as its tracer.
    pub fn run_last(&self, batch: &mut Batch) -> Result<WaitStatus, TraceeError> {
        self.start(batch)?;
        loop {
            match ptrace::wait(self.tid).map_err(TraceeError::request(self.tid, "wait"))? {
                status @ (WaitStatus::Exited(_) | WaitStatus::Killed(_)) => return Ok(status),
                WaitStatus::Event { event: EVENT_STOP, .. } => {
                    ptrace::cont(self.tid, 0).map_err(TraceeError::request(self.tid, "resume"))?;
                }
                other => return Err(self.unexpected(other)),
            }
        }
    }

    /// Runs calls of which the last raises the fatal `signal` in the stub.
    pub fn run_into_death(&self, batch: &mut Batch, signal: i32) -> Result<(), TraceeError> {
        self.start(batch)?;
        let mut deliver = 0;
        loop {
            match ptrace::wait(self.tid).map_err(TraceeError::request(self.tid, "wait"))? {
                WaitStatus::Exited(_) | WaitStatus::Killed(_) => return Ok(()),
                WaitStatus::Signal(seen) if seen == signal => deliver = signal,
                WaitStatus::Event { event: EVENT_STOP, .. } => {}
                other => return Err(self.unexpected(other)),
            }
            ptrace::cont(self.tid, deliver).map_err(TraceeError::request(self.tid, "resume"))?;
        }
    }

    /// Runs one call that blocks and interrupts it. Some: the registers with the kernel's restart
    /// code; None if the call was over before, and its result is in the batch.
    pub fn run_and_interrupt(
        &self,
        batch: &mut Batch,
    ) -> Result<Option<ptrace::Registers>, TraceeError> {
        self.start(batch)?;
        loop {
            ptrace::interrupt(self.tid).map_err(TraceeError::request(self.tid, "interrupt"))?;
            match ptrace::wait(self.tid).map_err(TraceeError::request(self.tid, "wait"))? {
                WaitStatus::Event { event: EVENT_STOP, .. } => {
                    let regs = ptrace::registers(self.tid)
                        .map_err(TraceeError::request(self.tid, "read the registers"))?;
                    if regs.orig_rax as i64 >= 0 && (regs.rax as i64) < -511 {
                        return Ok(Some(regs));
                    }
                    // It has not reached the call yet.
                    ptrace::cont(self.tid, 0).map_err(TraceeError::request(self.tid, "resume"))?;
                }
                WaitStatus::Signal(libc::SIGTRAP) => {
                    self.read_back(batch)?;
                    return Ok(None);
                }
                other => return Err(self.unexpected(other)),
            }
        }
    }

    /// Removes the gadget by a `syscall` instruction of the finished task's own (in its vDSO). No
    /// thread of the task can run batches afterwards.
    pub fn remove_gadget(&self, syscall_instruction: u64) -> Result<(), TraceeError> {
        self.step_call(
            syscall_instruction,
            "munmap of the gadget",
            libc::SYS_munmap,
            [self.gadget, GADGET_SIZE, 0, 0, 0, 0],
        )
        .map(drop)
    }

    /// As [`Stub::remove_gadget`], and sets the disposition of SIGTRAP (struct sigaction of the
    /// kernel) first. A trap that is ignored gets the default disposition when one happens, and
    /// every batch ends with one, as does a single step: nothing here does.
    pub fn remove_gadget_and_set_trap(
        &self,
        syscall_instruction: u64,
        action: &[u8; 32],
    ) -> Result<(), TraceeError> {
        memory::write(self.tid, self.data(), action)
            .map_err(TraceeError::request(self.tid, "write the memory"))?;
        let args = [libc::SIGTRAP as u64, self.data().0, 0, 8, 0, 0];
        let (at, nr) = (syscall_instruction, libc::SYS_rt_sigaction);
        self.call_at(at, "rt_sigaction of SIGTRAP", nr, args, (ptrace::to_system_call, 2))?;
        let args = [self.gadget, GADGET_SIZE, 0, 0, 0, 0];
        let (name, nr) = ("munmap of the gadget", libc::SYS_munmap);
        self.call_at(at, name, nr, args, (ptrace::to_system_call, 2)).map(drop)
    }

    /// Brings finished threads from whatever stop they are in into one after which they go on without
    /// a signal, also if nobody lets them go but the tracer's death.
    pub fn settle<'a>(all: impl Iterator<Item = &'a Stub> + Clone) -> Result<(), TraceeError> {
        for stub in all.clone() {
            let tid = stub.tid;
            ptrace::interrupt(tid).map_err(TraceeError::request(tid, "interrupt"))?;
            ptrace::cont(tid, 0).map_err(TraceeError::request(tid, "resume"))?;
        }
        for stub in all {
            match ptrace::wait(stub.tid).map_err(TraceeError::request(stub.tid, "wait"))? {
                WaitStatus::Event { event: EVENT_STOP, .. } => {}
                other => return Err(stub.unexpected(other)),
            }
        }
        Ok(())
    }

    /// Brings a process that is built, of which these are all threads, into group stop, and its parent is
    /// told. Its threads can run batches as before; let go, they stand still, and nobody is told again.
    pub fn stop_process(pidfd: &PidFd, threads: &[Stub]) -> Result<(), TraceeError> {
        let Some(leader) = threads.first() else { return Ok(()) };
        pidfd.send_signal(libc::SIGSTOP).map_err(TraceeError::request(leader.tid, "stop it"))?;
        for thread in threads {
            let tid = thread.tid;
            let mut deliver = 0;
            loop {
                // A signal waits, or the stop of the process: it gets to no instruction of its own.
                ptrace::cont(tid, deliver).map_err(TraceeError::request(tid, "resume"))?;
                match ptrace::wait(tid).map_err(TraceeError::request(tid, "wait"))? {
                    WaitStatus::Event { event: EVENT_STOP, signal: libc::SIGSTOP } => break,
                    WaitStatus::Event { event: EVENT_STOP, .. } => deliver = 0,
                    WaitStatus::Signal(libc::SIGSTOP) => deliver = libc::SIGSTOP,
                    other => return Err(thread.unexpected(other)),
                }
            }
        }
        Ok(())
    }

    fn block_signals(&self) -> Result<(), TraceeError> {
        ptrace::set_signal_mask(self.tid, BLOCK_ALL)
            .map_err(TraceeError::request(self.tid, "block the signals"))
    }

    fn data(&self) -> RemoteAddr {
        RemoteAddr(self.gadget + PAGE_SIZE + self.area.0)
    }

    /// Starts a batch and does not wait.
    fn start(&self, batch: &Batch) -> Result<(), TraceeError> {
        let bytes = batch.encode(self.data().0);
        let room = self.area.1 as usize;
        if bytes.len() > room {
            return Err(TraceeError::BatchTooLarge { bytes: bytes.len(), room });
        }
        memory::write(self.tid, self.data(), &bytes)
            .map_err(TraceeError::request(self.tid, "write the memory"))?;
        let mut regs = ptrace::registers(self.tid)
            .map_err(TraceeError::request(self.tid, "read the registers"))?;
        regs.rip = self.gadget;
        regs.rax = 0;
        regs.orig_rax = u64::MAX;
        regs.r12 = self.data().0;
        regs.r13 = batch.len() as u64;
        regs.eflags &= !0x100;
        ptrace::set_registers(self.tid, &regs)
            .map_err(TraceeError::request(self.tid, "set the registers"))?;
        ptrace::cont(self.tid, 0).map_err(TraceeError::request(self.tid, "resume"))
    }

    fn finish(&self, batch: &mut Batch) -> Result<(), TraceeError> {
        self.wait_for_trap()?;
        self.read_back(batch)
    }

    fn read_back(&self, batch: &mut Batch) -> Result<(), TraceeError> {
        let mut back = vec![0; batch.read_back()];
        memory::read(self.tid, self.data(), &mut back)
            .map_err(TraceeError::request(self.tid, "read the memory"))?;
        batch.decode(&back);
        Ok(())
    }

    fn wait_for_trap(&self) -> Result<(), TraceeError> {
        loop {
            match ptrace::wait(self.tid).map_err(TraceeError::request(self.tid, "wait"))? {
                WaitStatus::Signal(libc::SIGTRAP) => return Ok(()),
                WaitStatus::Event { event: EVENT_STOP, .. } => {
                    ptrace::cont(self.tid, 0).map_err(TraceeError::request(self.tid, "resume"))?;
                }
                other => return Err(self.unexpected(other)),
            }
        }
    }

    fn unexpected(&self, status: WaitStatus) -> TraceeError {
        match status {
            WaitStatus::Exited(_) | WaitStatus::Killed(_) => TraceeError::Died { tid: self.tid },
            other => {
                let rip = ptrace::registers(self.tid).map(|r| r.rip).unwrap_or(0);
                TraceeError::UnexpectedStop {
                    tid: self.tid,
                    status: format!("{other:?} at {rip:#x} (gadget at {:#x})", self.gadget),
                }
            }
        }
    }

    /// One call by single-stepping over a `syscall` instruction that the task has mapped.
    fn step_call(
        &self,
        instruction: u64,
        name: &str,
        nr: i64,
        args: [u64; 6],
    ) -> Result<u64, TraceeError> {
        self.call_at(instruction, name, nr, args, (ptrace::single_step, 1))
    }

    /// One call by a `syscall` instruction that the task has mapped, with what resumes the thread,
    /// and how many stops that makes until the call is over.
    fn call_at(
        &self,
        instruction: u64,
        name: &str,
        nr: i64,
        args: [u64; 6],
        (resume, mut stops): (fn(Pid) -> io::Result<()>, u32),
    ) -> Result<u64, TraceeError> {
        let mut regs = ptrace::registers(self.tid)
            .map_err(TraceeError::request(self.tid, "read the registers"))?;
        regs.rip = instruction;
        regs.rax = nr as u64;
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        regs.eflags &= !0x100;
        ptrace::set_registers(self.tid, &regs)
            .map_err(TraceeError::request(self.tid, "set the registers"))?;
        while stops != 0 {
            resume(self.tid).map_err(TraceeError::request(self.tid, "step"))?;
            match ptrace::wait(self.tid).map_err(TraceeError::request(self.tid, "wait"))? {
                WaitStatus::Signal(libc::SIGTRAP) => stops -= 1,
                WaitStatus::Event { event: EVENT_STOP, .. } => {}
                other => return Err(self.unexpected(other)),
            }
        }
        let result = ptrace::registers(self.tid)
            .map_err(TraceeError::request(self.tid, "read the registers"))?
            .rax as i64;
        if (-4095..0).contains(&result) {
            return Err(TraceeError::Call {
                tid: self.tid,
                name: name.to_owned(),
                source: io::Error::from_raw_os_error(-result as i32),
            });
        }
        Ok(result as u64)
    }
}
