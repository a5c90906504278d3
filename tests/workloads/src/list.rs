//! The workloads: name, namespaces, program, and the kinds of state that each proves (see
//! [`crate::kinds`]).

use crate::stage::{Checks, Stage};
use crate::{
    attributes, busy, calls, datagrams, descriptors, dirty, events, files, identity, ipc, jobs,
    listening, memory, outside, pipes, sequences, shell, signals, sockets, tcp, threads, timers,
    unix_peers, unix_queues,
};

/// A program that sets state up and compares it.
pub type Body = fn(&Stage, &mut Checks);

/// Namespaces of its own that the root of a workload gets (flags of clone(2)).
const NONE: i32 = 0;

/// A workload: name, namespaces, program, kinds of state.
pub type Workload = (&'static str, i32, Body, &'static [&'static str]);

/// Every workload that is captured and restored.
#[rustfmt::skip]
pub const WORKLOADS: &[Workload] = &[
    ("shell", NONE, shell::shell, &["tree", "sessions", "pipes"]),
    ("threads", NONE, threads::threads, &["threads-names", "threads-masks", "alternate-stacks", "robust-lists", "rseq", "clear-child-tid", "futex-waits"]),
    ("robust-mutex", NONE, threads::robust_mutex, &["robust-lists", "futex-waits"]),
    ("registers", NONE, threads::registers, &["xstate"]),
    ("thread-pending", NONE, threads::thread_pending, &["queued-thread"]),
    ("pipes", NONE, pipes::pipes, &["pipes"]),
    ("packet-pipe", NONE, pipes::packet_pipe, &["packet-pipes"]),
    ("shifted-pairs", NONE, pipes::shifted_pairs, &["pipes", "unix-sockets"]),
    ("fifos", NONE, pipes::fifos, &["fifos"]),
    ("files", NONE, files::files, &["regular", "append", "o-path", "sparse", "directories", "devices", "owners", "cwd-root-umask"]),
    ("deleted-files", NONE, files::deleted_files, &["deleted", "renamed-over", "o-tmpfile"]),
    ("shared-descriptions", NONE, files::shared_descriptions, &["regular", "shared-descriptions"]),
    ("file-locks", NONE, files::file_locks, &["locks"]),
    ("shared-memory", NONE, memory::shared_memory, &["shared-anonymous"]),
    ("memfd", NONE, memory::memfd, &["memfd", "sealed-memfd"]),
    ("private-file", NONE, memory::private_file, &["file-private", "file-shared"]),
    ("copy-on-write", NONE, memory::copy_on_write, &["copy-on-write"]),
    ("protections", NONE, memory::protections, &["anonymous", "growing-stacks", "mlock", "advice", "sparse-memory", "huge-pages"]),
    ("dirty-memory", NONE, dirty::dirty_memory, &["anonymous", "copy-on-write", "file-private", "file-shared"]),
    ("guard-pages", NONE, memory::guard_pages, &["guard-regions"]),
    ("process-image", NONE, memory::process_image, &["image-names", "brk"]),
    ("interval-timers", NONE, timers::interval_timers, &["interval-timers"]),
    ("posix-timers", NONE, timers::posix_timers, &["posix-timers"]),
    ("ticking-timer", NONE, timers::ticking_timer, &["posix-timers", "timers-due"]),
    ("timerfds", NONE, timers::timerfds, &["timerfd", "timers-due"]),
    ("clocks", NONE, timers::clocks, &["clocks"]),
    ("handlers", NONE, signals::handlers, &["dispositions", "alternate-stacks"]),
    ("ignored-trap", NONE, signals::ignored_trap, &["dispositions"]),
    ("queued-signals", NONE, signals::queued_signals, &["queued-siginfo", "queued-thread"]),
    ("epoll", NONE, events::epoll, &["epoll"]),
    ("epoll-closed-number", NONE, events::epoll_closed_number, &["epoll-dead"]),
    ("eventfds", NONE, events::eventfds, &["eventfd"]),
    ("eventfd-semaphore", NONE, events::eventfd_semaphore, &["eventfd"]),
    ("signalfds", NONE, events::signalfds, &["signalfd"]),
    ("inotify", NONE, events::inotify, &["inotify"]),
    ("sessions", NONE, jobs::sessions, &["sessions", "dead-leaders"]),
    ("orphaned-session", NONE, jobs::orphaned_session, &["dead-leaders", "reparented", "subreapers"]),
    ("zombies", NONE, jobs::zombies, &["zombies"]),
    ("stopped-task", NONE, jobs::stopped_task, &["stopped"]),
    ("stop-told-once", NONE, jobs::stop_told_once, &["stopped"]),
    ("long-vforks", NONE, jobs::long_vforks, &["vfork"]),
    ("spawner", NONE, jobs::spawner, &["vfork"]),
    ("terminal", NONE, jobs::terminal, &["pty"]),
    ("deep-tree", NONE, jobs::deep_tree, &["tree"]),
    ("socket-pairs", NONE, sockets::socket_pairs, &["unix-sockets"]),
    ("socket-credentials", NONE, sockets::socket_credentials, &["unix-sockets"]),
    ("unix-listeners", NONE, sockets::unix_listeners, &["unix-sockets"]),
    ("unix-pending", NONE, sockets::unix_pending, &["unix-pending"]),
    ("unix-peers", NONE, unix_peers::unix_peers, &["unix-peers"]),
    ("unix-peers-inside", libc::CLONE_NEWPID, unix_peers::unix_peers, &["unix-peers"]),
    ("passed-descriptors", NONE, unix_queues::passed_descriptors, &["in-flight"]),
    ("unix-senders", NONE, unix_queues::unix_senders, &["unix-sockets"]),
    ("passed-in-stream", NONE, unix_queues::passed_in_stream, &["in-flight"]),
    ("passed-sockets", NONE, unix_queues::passed_sockets, &["in-flight"]),
    ("tcp-listeners", NONE, sockets::tcp_listeners, &["tcp"]),
    ("tcp-established", NONE, tcp::established, &["tcp"]),
    ("tcp-ipv6", NONE, tcp::ipv6, &["tcp"]),
    ("tcp-v4-mapped", NONE, tcp::v4_mapped, &["tcp"]),
    ("tcp-queues", NONE, tcp::queues, &["tcp"]),
    ("tcp-both-ends", NONE, tcp::both_ends, &["tcp"]),
    ("tcp-half-closed", NONE, tcp::half_closed, &["tcp"]),
    ("tcp-closing", NONE, tcp::closing, &["tcp"]),
    ("tcp-options", NONE, tcp::options, &["tcp"]),
    ("tcp-more-options", NONE, tcp::more_options, &["tcp"]),
    ("tcp-syn-sent", NONE, tcp::syn_sent, &["tcp"]),
    ("tcp-listen-accepted", NONE, tcp::listen_accepted, &["tcp"]),
    ("tcp-accept-queue", NONE, tcp::accept_queue, &["tcp"]),
    ("tcp-shared-port", NONE, listening::shared_port, &["tcp"]),
    ("tcp-backlogs", NONE, listening::backlogs, &["tcp"]),
    ("tcp-listener-options", NONE, listening::listener_options, &["tcp"]),
    ("udp", NONE, sockets::udp, &["udp"]),
    ("udp-queues", NONE, datagrams::udp_queues, &["udp"]),
    ("udp-shared-port", NONE, datagrams::udp_shared_port, &["udp"]),
    ("capabilities", NONE, identity::capabilities, &["ids", "capabilities", "securebits", "no-new-privs"]),
    ("other-user", NONE, identity::other_user, &["ids"]),
    ("seccomp", NONE, identity::seccomp, &["seccomp-filters", "seccomp-thread", "no-new-privs"]),
    ("limits", NONE, identity::limits, &["limits"]),
    ("scheduling", NONE, identity::scheduling, &["policy", "nice", "comm"]),
    ("cpu-affinity", NONE, identity::cpu_affinity, &["affinity"]),
    ("attributes", NONE, identity::attributes, &["parent-death", "subreapers", "dumpable", "thp", "oom"]),
    ("sysv-ipc", libc::CLONE_NEWIPC, ipc::sysv_ipc, &["sysv-shm", "sysv-sem", "sysv-msg"]),
    ("uts-names", libc::CLONE_NEWUTS, ipc::uts_names, &["ns-uts"]),
    ("pid-namespace", libc::CLONE_NEWPID, ipc::pid_namespace, &["ns-pid"]),
    ("blocked-calls", NONE, calls::blocked_calls, &["calls-blocked", "futex-waits"]),
    ("endless-poll", NONE, calls::endless_poll, &["calls-blocked"]),
    ("sleeping-calls", NONE, calls::sleeping_calls, &["calls-timed"]),
    ("personality", NONE, attributes::personality, &["personality"]),
    ("io-priority", NONE, attributes::io_priority, &["ioprio"]),
    ("timer-slack", NONE, attributes::timer_slack, &["timer-slack"]),
    ("write-or-execute", NONE, attributes::write_or_execute, &["mdwe"]),
    ("numa-policy", NONE, attributes::numa_policy, &["numa"]),
    ("numa-mappings", NONE, attributes::numa_mappings, &["numa-mappings"]),
    ("sealed-mapping", NONE, attributes::sealed_mapping, &["mseal"]),
    ("user-dispatch", NONE, attributes::user_dispatch, &["user-dispatch"]),
    ("deleted-program", NONE, attributes::deleted_program, &["deleted-exe"]),
    ("membarrier", NONE, attributes::membarrier, &["membarrier"]),
    ("thread-credentials", NONE, attributes::thread_credentials, &["threads-credentials"]),
    ("seccomp-strict", NONE, attributes::seccomp_strict, &["seccomp-strict"]),
    ("labels", NONE, attributes::labels, &["labels"]),
    ("shared-table", NONE, descriptors::shared_table, &["clone-files"]),
    ("shared-directory", NONE, descriptors::shared_directory, &["clone-fs"]),
    ("owners", NONE, descriptors::owners, &["owners"]),
    ("pidfds", NONE, descriptors::pidfds, &["pidfd"]),
    ("netlink", NONE, descriptors::netlink, &["netlink"]),
    ("named-memory", NONE, descriptors::named_memory, &["posix-shm", "mapped-deleted"]),
    ("huge-memfd", NONE, descriptors::huge_memfd, &["hugetlb"]),
    ("many-mappings", NONE, descriptors::many_mappings, &["many-mappings"]),
    ("devices", NONE, descriptors::devices, &["devices", "sparse"]),
    ("inside-handler", NONE, signals::inside_handler, &["in-handler", "alternate-stacks"]),
    ("rseq-section", NONE, sequences::rseq_section, &["rseq-section", "rseq"]),
    ("busy", NONE, busy::busy, &["calls-blocked", "calls-timed", "vdso", "futex-waits"]),
    ("busy-interruptible", NONE, busy::busy_interruptible, &["calls-blocked", "vdso"]),
];

/// Those whose state the kernel does not tell, so that it is lost in a restore; docs/limits.md says so.
#[rustfmt::skip]
pub const LOST: &[Workload] = &[
    ("timer-overruns", NONE, timers::timer_overruns, &["overruns"]),
    ("mapping-names", NONE, descriptors::mapping_names, &["vma-names"]),
    ("landlock", NONE, attributes::landlock, &["landlock"]),
];

/// Those that need somebody outside: started by tests of their own, and not listed.
#[rustfmt::skip]
pub const WITH_OTHERS: &[Workload] = &[
    ("grown-log", NONE, outside::grown_log, &["grown-log"]),
    ("grown-file", NONE, outside::grown_file, &["grown-log"]),
    ("unix-reconnected", NONE, outside::reconnected, &[]),
    ("unix-closed", NONE, outside::closed, &[]),
];
