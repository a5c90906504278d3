//! Namespaces and mounts of a program, captured and built again in a stub. Needs root.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use arctern_engine::error::Refusal;
use arctern_engine::options::{External, Silent};
use arctern_engine::restore_context::{RestoreContext, TaskNode};
use arctern_engine::state::cgroup::Entrance;
use arctern_engine::state::namespaces::{
    NamespaceCollector, NamespaceOptions, NamespaceRestore, NamespaceRestoreOptions,
};
use arctern_engine::tree::{FrozenTask, FrozenTree, SharedIds};
use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{InventoryEntry, TaskKobjIdsEntry};
use arctern_image::pages::PagesIds;
use arctern_sys::pidfd::PidFd;
use arctern_sys::proc::{self, mountinfo::Mount};
use arctern_sys::{Pid, ptrace};
use arctern_tracee::stub::Stub;
use arctern_tracee::thread::{StoppedThread, wait_for_stop};
use nix::fcntl::{FcntlArg, fcntl};

const GADGET: u64 = 0x1000_0000;

/// A program in namespaces of its own, killed at the end.
struct Program {
    unshare: Child,
    pid: Pid,
}

impl Program {
    /// Runs `script` under unshare(1) with the given options; the script says `ready`.
    fn start(options: &[&str], script: &str) -> Self {
        let script = format!("{script}\necho ready\nread line");
        let mut unshare = Command::new("unshare")
            .args(options)
            .args(["--fork", "--kill-child", "sh", "-ec", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) runs");
        let mut out = BufReader::new(unshare.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the script ran to its end");
        let outer = Pid(unshare.id() as i32);
        let pid = proc::children(outer).unwrap()[0];
        Program { unshare, pid }
    }

    /// The program, stopped.
    fn freeze(&self) -> FrozenTree {
        ptrace::seize(self.pid, 0).unwrap();
        ptrace::interrupt(self.pid).unwrap();
        assert!(wait_for_stop(self.pid).unwrap());
        let status = proc::status::read(self.pid, self.pid).unwrap();
        let inner_pid = proc::read(self.pid, "status")
            .unwrap()
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok())
            .unwrap();
        let task = FrozenTask {
            pid: self.pid,
            inner_pid,
            parent: None,
            stat: proc::stat::read(self.pid).unwrap(),
            status,
            pidfd: PidFd::open(self.pid).unwrap(),
            observed: false,
            threads: vec![StoppedThread::take(self.pid, inner_pid).unwrap()],
            thread_status: Vec::new(),
            mappings: Vec::new(),
            session: None,
            ids: SharedIds { vm: 2, files: 2, fs: 2, sighand: 2 },
        };
        FrozenTree { tasks: vec![task] }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its death takes the rest along (--kill-child).
        self.unshare.kill().ok();
        self.unshare.wait().ok();
    }
}

fn capture(tree: &mut FrozenTree, externals: &[External], images: &ImageDir) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let options = NamespaceOptions { externals };
    let start = std::time::Instant::now();
    let mut namespaces = NamespaceCollector::collect(tree, &options, &mut refusals).unwrap();
    eprintln!("collected in {:?}", start.elapsed());
    if !refusals.is_empty() {
        return refusals;
    }
    let mut ids = TaskKobjIdsEntry::default();
    namespaces.fill_ids(0, &mut ids);
    let inventory = InventoryEntry {
        img_version: 2,
        root_ids: Some(namespaces.root_ids()),
        ..InventoryEntry::default()
    };
    images.write_one(ImageKind::Inventory, 0, &inventory).unwrap();
    images.write_one(ImageKind::Ids, 1, &ids).unwrap();
    let start = std::time::Instant::now();
    namespaces.write(tree, images, &PagesIds::new()).unwrap();
    eprintln!("written in {:?}", start.elapsed());
    refusals
}

/// A stub with rebuilt namespaces; it dies with its last reference.
struct Restored {
    stub: Stub,
}

impl Drop for Restored {
    fn drop(&mut self) {
        let pid = self.stub.tid();
        PidFd::open(pid).and_then(|fd| fd.send_signal(libc::SIGKILL)).ok();
        ptrace::wait(pid).ok();
    }
}

fn restore(images: &ImageDir, pid: i32, root: Option<&Path>, externals: &[External]) -> Restored {
    let options = NamespaceRestoreOptions {
        root,
        externals,
        inherit_fds: &[],
        terminals: &[],
        confinement: None,
        join: &[],
    };
    restore_with(images, pid, options)
}

fn restore_with(images: &ImageDir, pid: i32, options: NamespaceRestoreOptions<'_>) -> Restored {
    let ids = images.read_one(ImageKind::Ids, 1).unwrap();
    let task = TaskNode { pid, comm: "sh".to_owned(), ids, ..TaskNode::default() };
    let mut namespaces = NamespaceRestore::load(images, &task, &options).unwrap();
    let mut refusals = Vec::new();
    namespaces.check(&mut refusals);
    assert!(refusals.is_empty(), "{refusals:?}");
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let base = fcntl(&theirs, FcntlArg::F_DUPFD(700)).unwrap();
    let root = namespaces.spawn_root(false, pid, &Entrance::default()).unwrap();
    let restored = Restored { stub: Stub::adopt(root, GADGET).unwrap() };
    nix::unistd::close(base).unwrap();
    let mut ctx = RestoreContext::new(base, ours);
    let start = std::time::Instant::now();
    namespaces.build(&mut ctx, &restored.stub, &mut Silent).unwrap();
    eprintln!("built in {:?}", start.elapsed());
    restored
}

/// What must be the same of two lists of mounts: everything but the kernel's numbers.
fn comparable(pid: Pid) -> Vec<String> {
    let mounts = proc::mountinfo::read(pid).unwrap();
    let group = |id: u32, mounts: &[Mount]| {
        // A group by the places of its members.
        let members = mounts.iter().filter(|m| m.shared == id).map(|m| m.mountpoint.as_str());
        let mut members: Vec<_> = if id == 0 { Vec::new() } else { members.collect() };
        members.sort_unstable();
        members.join("+")
    };
    let mut lines: Vec<String> = mounts
        .iter()
        .map(|m| {
            format!(
                "{} {} {} {:x} {:?} shared[{}] master[{}] unbindable[{}]",
                m.mountpoint,
                m.root,
                m.fstype,
                m.flags(),
                m.super_options,
                group(m.shared, &mounts),
                group(m.master, &mounts),
                m.unbindable,
            )
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// A directory that the programs pivot to, with a few places in it.
fn root_dir() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for dir in ["proc", "dev", "sys", "mnt", "usr", "old"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    for dir in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{dir}"), root.path().join(dir)).unwrap();
    }
    root
}

#[test]
fn a_container_like_mount_tree_is_rebuilt() {
    let root = root_dir();
    let script = format!(
        "cd {root}
         mount --bind . .
         cd {root}
         mount -t proc -o nosuid,nodev,noexec proc proc
         mount -t tmpfs -o nosuid,size=64k,mode=755 dev dev
         mkdir dev/pts dev/mqueue dev/shm
         touch dev/null
         mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
         mount -t mqueue mqueue dev/mqueue
         mount -t sysfs -o ro,nosuid sysfs sys
         mount -t tmpfs -o size=1m shm dev/shm
         echo content >dev/shm/file
         mount --bind dev/null proc/uptime
         mount --bind proc/sys proc/sys
         mount -o remount,bind,ro proc/sys
         mount -t tmpfs -o ro,size=4k none proc/acpi 2>/dev/null || mount -t tmpfs -o ro,size=4k none proc/irq
         mkdir mnt/s mnt/s2 mnt/u mnt/p
         mount -t tmpfs s mnt/s
         mount --make-shared mnt/s
         mkdir mnt/s/x mnt/s/y
         mount --bind mnt/s mnt/s2
         mount --make-slave mnt/s2
         mount -t tmpfs inner mnt/s/x
         echo deep >mnt/s/x/deep
         mount --bind mnt/s/y mnt/p
         mount --make-slave mnt/p
         mount --make-shared mnt/p
         mount -t tmpfs u mnt/u
         mount --make-unbindable mnt/u
         mount -t tmpfs covered mnt
         hostname inner
         mount --bind /usr usr
         pivot_root . old
         umount -l /old
         ",
        root = root.path().display()
    );
    let program = Program::start(&["--mount", "--pid", "--ipc", "--uts"], &script);
    let mut tree = program.freeze();
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    let refused = capture(&mut tree, &[], &images);
    let causes: Vec<_> = refused.iter().map(|r| r.subject.part.as_str()).collect();
    assert_eq!(causes, ["mount /usr"], "the host's directory is refused");
    let named = External::Mount { key: "/usr".to_owned(), value: "programs".to_owned() };
    let refused = capture(&mut tree, &[named], &images);
    assert!(refused.is_empty(), "{refused:?}");

    let given = External::Mount { key: "programs".to_owned(), value: "/usr".to_owned() };
    let restored = restore(&images, 1, Some(root.path()), &[given]);
    let stub = restored.stub.tid();
    let (before, after) = (comparable(program.pid), comparable(stub));
    for line in &before {
        assert!(after.contains(line), "missing: {line}\nhas:\n{}", after.join("\n"));
    }
    assert_eq!(before.len(), after.len(), "{after:#?}");
    let inside = proc::path(stub, "root");
    assert_eq!(fs::read(inside.join("dev/shm/file")).unwrap(), b"content\n");
    assert_eq!(
        fs::read_link(inside.join("proc/self")).map(drop).ok(),
        None,
        "not in that namespace"
    );
    assert!(inside.join("proc/1/status").exists());
    let host = proc::mountinfo::read(Pid(std::process::id() as i32)).unwrap();
    let ours = |m: &&Mount| Path::new(&m.mountpoint).starts_with(root.path());
    assert!(host.iter().find(ours).is_none(), "nothing was mounted on the host");
    let uts = arctern_sys::namespace::inside(stub, &[arctern_sys::namespace::Kind::Uts], || {
        Ok(nix::sys::utsname::uname()?.nodename().to_owned())
    });
    assert_eq!(uts.unwrap(), "inner");
}

#[test]
fn the_hosts_mounts_unshared_are_rebuilt() {
    // What others have mounted on this machine for their containers is none of this test's.
    let script = "for i in 1 2 3; do
         awk '$0 ~ / - (overlay|nsfs|fuse[^ ]*|ext4|btrfs|xfs) / && $5 != \"/\" {print $5}' \
           /proc/self/mountinfo | xargs -r umount -l 2>/dev/null || true
         done
         mount -t tmpfs t /mnt; echo hi >/mnt/f; mount -t tmpfs over /mnt";
    let program = Program::start(&["--mount"], script);
    let mut tree = program.freeze();
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    let refused = capture(&mut tree, &[], &images);
    assert!(refused.is_empty(), "{refused:?}");
    let restored = restore(&images, 4_000, None, &[]);
    assert_eq!(comparable(program.pid), comparable(restored.stub.tid()));
}

#[test]
fn the_monotonic_clock_goes_on() {
    let program = Program::start(&["--pid", "--time", "--monotonic", "-1000"], "");
    let mut tree = program.freeze();
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    let refused = capture(&mut tree, &[], &images);
    assert!(refused.is_empty(), "{refused:?}");
    let restored = restore(&images, 1, None, &[]);
    let offset = |pid: Pid| {
        let text = proc::read(pid, "timens_offsets").unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap()
    };
    assert_eq!(offset(program.pid), -1000);
    let after = offset(restored.stub.tid());
    assert!((-1010..=-1000).contains(&after), "{after}");
    let entered = proc::namespace(restored.stub.tid(), "time").unwrap();
    assert_ne!(entered, proc::namespace(program.pid, "time").unwrap());
    assert_eq!(entered, proc::namespace(restored.stub.tid(), "time_for_children").unwrap());
}

#[test]
fn an_empty_network_namespace_is_rebuilt_and_devices_are_refused() {
    let up = Program::start(&["--net"], "ip link set lo up");
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    assert!(capture(&mut up.freeze(), &[], &images).is_empty());
    let restored = restore(&images, 4_001, None, &[]);
    let trie = proc::read(restored.stub.tid(), "net/fib_trie").unwrap();
    assert!(trie.contains("127.0.0.1"), "lo is up");

    let busy = Program::start(&["--net"], "ip link add v0 type veth peer v1");
    let refused = capture(&mut busy.freeze(), &[], &images);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].remedy.to_string().contains("--external net["), "{}", refused[0]);
}

#[test]
fn system_v_objects_are_rebuilt() {
    let make = "
import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
def check(n):
    assert n >= 0, os.strerror(ctypes.get_errno())
    return n
open('/proc/sys/kernel/shmmni', 'w').write('1234')
check(c.shmget(0x10, 100, 0o1600)); gone = check(c.shmget(0x11, 100, 0o1600))
seg = check(c.shmget(0x12, 3 * 4096, 0o1640))
check(c.shmctl(gone, 0, None))
c.shmat.restype = ctypes.c_void_p
at = c.shmat(seg, None, 0)
ctypes.memmove(at + 4096, b'in the second page', 18)
sem = check(c.semget(0x20, 3, 0o1600))
check(c.semctl(sem, 1, 16, 42))
queue = check(c.msgget(0x30, 0o1600))
for kind, text in ((5, b'five'), (6, b'sixth message')):
    check(c.msgsnd(queue, ctypes.c_long(kind).value.to_bytes(8, 'little') + text, len(text), 0))
";
    let script = format!("python3 -c \"{make}\"");
    let program = Program::start(&["--ipc"], &script);
    let mut tree = program.freeze();
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    let refused = capture(&mut tree, &[], &images);
    assert!(refused.is_empty(), "{refused:?}");
    let restored = restore(&images, 4_002, None, &[]);
    let read = |pid: Pid| {
        arctern_sys::namespace::inside(pid, &[arctern_sys::namespace::Kind::Ipc], || {
            let list = |name: &str| {
                let text = fs::read_to_string(format!("/proc/sysvipc/{name}"))?;
                Ok::<_, std::io::Error>(arctern_sys::ipc::parse(&text)?)
            };
            let (shm, sem, msg) = (list("shm")?, list("sem")?, list("msg")?);
            let mut memory = vec![0; 3 * 4096];
            let segment = arctern_sys::ipc::Segment::attach(shm[1].owner.id, shm[1].size)?;
            std::os::unix::fs::FileExt::read_exact_at(&segment.file()?, &mut memory, 0)?;
            let values = arctern_sys::ipc::semaphores(sem[0].owner.id, 3)?;
            let second = arctern_sys::ipc::peek_message(msg[0].owner.id, 1, 100)?;
            let setting = fs::read_to_string("/proc/sys/kernel/shmmni")?;
            Ok((shm, sem, msg, memory, values, second, setting))
        })
        .unwrap()
    };
    let (before, after) = (read(program.pid), read(restored.stub.tid()));
    assert_eq!(before, after);
    assert_eq!(before.4, [0, 42, 0]);
    assert_eq!(before.5, Some((6, b"sixth message".to_vec())));
    assert_eq!(before.6, "1234\n");
    assert_eq!(&before.3[4096..4114], b"in the second page");
}

#[test]
fn external_namespaces_are_joined() {
    let program = Program::start(&["--pid", "--net", "--uts"], "hostname kept");
    let inode = |pid: Pid, name: &str| proc::namespace(pid, name).unwrap().unwrap();
    let externals = [
        External::PidNs { ino: inode(program.pid, "pid"), name: "pids".to_owned() },
        External::NetNs { ino: inode(program.pid, "net"), name: "net".to_owned() },
    ];
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    let refused = capture(&mut program.freeze(), &externals, &images);
    assert!(refused.is_empty(), "{refused:?}");

    let namespace = |name: &str| fs::File::open(proc::path(program.pid, name)).unwrap().into();
    let inherit =
        [("pids".to_owned(), namespace("ns/pid")), ("net".to_owned(), namespace("ns/net"))];
    let options = NamespaceRestoreOptions {
        root: None,
        externals: &[],
        inherit_fds: &inherit,
        terminals: &[],
        confinement: None,
        join: &[],
    };
    let restored = restore_with(&images, 77, options);
    let stub = restored.stub.tid();
    for name in ["pid", "net"] {
        assert_eq!(inode(stub, name), inode(program.pid, name), "{name}");
    }
    assert_ne!(inode(stub, "uts"), inode(program.pid, "uts"));
    assert!(proc::read(stub, "status").unwrap().contains("\t77\n"), "its pid inside");
    let own = Pid(std::process::id() as i32);
    assert_eq!(inode(own, "pid"), inode(own, "pid_for_children"), "we are back home");

    let options = NamespaceRestoreOptions {
        root: None,
        externals: &[],
        inherit_fds: &[],
        terminals: &[],
        confinement: None,
        join: &[],
    };
    let ids = images.read_one(ImageKind::Ids, 1).unwrap();
    let task = TaskNode { pid: 77, ids, ..TaskNode::default() };
    let mut refusals = Vec::new();
    NamespaceRestore::load(&images, &task, &options).unwrap().check(&mut refusals);
    let parts: Vec<_> = refusals.iter().map(|r| r.subject.part.as_str()).collect();
    assert_eq!(parts, ["pid namespace", "net namespace"]);
}
