//! What can go wrong with a tracee.

use std::io;

use arctern_sys::Pid;

/// An error of one operation on one thread.
#[derive(Debug, thiserror::Error)]
pub enum TraceeError {
    /// The thread died under us. ESRCH from ptrace can mean nothing else for a thread that this
    /// controller has stopped.
    #[error("thread {tid} died")]
    Died {
        /// The thread.
        tid: Pid,
    },
    /// The kernel refused a request of the controller.
    #[error("cannot {what} of thread {tid}")]
    Request {
        /// The request.
        what: &'static str,
        /// The thread.
        tid: Pid,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The thread stopped for a reason that nobody expected.
    #[error("thread {tid} stopped unexpectedly: {status}")]
    UnexpectedStop {
        /// The thread.
        tid: Pid,
        /// What the wait saw.
        status: String,
    },
    /// A batch does not fit into the data area of the gadget.
    #[error("a batch of {bytes} bytes does not fit into the {room} bytes of the data area")]
    BatchTooLarge {
        /// Its size.
        bytes: usize,
        /// The room.
        room: usize,
    },
    /// The process has no vDSO with room for the gadget.
    #[error("process {pid} has no usable vDSO: {why}")]
    NoVdso {
        /// The process.
        pid: Pid,
        /// What is missing.
        why: &'static str,
    },
    /// A remote system call failed.
    #[error("system call {name} in thread {tid} failed")]
    Call {
        /// The thread.
        tid: Pid,
        /// What was called and why.
        name: String,
        /// Its error.
        source: io::Error,
    },
}

impl TraceeError {
    /// Wraps the error of a request about `tid`.
    pub fn request(tid: Pid, what: &'static str) -> impl FnOnce(io::Error) -> TraceeError {
        move |source| match source.raw_os_error() {
            Some(libc::ESRCH) => TraceeError::Died { tid },
            _ => TraceeError::Request { what, tid, source },
        }
    }
}
