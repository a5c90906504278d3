//! What all rooms share during a restore: temporary descriptors, the channel that injects
//! descriptors into stubs, helpers to name errors.

use std::io;
use std::os::fd::BorrowedFd;

use arctern_sys::Pid;
use arctern_tracee::TraceeError;
use arctern_tracee::stub::Stub;

use crate::error::{RestoreError, Subject};

/// Shared by the rooms of one restore.
///
/// Stubs keep what they need for the restore at descriptor numbers from [`RestoreContext::base`]
/// upwards: above every number that a restored task uses, so that nothing collides. They are closed
/// together at the end.
#[derive(Debug)]
pub struct RestoreContext {
    base: i32,
    next: i32,
    channel: std::os::unix::net::UnixDatagram,
    channel_remote: i32,
    /// A process that stands for another one for some moments: it goes if the restore fails.
    pub helper: Option<Pid>,
}

impl RestoreContext {
    /// `base` is above every descriptor number in the images. `channel` is our end of a socket pair
    /// whose other end every stub has at number `base`.
    pub fn new(base: i32, channel: std::os::unix::net::UnixDatagram) -> Self {
        RestoreContext { base, next: base + 1, channel, channel_remote: base, helper: None }
    }

    /// First temporary descriptor number.
    pub fn base(&self) -> i32 {
        self.base
    }

    /// A temporary descriptor number that nobody else uses, in any stub.
    pub fn temporary(&mut self) -> i32 {
        self.next += 1;
        self.next - 1
    }

    /// Puts a descriptor of the controller's into `stub` as number `at` (SCM_RIGHTS; the open file
    /// description is shared with the controller's).
    pub fn inject(&self, stub: &Stub, fd: BorrowedFd<'_>, at: i32) -> Result<(), TraceeError> {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        use std::os::fd::AsRawFd;
        let fds = [fd.as_raw_fd()];
        let sent = sendmsg::<()>(
            self.channel.as_raw_fd(),
            &[io::IoSlice::new(b"f")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        );
        sent.map_err(|e| TraceeError::Call {
            tid: stub.tid(),
            name: "sendmsg of a descriptor".to_owned(),
            source: e.into(),
        })?;
        let mut batch = arctern_tracee::Batch::new();
        let data = batch.reserve(16);
        let iov = batch.bytes(&[0; 16]);
        batch.pointer(iov, data);
        let iov_bytes_len = iov.at(8);
        // struct cmsghdr: length 20, then level, type, and the descriptor; 24 bytes with padding.
        let control = batch.reserve(24);
        let header = batch.bytes(&[0; 56]);
        batch.pointer(header.at(16), iov);
        batch.pointer(header.at(32), control);
        batch.set_u64(iov_bytes_len, 1);
        batch.set_u64(header.at(24), 1);
        batch.set_u64(header.at(40), 24);
        let received = batch.call(
            libc::SYS_recvmsg,
            &[self.channel_remote.into(), header.into(), libc::MSG_DONTWAIT.into()],
        );
        stub.run(&mut batch)?;
        let call_error = |name: &str, source| TraceeError::Call {
            tid: stub.tid(),
            name: name.to_owned(),
            source,
        };
        batch.result(received).map_err(|e| call_error("recvmsg of a descriptor", e))?;
        let message = batch.memory(control);
        let got = i32::from_ne_bytes(message[16..20].try_into().expect("four bytes"));
        if got != at {
            let mut batch = arctern_tracee::Batch::new();
            let dup = batch.call(libc::SYS_dup3, &[got.into(), at.into(), 0.into()]);
            batch.call(libc::SYS_close, &[got.into()]);
            stub.run(&mut batch)?;
            batch.result(dup).map_err(|e| call_error("dup3 of a descriptor", e))?;
        }
        Ok(())
    }
}

/// A task of the images, for errors.
pub fn subject(pid: i32, comm: &str, part: impl Into<String>) -> Subject {
    Subject { pid, comm: comm.to_owned(), part: part.into() }
}

/// Wraps an error of the kernel's.
pub fn failed(subject: Subject, what: impl Into<String>) -> impl FnOnce(io::Error) -> RestoreError {
    let what = what.into();
    move |source| RestoreError::Kernel { subject, what, source }
}

/// One process of the images, as every room sees it.
#[derive(Clone, Debug, Default)]
pub struct TaskNode {
    /// Pid inside the restored pid namespace.
    pub pid: i32,
    /// Name of the leader.
    pub comm: String,
    /// Index of the parent in the list, None for the root.
    pub parent: Option<usize>,
    /// Whether the task is a zombie (no memory, no descriptors).
    pub zombie: bool,
    /// Its ids (`ids-PID.img`): equal `files_id`, `fs_id`, `vm_id`, `sighand_id` mean shared.
    pub ids: arctern_image::messages::TaskKobjIdsEntry,
}
