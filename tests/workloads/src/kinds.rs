//! Every kind of state that a Linux program can hold, as `docs/state.md` lists it.
//!
//! What becomes of a kind is not said here: that follows from the workloads that prove it, and from
//! the tests named with it. A kind without any proof fails `tests/harness/tests/state.rs`.

/// A kind of state.
pub struct Kind {
    /// Short name, by which workloads claim it.
    pub name: &'static str,
    /// As the table has it.
    pub text: &'static str,
    /// Tests that prove it besides the workloads: `FILE:FUNCTION`, of a restore unless `refused` or
    /// `unseen` stands before.
    pub tests: &'static [&'static str],
    /// What is left out, or why it cannot be run.
    pub note: &'static str,
}

const fn kind(name: &'static str, text: &'static str) -> Kind {
    Kind { name, text, tests: &[], note: "" }
}

const fn noted(name: &'static str, text: &'static str, note: &'static str) -> Kind {
    Kind { name, text, tests: &[], note }
}

const fn tested(
    name: &'static str,
    text: &'static str,
    tests: &'static [&'static str],
    note: &'static str,
) -> Kind {
    Kind { name, text, tests, note }
}

/// Groups of kinds, in the order of the table.
pub const GROUPS: &[(&str, &[Kind])] = &[
    ("Processes", PROCESSES),
    ("Threads", THREADS),
    ("Registers and interrupted calls", REGISTERS),
    ("Memory", MEMORY),
    ("Files", FILES),
    ("Sockets", SOCKETS),
    ("Signals and time", SIGNALS),
    ("Credentials and confinement", CREDENTIALS),
    ("Namespaces", NAMESPACES),
    ("Control groups", CGROUPS),
    ("Real programs at work", PROGRAMS),
];

const PROCESSES: &[Kind] = &[
    kind("tree", "trees of any depth"),
    kind("sessions", "sessions and process groups"),
    kind("dead-leaders", "sessions and groups whose leader has ended"),
    kind("reparented", "children whose parent has ended"),
    kind("subreapers", "subreapers"),
    kind("zombies", "zombies, with how they ended"),
    kind("stopped", "stopped processes"),
    noted("vfork", "vfork in progress", "waited for while the tasks run, and refused if it lasts"),
    kind("ptraced", "processes that a debugger traces"),
    kind("parent-death", "parent-death signal"),
    kind("comm", "names (comm)"),
    kind("image-names", "command line, environment, auxiliary vector, program file"),
    kind("deleted-exe", "a program file that was deleted"),
    kind("personality", "personality"),
    kind("dumpable", "dumpable"),
    kind("timer-slack", "timer slack"),
    kind("thp", "huge pages switched off (PR_SET_THP_DISABLE)"),
    kind("mdwe", "write-or-execute refused (PR_SET_MDWE)"),
    kind("oom", "OOM score adjustment"),
    kind("affinity", "CPU affinity"),
    kind("policy", "scheduling policy"),
    kind("nice", "nice value"),
    kind("ioprio", "I/O priority"),
    kind("numa", "NUMA policy of a thread"),
    kind("limits", "resource limits"),
    kind("keyrings", "keyrings of a thread or process"),
    kind("user-dispatch", "syscall user dispatch"),
];

const THREADS: &[Kind] = &[
    kind("threads-names", "threads with their names and ids"),
    kind("threads-masks", "signal masks"),
    kind("threads-credentials", "credentials of a thread's own"),
    kind("alternate-stacks", "alternate signal stacks"),
    kind("robust-lists", "robust futex lists"),
    kind("rseq", "registered restartable sequences"),
    kind("clear-child-tid", "the address that is cleared at exit"),
    kind("seccomp-thread", "seccomp filters of a thread's own"),
    kind("queued-thread", "signals queued to one thread"),
    kind("futex-waits", "waits on futexes"),
    kind("membarrier", "membarrier registrations"),
];

const REGISTERS: &[Kind] = &[
    kind("xstate", "general, x87, SSE, AVX and AVX-512 registers"),
    kind("in-handler", "inside a signal handler, on its stack"),
    kind("calls-blocked", "inside calls that wait without a limit"),
    kind("calls-timed", "inside calls with a time limit: what is left of it is waited"),
    kind("rseq-section", "inside a restartable sequence: it is aborted, as the kernel does"),
    kind("vdso", "inside code of the vDSO"),
    tested(
        "vdso-other",
        "a vDSO laid out differently",
        &["refused crates/engine/src/state/memory/vdso.rs:another_vdso_is_refused_by_name"],
        "",
    ),
];

const MEMORY: &[Kind] = &[
    kind("anonymous", "private anonymous memory"),
    kind("file-private", "private mappings of files"),
    kind("file-shared", "shared mappings of files"),
    kind("mapped-deleted", "mappings of deleted files"),
    kind("memfd", "memfd"),
    kind("sealed-memfd", "sealed memfd"),
    noted("hugetlb", "memfd of hugetlb pages", "empty ones; mappings of such pages are refused"),
    kind("sysv-shm", "System V shared memory"),
    kind("posix-shm", "POSIX shared memory, also between unrelated processes"),
    kind("shared-anonymous", "shared anonymous memory"),
    kind("copy-on-write", "pages shared by copy-on-write stay shared"),
    kind("growing-stacks", "growing stacks"),
    kind("guard-regions", "guard regions"),
    kind("mlock", "locked memory"),
    kind("mseal", "sealed mappings (mseal)"),
    kind("vma-names", "names of mappings"),
    kind("advice", "advice and flags of mappings"),
    kind("huge-pages", "transparent huge pages"),
    kind("numa-mappings", "NUMA policy of mappings"),
    kind("protection-keys", "protection keys"),
    kind("sparse-memory", "sparse memory"),
    kind("brk", "the break"),
    kind("aio", "rings of asynchronous I/O (io_setup)"),
    kind("userfaultfd", "userfaultfd in use"),
    kind("many-mappings", "tens of thousands of mappings"),
];

const FILES: &[Kind] = &[
    kind("regular", "regular files: offset, flags"),
    kind("shared-descriptions", "descriptions shared by descriptors and processes"),
    kind("append", "files opened to append"),
    tested(
        "grown-log",
        "files that grew since the capture",
        &[
            "tests/harness/tests/outside.rs:a_log_may_have_grown",
            "refused tests/harness/tests/outside.rs:another_file_may_not_have_grown",
        ],
        "a log that is only appended to is carried",
    ),
    kind("o-path", "O_PATH descriptors"),
    kind("o-tmpfile", "O_TMPFILE"),
    kind("deleted", "deleted files"),
    kind("renamed-over", "files that another was renamed over"),
    kind("sparse", "large and sparse files"),
    kind("directories", "directories"),
    kind("pipes", "pipes: data, sizes"),
    kind("packet-pipes", "pipes in packet mode"),
    kind("fifos", "named pipes"),
    kind("eventfd", "eventfd"),
    kind("epoll", "epoll, nested too"),
    kind("epoll-dead", "epoll with members whose number is closed"),
    kind("signalfd", "signalfd"),
    kind("timerfd", "timerfd"),
    kind("inotify", "inotify"),
    kind("fanotify", "fanotify"),
    kind("pidfd", "pidfd"),
    kind("pidfd-gone", "pidfd of a process that is gone or outside"),
    kind("pty", "terminals: termios, window, foreground group"),
    kind("pty-data", "unread data of a terminal"),
    kind("devices", "safe devices (null, zero, full, random, urandom)"),
    kind("devices-other", "other devices"),
    kind("locks", "POSIX, flock and OFD locks"),
    kind("leases", "leases"),
    kind("owners", "owners and signals of descriptors (F_SETOWN, F_SETSIG, O_ASYNC)"),
    kind("clone-files", "a descriptor table that processes share (CLONE_FILES)"),
    kind("clone-fs", "working directory, root and umask that processes share (CLONE_FS)"),
    kind("in-flight", "descriptors in flight"),
    kind("cwd-root-umask", "working directory, root, umask"),
    kind("bpf", "BPF maps and programs"),
    kind("perf", "perf events"),
    kind("io-uring", "io_uring"),
    kind("namespace-files", "open namespace files"),
];

const SOCKETS: &[Kind] = &[
    kind("unix-sockets", "unix sockets: pairs, listeners, queues, credentials, senders"),
    kind("unix-peers", "unix sockets: whom they show as their peer (SO_PEERCRED)"),
    kind("unix-pending", "unix connections that wait to be accepted"),
    tested(
        "unix-outside",
        "unix sockets connected to somebody outside",
        &[
            "tests/harness/tests/outside.rs:sockets_outside_are_connected_again",
            "refused tests/harness/tests/outside.rs:sockets_outside_are_refused_by_name",
        ],
        "by name, or closed, when asked for",
    ),
    noted(
        "tcp",
        "TCP: listeners, connections in every state, queues, options",
        "with --tcp-established",
    ),
    kind("udp", "UDP, with unread datagrams"),
    kind("netlink", "netlink sockets: groups, port"),
    kind("netlink-data", "netlink sockets with unread messages"),
    kind("raw", "raw sockets"),
    kind("packet", "packet sockets"),
];

const SIGNALS: &[Kind] = &[
    kind("dispositions", "dispositions, flags and masks of handlers"),
    kind("queued-siginfo", "queued signals with their siginfo"),
    kind("interval-timers", "interval timers"),
    kind("posix-timers", "POSIX timers"),
    noted("overruns", "overruns that a pending signal of a POSIX timer would tell", ""),
    kind("clocks", "clocks do not go back"),
    tested(
        "ns-time",
        "clocks of a time namespace go on",
        &["crates/engine/tests/namespaces.rs:the_monotonic_clock_goes_on"],
        "",
    ),
    kind("timers-due", "timers that were due while frozen"),
];

const CREDENTIALS: &[Kind] = &[
    kind("ids", "user and group ids, supplementary groups"),
    kind("capabilities", "all five sets of capabilities"),
    kind("securebits", "securebits"),
    kind("no-new-privs", "no_new_privs"),
    kind("seccomp-strict", "seccomp strict mode"),
    kind("seccomp-filters", "seccomp filters, inherited ones too"),
    kind("labels", "AppArmor and SELinux labels"),
    kind("user-ns", "user namespaces with maps"),
    noted("landlock", "Landlock domains", "a restored task is free of them"),
];

const NAMESPACES: &[Kind] = &[
    kind("ns-uts", "uts: host and domain name"),
    kind("sysv-sem", "ipc: System V semaphores"),
    kind("sysv-msg", "ipc: System V message queues"),
    kind("mqueues", "ipc: POSIX message queues"),
    tested(
        "ns-mount",
        "mount: binds, propagation, overmounts, tmpfs contents, read-only, pivoted roots",
        &[
            "crates/engine/tests/namespaces.rs:a_container_like_mount_tree_is_rebuilt",
            "crates/engine/tests/namespaces.rs:the_hosts_mounts_unshared_are_rebuilt",
        ],
        "",
    ),
    tested(
        "ns-net",
        "net: loopback; devices of containers",
        &[
            "crates/engine/tests/namespaces.rs:an_empty_network_namespace_is_rebuilt_and_devices_are_refused",
            "refused crates/engine/tests/namespaces.rs:an_empty_network_namespace_is_rebuilt_and_devices_are_refused",
        ],
        "a container's devices, addresses, routes and rules are made anew by `arctern` itself",
    ),
    kind("ns-pid", "pid"),
    tested(
        "ns-external",
        "joined and external namespaces",
        &["crates/engine/tests/namespaces.rs:external_namespaces_are_joined"],
        "",
    ),
    kind("ns-nested", "namespaces inside of the tree"),
];

const CGROUPS: &[Kind] = &[
    tested(
        "cgroup-membership",
        "membership by thread, properties",
        &["crates/engine/tests/cgroups.rs:groups_below_the_roots_are_made_and_removed"],
        "",
    ),
    tested(
        "cgroup-freezer",
        "freezer, version 1 and 2",
        &[
            "crates/engine/tests/cgroups.rs:a_group_of_version_2_freezes_and_thaws",
            "crates/engine/tests/cgroups.rs:a_group_of_version_1_freezes_and_thaws",
        ],
        "",
    ),
    tested(
        "cgroup-cpuset",
        "cpusets",
        &["crates/engine/tests/cgroups.rs:a_made_cpuset_takes_tasks"],
        "",
    ),
];

const PROGRAMS: &[Kind] = &[
    tested(
        "postgres",
        "PostgreSQL under pgbench",
        &["tests/harness/tests/programs.rs:postgres_loses_no_commit"],
        "no commit lost, its sums agree",
    ),
    tested(
        "redis",
        "redis with clients, an append-only file, and snapshots by children",
        &[
            "tests/harness/tests/programs.rs:redis_keeps_what_it_has_answered",
            "tests/harness/tests/containers.rs:redis_keeps_every_key",
        ],
        "no answered write lost",
    ),
    tested(
        "nginx",
        "nginx with clients on kept-open connections, and in the middle of a download",
        &[
            "tests/harness/tests/programs.rs:nginx_serves_on",
            "tests/harness/tests/containers.rs:nginx_serves_after_every_restore",
        ],
        "",
    ),
    tested(
        "node",
        "Node with timers, workers, files, a child, a connection",
        &["tests/harness/tests/programs.rs:node_keeps_its_timers_and_workers"],
        "",
    ),
    tested(
        "java",
        "Java with a busy heap",
        &["tests/harness/tests/programs.rs:java_keeps_its_heap"],
        "",
    ),
    tested(
        "desk",
        "a shell and an editor in tmux, a build with gcc, SQLite writers, Python with threads and \
         multiprocessing",
        &["tests/harness/tests/programs.rs:what_is_at_work_on_a_desk_goes_on"],
        "SQLite where the container keeps its files",
    ),
    tested(
        "systemd",
        "systemd as init",
        &["tests/harness/tests/programs.rs:systemd_goes_on_as_init"],
        "without logind, whose namespaces are not carried, and without filters in BPF",
    ),
];
