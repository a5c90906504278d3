//! A process that finishes what its maker has begun, if the maker is killed in between.
//!
//! Some states of the kernel's outlive whoever set them: the repair mode of a TCP socket, options of
//! a socket that somebody else has too. The guard is a fork of its maker and shares all of these
//! objects. It waits at a pipe whose other end only the maker has, and acts when that is closed
//! without a word.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, read, setsid, write};

/// Of two that were started at once, each would have a copy of the other's pipe, and none would see its end.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const COMMIT: u8 = b'c';
const DISMISS: u8 = b'd';

/// A guard that stands by. Dropping it sends it away; it has ended afterwards.
#[derive(Debug)]
pub struct Guard {
    pipe: OwnedFd,
    pid: Pid,
}

impl Guard {
    /// Starts one. If the calling process ends before the guard is dropped, `act` runs in the guard,
    /// and is told whether [`Guard::commit`] had been called.
    ///
    /// `act` sees the memory as it is now, has only one thread, and must wait for no other.
    pub fn start(act: impl FnOnce(bool)) -> io::Result<Guard> {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: glibc keeps its allocator usable in the child of a program with threads. Of the
        // standard library's locks `act` may take those of output only, and no other thread of ours
        // writes while a tree stands still.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Guard { pipe: theirs, pid: child }),
            ForkResult::Child => {
                drop(theirs);
                // What ends the maker's whole group must not end the guard.
                let _ = setsid();
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    if let Some(committed) = wait_for_the_end(&ours) {
                        act(committed);
                    }
                }));
                // SAFETY: ends this process without running what its maker left to be run at its end.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// From here on the guard finishes what was begun, instead of undoing it.
    pub fn commit(&self) -> io::Result<()> {
        write(&self.pipe, &[COMMIT])?;
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails only if it was killed.
        let _ = write(&self.pipe, &[DISMISS]);
        while waitpid(self.pid, None) == Err(nix::Error::EINTR) {}
    }
}

/// None: the guard is not needed any more. Else whether the maker had got beyond its commit.
fn wait_for_the_end(pipe: &OwnedFd) -> Option<bool> {
    let mut committed = false;
    let mut byte = [0];
    loop {
        match read(pipe, &mut byte) {
            Ok(0) => return Some(committed),
            Ok(_) if byte[0] == COMMIT => committed = true,
            Err(nix::Error::EINTR) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// What the guard of a process said that ended after `begin`.
    fn said(begin: fn(Guard)) -> String {
        let (mut here, there) = UnixStream::pair().unwrap();
        // SAFETY: the child forks once more, writes, and ends without unwinding.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                drop(here);
                let guard = Guard::start(|committed| {
                    let word: &[u8] = if committed { b"finished" } else { b"undone" };
                    let _ = write(&there, word);
                });
                if let Ok(guard) = guard {
                    begin(guard);
                }
                // SAFETY: as a kill would end it.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(there);
                waitpid(child, None).unwrap();
                let mut text = String::new();
                here.read_to_string(&mut text).unwrap();
                text
            }
        }
    }

    #[test]
    fn a_guard_acts_when_its_maker_is_gone_and_only_then() {
        assert_eq!(said(std::mem::forget), "undone");
        assert_eq!(
            said(|guard| {
                guard.commit().unwrap();
                std::mem::forget(guard);
            }),
            "finished"
        );
        assert_eq!(said(drop), "");
    }
}
