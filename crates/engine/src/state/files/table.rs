//! Descriptor tables of stubs: which numbers are taken, and batched calls whose results are known
//! beforehand.
//!
//! The kernel gives a new descriptor the lowest free number. A stub does nothing but what we ask of
//! it, so we know its table and can say which number every call of a batch will return; no call has
//! to wait for the result of another. The results are compared afterwards.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use arctern_sys::pidfd::PidFd;
use arctern_tracee::stub::Stub;
use arctern_tracee::{Arg, Batch, CallId};

use crate::error::{RestoreError, Subject};
use crate::restore_context::RestoreContext;

/// Bytes of a batch after which it is sent; the rest of the room is for one more description.
const FULL: usize = 700 * 1024;

/// Status flags that F_SETFL sets.
const STATUS: u32 = (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// What a stub has open: number → id of the description, 0 for a passing one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    open: BTreeMap<i32, u32>,
    /// No number below is free.
    hint: i32,
}

impl Table {
    pub fn get(&self, fd: i32) -> Option<u32> {
        self.open.get(&fd).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (i32, u32)> {
        self.open.iter().map(|(fd, id)| (*fd, *id))
    }

    /// The number that the next new descriptor gets.
    pub fn lowest_free(&mut self) -> i32 {
        while self.open.contains_key(&self.hint) {
            self.hint += 1;
        }
        self.hint
    }

    pub fn take(&mut self, fd: i32, id: u32) {
        self.open.insert(fd, id);
    }

    pub fn free(&mut self, fd: i32) {
        self.open.remove(&fd);
        self.hint = self.hint.min(fd);
    }
}

#[derive(Clone, Copy)]
enum Expected {
    Success,
    Number(i32),
}

struct Check {
    call: CallId,
    expected: Expected,
    item: usize,
    action: &'static str,
}

/// Makes descriptions in one stub.
pub(super) struct Opener<'a> {
    pub ctx: &'a mut RestoreContext,
    /// Who makes the calls.
    pub stub: Stub,
    pub table: &'a mut Table,
    pub pid: i32,
    pub comm: &'a str,
    batch: Batch,
    checks: Vec<Check>,
    items: Vec<String>,
    handle: Option<PidFd>,
}

impl<'a> Opener<'a> {
    pub fn new(
        ctx: &'a mut RestoreContext,
        stub: &'a Stub,
        table: &'a mut Table,
        pid: i32,
        comm: &'a str,
    ) -> Self {
        Opener {
            ctx,
            stub: *stub,
            table,
            pid,
            comm,
            batch: Batch::new(),
            checks: Vec::new(),
            items: Vec::new(),
            handle: None,
        }
    }

    /// Begins a description: errors of the calls from here on are about `part`. Sends the batch if
    /// it is full.
    pub fn item(&mut self, part: String) -> Result<(), RestoreError> {
        if self.batch.size() > FULL {
            self.flush()?;
        }
        self.items.push(part);
        Ok(())
    }

    /// Bytes for the next call.
    pub fn bytes(&mut self, bytes: &[u8]) -> arctern_tracee::Arena {
        self.batch.bytes(bytes)
    }

    /// A string for the next call.
    pub fn c_string(&mut self, text: &[u8]) -> arctern_tracee::Arena {
        self.batch.c_string(text)
    }

    /// The batch, for calls with structures of pointers.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// A call that must succeed.
    pub fn call(&mut self, nr: i64, args: &[Arg], action: &'static str) -> CallId {
        let call = self.batch.call(nr, args);
        let item = self.items.len().saturating_sub(1);
        self.checks.push(Check { call, expected: Expected::Success, item, action });
        call
    }

    /// Sets a socket option that may be unknown here.
    pub fn attempt_set(&mut self, fd: i32, level: i32, name: i32, value: i32) {
        let value = self.batch.bytes(&value.to_ne_bytes());
        let args = [fd.into(), level.into(), name.into(), value.into(), 4.into()];
        self.batch.call(libc::SYS_setsockopt, &args);
    }

    /// A call that returns a new descriptor; its number.
    pub fn create(&mut self, nr: i64, args: &[Arg], action: &'static str) -> i32 {
        let fd = self.table.lowest_free();
        let call = self.batch.call(nr, args);
        let item = self.items.len().saturating_sub(1);
        self.checks.push(Check { call, expected: Expected::Number(fd), item, action });
        self.table.take(fd, 0);
        fd
    }

    /// pipe2(2) or socketpair(2): `args` without the array. The numbers of both ends.
    pub fn create_pair(
        &mut self,
        nr: i64,
        args: &[Arg],
        flags: i32,
        action: &'static str,
    ) -> [i32; 2] {
        let array = self.batch.reserve(8);
        let mut all = args.to_vec();
        all.push(array.into());
        if nr == libc::SYS_pipe2 {
            all.push(flags.into());
        }
        self.call(nr, &all, action);
        [(); 2].map(|()| {
            let fd = self.table.lowest_free();
            self.table.take(fd, 0);
            fd
        })
    }

    /// Makes `to` another number of `from`, whatever was there.
    pub fn duplicate(&mut self, from: i32, to: i32, id: u32, cloexec: bool) {
        let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
        self.call(libc::SYS_dup3, &[from.into(), to.into(), flags.into()], "dup3 to its number");
        self.table.take(to, id);
    }

    /// Closes a number.
    pub fn close(&mut self, fd: i32) {
        self.call(libc::SYS_close, &[fd.into()], "close");
        self.table.free(fd);
    }

    /// Sets FD_CLOEXEC as wanted.
    pub fn set_cloexec(&mut self, fd: i32, cloexec: bool) {
        let flags = if cloexec { libc::FD_CLOEXEC } else { 0 };
        self.call(
            libc::SYS_fcntl,
            &[fd.into(), libc::F_SETFD.into(), flags.into()],
            "set its flags",
        );
    }

    /// Sets the status flags that fcntl(2) can set, if there are any. O_ASYNC waits until the
    /// owner is set.
    pub fn set_status(&mut self, fd: i32, flags: u32) {
        if flags & STATUS != 0 {
            self.force_status(fd, flags);
        }
    }

    /// Sets the status flags, also to none.
    pub fn force_status(&mut self, fd: i32, flags: u32) {
        let args = [fd.into(), libc::F_SETFL.into(), (flags & STATUS).into()];
        self.call(libc::SYS_fcntl, &args, "set its status flags");
    }

    /// Runs what is collected and compares the results.
    pub fn flush(&mut self) -> Result<(), RestoreError> {
        self.run_collected().map(drop)
    }

    /// As [`Opener::flush`], and gives back the batch, to ask for results.
    pub fn run_collected(&mut self) -> Result<Batch, RestoreError> {
        let mut batch = std::mem::take(&mut self.batch);
        let checks = std::mem::take(&mut self.checks);
        self.stub.run(&mut batch)?;
        for check in checks {
            let result = batch.result(check.call).and_then(|got| match check.expected {
                Expected::Number(number) if got != number as u64 => Err(io::Error::other(format!(
                    "the descriptor has number {got}, not {number}: somebody else opens files in \
                     the task"
                ))),
                _ => Ok(()),
            });
            if let Err(source) = result {
                let part = self.items.get(check.item).cloned().unwrap_or_default();
                return Err(self.failed(part, check.action)(source));
            }
        }
        let last = self.items.pop();
        self.items.clear();
        self.items.extend(last);
        Ok(batch)
    }

    /// Duplicates a descriptor of the stub into the controller, after running what is collected.
    pub fn fetch(&mut self, fd: i32) -> Result<OwnedFd, RestoreError> {
        self.flush()?;
        let tid = self.stub.tid();
        let got = match &self.handle {
            Some(handle) => handle.getfd(fd),
            None => PidFd::open(tid).and_then(|handle| self.handle.insert(handle).getfd(fd)),
        };
        got.map_err(|source| self.failed_here("duplicate it into the controller")(source))
    }

    /// Puts a descriptor of the controller's into the stub; its number.
    pub fn inject(&mut self, fd: BorrowedFd<'_>) -> Result<i32, RestoreError> {
        self.flush()?;
        let at = self.table.lowest_free();
        self.ctx.inject(&self.stub, fd, at)?;
        self.table.take(at, 0);
        Ok(at)
    }

    /// An error about `part` of the task.
    pub fn failed(
        &self,
        part: String,
        what: &str,
    ) -> impl FnOnce(io::Error) -> RestoreError + use<> {
        let subject = Subject { pid: self.pid, comm: self.comm.to_owned(), part };
        let what = what.to_owned();
        move |source| RestoreError::Kernel { subject, what, source }
    }

    /// An error about the current description.
    pub fn failed_here(&self, what: &str) -> impl FnOnce(io::Error) -> RestoreError + use<> {
        self.failed(self.items.last().cloned().unwrap_or_default(), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_descriptors_get_the_lowest_free_number() {
        let mut table = Table::default();
        for fd in [0, 1, 3] {
            table.take(fd, 7);
        }
        assert_eq!(table.lowest_free(), 2);
        table.take(2, 7);
        assert_eq!(table.lowest_free(), 4);
        table.free(1);
        assert_eq!(table.lowest_free(), 1);
        assert_eq!(table.iter().map(|(fd, _)| fd).collect::<Vec<_>>(), [0, 2, 3]);
    }
}
