//! Programs that check themselves: each sets some kernel state up, says that it is ready, and on
//! SIGUSR1 compares what it finds with what it made. In between it may be captured and restored.
//!
//! `workload list` prints the names; `workload run NAME DIR` runs one. In DIR there must be a FIFO
//! `ready`, where the program writes `ready` or `skip REASON`. Exit codes: 0 all equal, 1 something
//! differs (on stderr), 3 the state could not be set up, 77 this machine cannot hold it.

mod busy;
mod calls;
mod datagrams;
mod dirty;
mod events;
mod files;
mod identity;
mod ipc;
mod jobs;
mod listening;
mod load;
mod memory;
mod outside;
mod pipes;
mod shell;
mod signals;
mod sockets;
mod stage;
mod tcp;
mod threads;
mod timers;
mod unix_queues;

use stage::{Checks, Stage};
use std::path::PathBuf;

type Body = fn(&Stage, &mut Checks);

/// Namespaces of its own that the root of a workload gets (flags of clone(2)).
const NONE: i32 = 0;

/// Every workload: name, namespaces, program.
const WORKLOADS: &[(&str, i32, Body)] = &[
    ("shell", NONE, shell::shell),
    ("threads", NONE, threads::threads),
    ("robust-mutex", NONE, threads::robust_mutex),
    ("registers", NONE, threads::registers),
    ("thread-pending", NONE, threads::thread_pending),
    ("pipes", NONE, pipes::pipes),
    ("packet-pipe", NONE, pipes::packet_pipe),
    ("fifos", NONE, pipes::fifos),
    ("files", NONE, files::files),
    ("deleted-files", NONE, files::deleted_files),
    ("shared-descriptions", NONE, files::shared_descriptions),
    ("file-locks", NONE, files::file_locks),
    ("shared-memory", NONE, memory::shared_memory),
    ("memfd", NONE, memory::memfd),
    ("private-file", NONE, memory::private_file),
    ("copy-on-write", NONE, memory::copy_on_write),
    ("protections", NONE, memory::protections),
    ("dirty-memory", NONE, dirty::dirty_memory),
    ("guard-pages", NONE, memory::guard_pages),
    ("process-image", NONE, memory::process_image),
    ("interval-timers", NONE, timers::interval_timers),
    ("posix-timers", NONE, timers::posix_timers),
    ("ticking-timer", NONE, timers::ticking_timer),
    ("timerfds", NONE, timers::timerfds),
    ("clocks", NONE, timers::clocks),
    ("handlers", NONE, signals::handlers),
    ("ignored-trap", NONE, signals::ignored_trap),
    ("queued-signals", NONE, signals::queued_signals),
    ("epoll", NONE, events::epoll),
    ("epoll-closed-number", NONE, events::epoll_closed_number),
    ("eventfds", NONE, events::eventfds),
    ("eventfd-semaphore", NONE, events::eventfd_semaphore),
    ("signalfds", NONE, events::signalfds),
    ("inotify", NONE, events::inotify),
    ("sessions", NONE, jobs::sessions),
    ("orphaned-session", NONE, jobs::orphaned_session),
    ("zombies", NONE, jobs::zombies),
    ("stopped-task", NONE, jobs::stopped_task),
    ("terminal", NONE, jobs::terminal),
    ("deep-tree", NONE, jobs::deep_tree),
    ("socket-pairs", NONE, sockets::socket_pairs),
    ("socket-credentials", NONE, sockets::socket_credentials),
    ("unix-listeners", NONE, sockets::unix_listeners),
    ("unix-pending", NONE, sockets::unix_pending),
    ("passed-descriptors", NONE, unix_queues::passed_descriptors),
    ("unix-senders", NONE, unix_queues::unix_senders),
    ("passed-in-stream", NONE, unix_queues::passed_in_stream),
    ("passed-sockets", NONE, unix_queues::passed_sockets),
    ("tcp-listeners", NONE, sockets::tcp_listeners),
    ("tcp-established", NONE, tcp::established),
    ("tcp-ipv6", NONE, tcp::ipv6),
    ("tcp-v4-mapped", NONE, tcp::v4_mapped),
    ("tcp-queues", NONE, tcp::queues),
    ("tcp-both-ends", NONE, tcp::both_ends),
    ("tcp-half-closed", NONE, tcp::half_closed),
    ("tcp-closing", NONE, tcp::closing),
    ("tcp-options", NONE, tcp::options),
    ("tcp-more-options", NONE, tcp::more_options),
    ("tcp-syn-sent", NONE, tcp::syn_sent),
    ("tcp-listen-accepted", NONE, tcp::listen_accepted),
    ("tcp-accept-queue", NONE, tcp::accept_queue),
    ("tcp-shared-port", NONE, listening::shared_port),
    ("tcp-backlogs", NONE, listening::backlogs),
    ("tcp-listener-options", NONE, listening::listener_options),
    ("udp", NONE, sockets::udp),
    ("udp-queues", NONE, datagrams::udp_queues),
    ("udp-shared-port", NONE, datagrams::udp_shared_port),
    ("capabilities", NONE, identity::capabilities),
    ("other-user", NONE, identity::other_user),
    ("seccomp", NONE, identity::seccomp),
    ("limits", NONE, identity::limits),
    ("scheduling", NONE, identity::scheduling),
    ("cpu-affinity", NONE, identity::cpu_affinity),
    ("attributes", NONE, identity::attributes),
    ("sysv-ipc", libc::CLONE_NEWIPC, ipc::sysv_ipc),
    ("uts-names", libc::CLONE_NEWUTS, ipc::uts_names),
    ("pid-namespace", libc::CLONE_NEWPID, ipc::pid_namespace),
    ("blocked-calls", NONE, calls::blocked_calls),
    ("sleeping-calls", NONE, calls::sleeping_calls),
    ("busy", NONE, busy::busy),
    ("busy-interruptible", NONE, busy::busy_interruptible),
];

/// Those that need somebody outside: started by tests of their own, and not listed.
const WITH_OTHERS: &[(&str, i32, Body)] =
    &[("unix-reconnected", NONE, outside::reconnected), ("unix-closed", NONE, outside::closed)];

fn main() {
    // Descriptors of whoever started this are no part of a workload.
    must!(libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0));
    // A tree is a session of its own. Fails harmlessly where the runner made one.
    // SAFETY: plain call.
    unsafe { libc::setsid() };
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match arguments.as_slice() {
        ["list"] => {
            for (name, _, _) in WORKLOADS {
                println!("{name}");
            }
        }
        ["run", name, dir] => {
            let mut all = WORKLOADS.iter().chain(WITH_OTHERS);
            let Some((name, namespaces, body)) = all.find(|(known, ..)| known == name) else {
                eprintln!("no workload is called {name} (see `workload list`)");
                std::process::exit(64);
            };
            run(name, *namespaces, *body, PathBuf::from(dir));
        }
        ["load", kind, count, dir] => {
            let count = count.parse().unwrap_or_else(|_| {
                eprintln!("{count} is not a number");
                std::process::exit(64)
            });
            load::load(kind, count, &Stage::new(PathBuf::from(dir)));
        }
        _ => {
            eprintln!(
                "usage: workload list | workload run NAME DIR | workload load KIND COUNT DIR"
            );
            std::process::exit(64);
        }
    }
}

/// Runs one workload; does not return. A workload with namespaces of its own runs in a child, whose
/// pid is written to DIR/pid, and this process waits for it outside of the tree.
fn run(name: &str, namespaces: i32, body: Body, dir: PathBuf) {
    if namespaces != 0 {
        let mut told = [0; 2];
        must!(libc::pipe(told.as_mut_ptr()));
        must!(libc::unshare(namespaces));
        let pid = must!(libc::fork());
        if pid != 0 {
            std::fs::write(dir.join("pid"), format!("{pid}\n"))
                .expect("the directory can be written");
            must!(libc::write(told[1], b"t".as_ptr().cast(), 1));
            let status = stage::wait_status(pid).expect("the child can be waited for");
            let code = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            };
            std::process::exit(code);
        }
        let mut byte = [0u8; 1];
        must!(libc::read(told[0], byte.as_mut_ptr().cast(), 1));
        must!(libc::close(told[0]));
        must!(libc::close(told[1]));
        // The child leads a session of its own, as the outer process does.
        must!(libc::setsid());
    }
    let stage = Stage::new(dir);
    let mut checks = Checks::default();
    body(&stage, &mut checks);
    std::process::exit(checks.finish(name));
}
