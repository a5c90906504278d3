//! What the caller asks of a capture or a restore, and what it gets back.
//!
//! The engine knows no container: it takes a process tree, the things that stay outside the images
//! (externals) and the moments at which the caller wants to act (hooks).

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::confinement::Confinement;
use crate::precopy::Preloaded;

/// What happens to the tasks after a successful capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCapture {
    /// The tasks are killed (CRIU's default).
    Kill,
    /// The tasks go on (`--leave-running`).
    Resume,
    /// The tasks stay in group stop (`--leave-stopped`).
    Stop,
    /// The tasks stand in their frozen group ([`CaptureOptions::freeze_cgroup`]) without a tracer
    /// until [`CaptureOptions::hand_over`] has said what becomes of them.
    HandOver,
}

impl AfterCapture {
    /// Whether this tree ends, and what is captured goes on in its place.
    pub fn moves(self) -> bool {
        matches!(self, AfterCapture::Kill | AfterCapture::HandOver)
    }
}

/// What becomes of a tree that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its copy runs elsewhere: this one is killed.
    Gone,
    /// It did not come about: this one goes on.
    Back,
}

/// A thing that the images name and do not hold, in CRIU's `--external` notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum External {
    /// `mnt[PATH]:NAME` at capture: the mount at `path` (in the tree's mount namespace) is not
    /// captured and gets the name. `mnt[NAME]:PATH` at restore: bind `path` of the host there.
    Mount {
        /// Mount point at capture, name at restore.
        key: String,
        /// Name at capture, host path at restore.
        value: String,
    },
    /// `net[INO]:NAME` (capture): the network namespace with this inode stays outside.
    NetNs {
        /// Inode number of the namespace.
        ino: u64,
        /// Key under which restore finds it among the inherited descriptors.
        name: String,
    },
    /// `pid[INO]:NAME` (capture).
    PidNs {
        /// Inode number of the namespace.
        ino: u64,
        /// Key under which restore finds it among the inherited descriptors.
        name: String,
    },
    /// `file[MNT_ID:INODE]` (capture): an open file that the caller brings back.
    File {
        /// Mount id as in `/proc/PID/mountinfo`.
        mnt_id: u32,
        /// Inode number.
        ino: u64,
    },
    /// `tty[RDEV:DEV]` (capture, both hexadecimal): the other end of a terminal stays outside.
    Tty {
        /// Device number of the terminal.
        rdev: u64,
        /// Device number of the file system that it is on.
        dev: u64,
    },
    /// `unix[INO]` (capture): a unix socket that stays outside, and to whose name sockets of the tree
    /// are connected again: [`ExternalUnix::Reconnect`] for this one.
    Unix {
        /// Socket inode number.
        ino: u64,
    },
    /// `dev[MAJ/MIN]:NAME` at capture, `dev[NAME]:PATH` at restore: a block device of a mount.
    Device {
        /// `MAJ/MIN` at capture, name at restore.
        key: String,
        /// Name at capture, host path at restore.
        value: String,
    },
}

/// What is done about live TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpPolicy {
    /// They are refused, each by name.
    #[default]
    Refuse,
    /// They are carried (`--tcp-established`).
    Established,
    /// They are dropped: their descriptors come back as closed sockets (`--tcp-close`).
    Close,
}

/// The two ends of a TCP connection of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The end that the tree has.
    pub local: SocketAddr,
    /// The other end; it may belong to the tree as well.
    pub peer: SocketAddr,
}

/// Mark (SO_MARK) of packets that a lock of the network lets pass: those that stand for a peer while
/// its connection is rebuilt, which pass the loopback device of the tree's namespace only; and those
/// that tell peers of a closed window ([`NetworkLock::drops`]). The number is CRIU's.
pub const PASSING_MARK: u32 = 0xc114;

/// Keeps packets away from connections while there is no socket that could answer them rightly.
///
/// Capture: [`NetworkLock::lock`] is called once in each attempt, when every task is stopped and
/// before any socket is changed; also without any connection, because a listener may get one. If the
/// tasks go on, [`NetworkLock::unlock`] follows when their sockets are as they were. If they are
/// killed the lock stays: whoever made it keeps it until the restore, or gives it up.
///
/// Restore: `lock` before any connection is built (the lock of the capture may still hold: then there
/// is nothing to do), `unlock` when all are complete and nothing but the release can fail any more.
/// After a failed restore the lock is left as it is.
pub trait NetworkLock {
    /// No packet reaches or leaves these connections, and none reaches the tree's listeners, from
    /// here on; but for packets with [`PASSING_MARK`].
    fn lock(&mut self, connections: &[Connection]) -> Result<(), HookError>;
    /// What the connections send gets out again, while what comes for them still waits: a restored
    /// connection has to send again before it may see what acknowledges that. [`NetworkLock::unlock`]
    /// follows. A lock that can make nothing wait opens.
    fn let_out(&mut self) -> Result<(), HookError> {
        self.unlock()
    }
    /// Packets pass again. That they do already is no error.
    fn unlock(&mut self) -> Result<(), HookError>;
    /// The program was killed in a capture, and the tasks go on: ends a lock that would outlive it.
    /// Another process of the program's calls this, which ends then.
    fn abandon(&mut self) {}
    /// Whether what peers send is lost while the lock stands, and packets with [`PASSING_MARK`] go out
    /// to them all the same: then they are told not to send.
    fn drops(&self) -> bool {
        false
    }
    /// Id under which CRIU finds and ends this lock (`dump_criu_run_id` of the images), if it can.
    fn run_id(&self) -> Option<String> {
        None
    }
}

/// What is done about unix sockets that are connected to a socket outside of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalUnix {
    /// They are refused.
    #[default]
    Refuse,
    /// The restore connects to the other socket's name. Refused where it has none, or where data
    /// that it sent is unread.
    Reconnect,
    /// The other end is closed after the restore. What it had sent can still be read.
    Close,
}

/// How one capture is made.
pub struct CaptureOptions<'a> {
    /// What happens to the tasks after success. After a failure they always go on.
    pub after: AfterCapture,
    /// Things that stay outside.
    pub externals: Vec<External>,
    /// Session or terminal may belong to somebody outside the tree (`--shell-job`).
    pub shell_job: bool,
    /// Terminals of the tree's own mount namespace may have their master outside: the restore makes
    /// it anew and hands it to its caller (CRIU's `orphan_pts_master`).
    pub orphan_terminals: bool,
    /// Unix sockets that are connected to a socket outside.
    pub external_unix: ExternalUnix,
    /// Capture file locks instead of refusing them.
    pub file_locks: bool,
    /// Largest deleted file that goes into the images, in bytes.
    pub ghost_limit: u64,
    /// Give up freezing after this long.
    pub timeout: Duration,
    /// The caller's cgroup with a freezer (v2 directory, or v1 freezer directory), if there is one.
    /// It is recorded as the tree's group; the tree itself is stopped through ptrace.
    pub freeze_cgroup: Option<PathBuf>,
    /// What is done about live TCP connections. With [`TcpPolicy::Close`] they are captured as closed
    /// sockets, and their peers are told by a reset when the tasks are killed.
    pub tcp: TcpPolicy,
    /// Connections that the program has not accepted yet are left out (`--skip-in-flight`).
    pub skip_in_flight: bool,
    /// Locks the tree's connections; None: the caller has done so, or needs no lock.
    pub network: Option<&'a mut dyn NetworkLock>,
    /// Called once while every task is stopped, before the memory is copied: the caller captures
    /// what must belong to the same instant (root file system, network lock). An error aborts the
    /// capture and the tasks go on.
    pub while_frozen: Option<&'a mut dyn FnMut() -> Result<(), HookError>>,
    /// Called when all state is captured (on disk, if the tasks are to be killed) and before the
    /// tasks are resumed or killed. An error
    /// aborts the capture and the tasks go on.
    pub before_release: Option<&'a mut dyn FnMut() -> Result<(), HookError>>,
    /// Called with [`AfterCapture::HandOver`], after [`CaptureOptions::before_release`]: everything is
    /// captured, and no death of a process lets the tasks run from here on. An error means that
    /// nobody knows which copy lives: the tasks stay frozen and the network locked
    /// ([`CaptureError::InDoubt`](crate::CaptureError::InDoubt)).
    pub hand_over: Option<&'a mut dyn FnMut() -> Result<Fate, HookError>>,
}

/// How one restore is made.
pub struct RestoreOptions<'a> {
    /// The root of the restored mount namespace: a mount point on the host. None restores into the
    /// caller's own mount namespace.
    pub root: Option<PathBuf>,
    /// Where the externals of the images are found here.
    pub externals: Vec<External>,
    /// Descriptors that stand for external things: key as in CRIU's `--inherit-fd`
    /// (`pipe:[INO]`, `extRootNetNS`, `tty[…]`, `file[…]`, …).
    pub inherit_fds: Vec<(String, OwnedFd)>,
    /// cgroup directories (one per hierarchy) that the restored root task joins before anything
    /// else; the tasks' groups below are made relative to them.
    pub cgroups: Vec<PathBuf>,
    /// See [`CaptureOptions::shell_job`].
    pub shell_job: bool,
    /// Receives the new masters of terminals that were captured without theirs
    /// ([`CaptureOptions::orphan_terminals`]), lowest index first. They are there before any task is
    /// built, and closing them is a hangup.
    pub orphan_terminal: Option<&'a mut dyn FnMut(OwnedFd)>,
    /// Leave the tasks in group stop.
    pub leave_stopped: bool,
    /// Restore file locks.
    pub file_locks: bool,
    /// What is done about the live TCP connections of the images.
    pub tcp: TcpPolicy,
    /// Unlocks the tree's connections; None: nothing is locked.
    pub network: Option<&'a mut dyn NetworkLock>,
    /// What the tree may have at most; None: whatever its images say.
    pub confinement: Option<Confinement>,
    /// Memory of the root task that is in this process already; pages of the images that are not of
    /// its rounds replace what is there.
    pub preloaded: Option<&'a Preloaded>,
    /// Create the root task as a sibling of the caller (CLONE_PARENT) instead of a child.
    pub sibling: bool,
    /// Called when the root task exists, with its pid as the caller sees it, before namespaces are
    /// filled: the caller sets up devices in the network namespace here.
    pub setup_namespaces: Option<&'a mut dyn FnMut(i32) -> Result<(), HookError>>,
    /// Called when everything is built and no restored task has run an instruction yet. An error
    /// removes everything that was built. Digests of the images are checked here at the latest.
    pub before_resume: Option<&'a mut dyn FnMut(i32) -> Result<(), HookError>>,
}

/// An error of the caller's own, carried through the engine unchanged.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// What a capture did. Times in microseconds.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct CaptureReport {
    /// From the first request to stop until every task was stopped.
    pub freezing_us: u64,
    /// From the first task stopped until the last task resumed or was killed.
    pub frozen_us: u64,
    /// Copying of memory, including its writing.
    pub memory_us: u64,
    /// The whole capture.
    pub total_us: u64,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Pages that are as they were in the images before.
    #[serde(default)]
    pub pages_unchanged: u64,
    /// Captured processes.
    pub processes: u64,
    /// Captured threads.
    pub threads: u64,
}

/// What a restore did. Times in microseconds.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct RestoreReport {
    /// Pid of the root task as the caller sees it.
    pub pid: i32,
    /// The whole restore.
    pub total_us: u64,
    /// Creating the tasks.
    pub forking_us: u64,
    /// Pages put back.
    pub pages_restored: u64,
}

/// What happens, as it happens; the engine never prints.
#[derive(Clone, Debug)]
pub enum Event {
    /// A named phase begins (`freeze`, `collect`, `memory`, `files`, `resume`, …).
    Phase(&'static str),
    /// Bytes of memory done and expected.
    Progress {
        /// Done.
        done: u64,
        /// Expected.
        total: u64,
    },
    /// Something that the user should know and that does not stop the operation.
    Warning(String),
}

/// Receives [`Event`]s.
pub trait Events {
    /// Called on the thread of the operation; must return quickly.
    fn event(&mut self, event: Event);
}

/// Ignores every event.
pub struct Silent;

impl Events for Silent {
    fn event(&mut self, _event: Event) {}
}
