//! The default system call filter of a container.
//!
//! The policy follows what Podman's manual and the seccomp pages of the container documentation
//! describe: calls that ordinary programs make are allowed; calls that a capability guards are
//! allowed when the container has the capability and answer EPERM when it does not; calls that only
//! a host's administration makes answer EPERM; whatever is not listed answers ENOSYS, so that a
//! program takes its fallback on calls that are newer than this list.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::error::Result;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;

/// Address family and protocol of the audit socket, guarded by CAP_AUDIT_WRITE.
const AF_NETLINK: u64 = 16;
const NETLINK_AUDIT: u64 = 9;

/// `personality` arguments that change nothing dangerous: Linux, 32-bit Linux, both with
/// UNAME26, and the query.
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Allowed for everybody.
const ALLOWED: &str = "
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 clone clone3 close close_range connect
copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown
fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsconfig
fsetxattr fsmount fsopen fspick fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32
geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid
getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc keyctl kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link
linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat
lstat64 madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mkdir mkdirat
mknod mknodat mlock mlock2 mlockall mmap mmap2 mount mount_setattr move_mount mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep
newfstatat _newselect open open_tree openat openat2 pause pidfd_getfd pidfd_open pidfd_send_signal
pipe pipe2 pivot_root pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64
preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2
read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64
sendmmsg sendmsg sendto set_mempolicy set_mempolicy_home_node set_robust_list set_thread_area
set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32
setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl
shmdt shmget shutdown sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask
sigreturn sigsuspend socketcall socketpair splice stat stat64 statfs statfs64 statmount statx
symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
ugetrlimit umask umount umount2 uname unlink unlinkat unshare uretprobe utime utimensat
utimensat_time64 utimes vfork wait4 waitid waitpid write writev modify_ldt
";

/// Never part of a program's work in a container: EPERM, not ENOSYS, because no program has a
/// fallback for them.
const ADMINISTRATION: &str = "
bdflush io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load migrate_pages
move_pages nfsservctl nice oldfstat oldlstat oldolduname oldstat olduname pciconfig_iobase
pciconfig_read pciconfig_write sgetmask ssetmask swapoff swapon syscall sysfs uselib userfaultfd
ustat vm86 vm86old vmsplice _sysctl add_key request_key
";

/// Allowed with the capability, EPERM without it.
const GUARDED: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf fanotify_init lookup_dcookie perf_event_open quotactl quotactl_fd setdomainname sethostname setns",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module query_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp process_madvise process_vm_readv process_vm_writev"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// The filter of a container with these capabilities in its bounding set.
pub fn profile(caps: &BTreeSet<&str>) -> Result<LinuxSeccomp> {
    let mut rules = vec![
        rule(ALLOWED, LinuxSeccompAction::ScmpActAllow, None, vec![])?,
        rule(ADMINISTRATION, LinuxSeccompAction::ScmpActErrno, Some(EPERM), vec![])?,
    ];
    for (capability, names) in GUARDED {
        rules.push(if caps.contains(capability) {
            rule(names, LinuxSeccompAction::ScmpActAllow, None, vec![])?
        } else {
            rule(names, LinuxSeccompAction::ScmpActErrno, Some(EPERM), vec![])?
        });
    }
    for value in PERSONALITIES {
        let equal = argument(0, *value, LinuxSeccompOperator::ScmpCmpEq)?;
        rules.push(rule("personality", LinuxSeccompAction::ScmpActAllow, None, vec![equal])?);
    }
    rules.extend(socket_rules(caps.contains("CAP_AUDIT_WRITE"))?);
    Ok(LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(ENOSYS)
        .architectures(architectures())
        .syscalls(rules)
        .build()?)
}

/// All sockets, but the audit one (EINVAL, as on a kernel without it) unless it may be written.
fn socket_rules(audit: bool) -> Result<Vec<LinuxSyscall>> {
    let allow = LinuxSeccompAction::ScmpActAllow;
    if audit {
        return Ok(vec![rule("socket", allow, None, vec![])?]);
    }
    Ok(vec![
        rule(
            "socket",
            LinuxSeccompAction::ScmpActErrno,
            Some(EINVAL),
            vec![
                argument(0, AF_NETLINK, LinuxSeccompOperator::ScmpCmpEq)?,
                argument(2, NETLINK_AUDIT, LinuxSeccompOperator::ScmpCmpEq)?,
            ],
        )?,
        rule(
            "socket",
            allow,
            None,
            vec![argument(2, NETLINK_AUDIT, LinuxSeccompOperator::ScmpCmpNe)?],
        )?,
        rule(
            "socket",
            allow,
            None,
            vec![argument(0, AF_NETLINK, LinuxSeccompOperator::ScmpCmpNe)?],
        )?,
    ])
}

fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    }
}

fn rule(
    names: &str,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall> {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    Ok(builder.build()?)
}

fn argument(index: usize, value: u64, op: LinuxSeccompOperator) -> Result<LinuxSeccompArg> {
    Ok(LinuxSeccompArgBuilder::default().index(index).value(value).op(op).build()?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn no_call_is_in_two_lists() {
        let mut seen = HashMap::new();
        let guarded = GUARDED.iter().map(|(cap, names)| (*cap, *names));
        for (list, names) in
            [("allowed", ALLOWED), ("administration", ADMINISTRATION)].into_iter().chain(guarded)
        {
            for name in names.split_whitespace() {
                assert_eq!(seen.insert(name, list), None, "{name} is in {list} and elsewhere");
            }
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        let action = |caps: &[&str], call: &str| {
            let profile = profile(&caps.iter().copied().collect()).expect("profile");
            let calls = profile.syscalls().clone().expect("calls");
            calls
                .iter()
                .find(|c| c.names().iter().any(|n| n == call))
                .map(LinuxSyscall::action)
                .expect("listed")
        };
        assert_eq!(action(&[], "chroot"), LinuxSeccompAction::ScmpActErrno);
        assert_eq!(action(&["CAP_SYS_CHROOT"], "chroot"), LinuxSeccompAction::ScmpActAllow);
        assert_eq!(action(&[], "openat"), LinuxSeccompAction::ScmpActAllow);
    }
}
