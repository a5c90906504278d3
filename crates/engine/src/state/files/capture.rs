//! Collects the descriptors of a frozen tree and writes their images.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    FdinfoEntry, FileEntry, FileLockEntry, FsEntry, MemfdInodeEntry, RemapFilePathEntry,
};
use arctern_image::pages::PagesIds;
use arctern_sys::kcmp::{self, kcmp};
use arctern_sys::proc::locks::Owner;
use arctern_sys::{Pid, proc};
use nix::sys::stat::{SFlag, fstat};

use super::descriptor::{self, Descriptor};
use super::{epoll, ghost, passed, pipe, regular, tcp, tty, udp, unix};
use crate::error::{CaptureError, Refusal};
use crate::options::{External, ExternalUnix, TcpPolicy};
use crate::tree::FrozenTree;

/// What the caller decided about files.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// Terminals may belong to somebody outside of the tree.
    pub shell_job: bool,
    /// Terminals may have their master outside of the tree, in its mount namespace.
    pub orphan_terminals: bool,
    /// Capture file locks instead of refusing them.
    pub file_locks: bool,
    /// Largest deleted file that goes into the images, in bytes.
    pub ghost_limit: u64,
    /// Things that stay outside.
    pub externals: Vec<External>,
    /// Unix sockets that are connected to a socket outside.
    pub external_unix: ExternalUnix,
    /// The mount namespace goes into the images: entries of files name their mounts.
    pub mount_namespace: bool,
    /// Id of the tree's network namespace in the images.
    pub net_ns_id: u32,
    /// What is done about live TCP connections.
    pub tcp: TcpPolicy,
    /// Connections that nobody has accepted yet are left out.
    pub skip_in_flight: bool,
    /// Connections that nobody has accepted yet may be taken and given back: the network is locked
    /// then.
    pub takes_waiting: bool,
    /// The tasks run meanwhile: what is gone is passed over, and nothing is looked at whose look leaves
    /// a trace.
    pub observing: bool,
}

/// What identifies a description before the kernel is asked whether two are one: device, inode,
/// position, flags, mount, number of the eventfd.
pub(super) type Bucket = (u64, u64, i64, u32, i32, i32);

/// A description that was met before, and one descriptor that leads to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub id: u32,
    /// `FdTypes` of the description.
    pub kind: i32,
    pub pid: Pid,
    pub fd: i32,
}

/// `/proc/PID/fd` and `/proc/PID/fdinfo`, open.
struct Directories {
    links: File,
    infos: File,
}

impl Directories {
    fn open(pid: Pid) -> io::Result<Self> {
        let open = |name| File::open(proc::path(pid, name));
        Ok(Directories { links: open("fd")?, infos: open("fdinfo")? })
    }
}

/// Collects open files; ids are unique in one checkpoint.
#[derive(Debug, Default)]
pub struct FileCollector {
    pub(super) options: FileOptions,
    pub(super) files: Vec<FileEntry>,
    last_id: u32,
    pub(super) tables: BTreeMap<u32, Vec<FdinfoEntry>>,
    pub(super) known: HashMap<Bucket, Vec<Known>>,
    pub(super) paths: regular::Paths,
    pub(super) remaps: Vec<RemapFilePathEntry>,
    pub(super) ghosts: ghost::Ghosts,
    pub(super) pipes: pipe::Contents,
    pub(super) fifos: pipe::Contents,
    pub(super) memfds: Vec<(MemfdInodeEntry, PathBuf)>,
    pub(super) mapped_memfds: HashMap<(u32, u32), u32>,
    pub(super) unix: unix::Collected,
    pub(super) udp: Vec<udp::Member>,
    pub(super) passed: passed::Passed,
    pub(super) tcp: tcp::Collected,
    pub(super) terminals: tty::Collected,
    pub(super) epolls: Vec<epoll::Pending>,
    fs: Vec<(i32, FsEntry)>,
    pub(super) locks: Vec<FileLockEntry>,
    pub(super) seen_locks: HashSet<SeenLock>,
}

/// What tells one lock from another: owner, kind, file, range.
type SeenLock = (Owner, u32, (u32, u32, u64), i64, Option<i64>);

impl FileCollector {
    /// An empty collection.
    pub fn new(options: &FileOptions) -> Self {
        FileCollector { options: options.clone(), ..FileCollector::default() }
    }

    /// The next free id.
    pub(super) fn new_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// Looks at every descriptor of every task. What cannot be carried goes to `refusals`.
    ///
    /// # Errors
    /// The kernel does not answer about a descriptor.
    pub fn collect_descriptors(
        &mut self,
        tree: &mut FrozenTree,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CaptureError> {
        for index in 0..tree.tasks.len() {
            let task = &tree.tasks[index];
            if task.is_zombie() {
                continue;
            }
            if self.tables.contains_key(&task.ids.files) {
                continue;
            }
            let numbers =
                proc::descriptors(task.pid).map_err(task.failed("", "list its descriptors"))?;
            let from = Directories::open(task.pid)
                .map_err(task.failed("", "open the list of its descriptors"))?;
            let mut table = Vec::with_capacity(numbers.len());
            let files_id = task.ids.files;
            for fd in numbers {
                match self.descriptor(tree, index, &from, fd, refusals) {
                    Err(error) if self.options.observing && error.is_gone() => {}
                    entry => table.extend(entry?),
                }
            }
            self.tables.insert(files_id, table);
        }
        // After the descriptors: CRIU removes deleted files in this order, directories last.
        for index in (0..tree.tasks.len()).filter(|index| !tree.tasks[*index].is_zombie()) {
            self.collect_fs(tree, index, refusals)?;
        }
        if !self.options.observing {
            self.collect_passed(tree, refusals)?;
            self.find_peers(tree)?;
        }
        self.resolve_unix(tree, refusals);
        self.resolve_terminals(tree, refusals);
        self.resolve_epolls(tree, refusals)
    }

    /// Root, working directory and umask of a task.
    fn collect_fs(
        &mut self,
        tree: &FrozenTree,
        index: usize,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CaptureError> {
        let cwd_id = self.link_file(tree, index, "cwd", refusals)?;
        let root_id = self.link_file(tree, index, "root", refusals)?;
        let task = &tree.tasks[index];
        let umask = Some(task.status.umask);
        self.fs.push((task.inner_pid, FsEntry { cwd_id, root_id, umask }));
        Ok(())
    }

    /// One descriptor; None if it was refused.
    fn descriptor(
        &mut self,
        tree: &FrozenTree,
        index: usize,
        from: &Directories,
        fd: i32,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FdinfoEntry>, CaptureError> {
        let task = &tree.tasks[index];
        let link = nix::fcntl::readlinkat(&from.links, fd.to_string().as_str())
            .map_err(|e| task.failed(format!("fd {fd}"), "read its link")(e.into()))?;
        let link = PathBuf::from(link);
        let failed = |what: &'static str| task.failed(descriptor::part(fd, &link), what);
        let info = proc::fdinfo::read_in(from.infos.as_fd(), fd)
            .map_err(|e| failed("read its fdinfo")(e))?;
        let file =
            task.pidfd.getfd(fd).map_err(|e| failed("duplicate it into the controller")(e))?;
        let stat = fstat(&file).map_err(|e| failed("look at the file")(e.into()))?;
        let cloexec = u32::from(info.flags & libc::O_CLOEXEC as u32 != 0);
        let flags = info.flags & !(libc::O_CLOEXEC as u32);
        let bucket = (stat.st_dev, stat.st_ino, info.pos, flags, info.mnt_id, info.eventfd_id);
        let place = self
            .find_known(bucket, task.pid, fd)
            .map_err(|e| failed("compare it with other descriptors")(e))?;
        let locks = info.locks.clone();
        let (id, kind) = match place {
            Ok(known) => known,
            Err(place) => {
                let fown = descriptor::owner(tree, &file)
                    .map_err(|e| failed("ask for its signal owner")(e))?;
                let Some(fown) = fown else {
                    refusals.push(task.refuse(
                        descriptor::part(fd, &link),
                        "its signals (F_SETOWN) go to a process outside of the tree",
                        "include that process or clear the owner",
                    ));
                    return Ok(None);
                };
                let link = link.clone();
                let passed = false;
                let descriptor =
                    Descriptor { tree, index, fd, passed, link, stat, info, file, fown };
                let Some(entry) = self.object(&descriptor, refusals)? else {
                    return Ok(None);
                };
                let known = Known { id: entry.id, kind: entry.r#type, pid: task.pid, fd };
                self.files.push(entry);
                self.known.entry(bucket).or_default().insert(place, known);
                (known.id, known.kind)
            }
        };
        for lock in locks {
            self.lock(task, fd, &link, id, lock, refusals);
        }
        Ok(Some(FdinfoEntry {
            id,
            flags: cloexec,
            r#type: kind,
            fd: fd as u32,
            xattr_security_selinux: None,
        }))
    }

    /// Whether the description was met before: its id and type, or where it belongs in its bucket,
    /// which is sorted by the kernel's own order of descriptions.
    pub(super) fn find_known(
        &self,
        bucket: Bucket,
        pid: Pid,
        fd: i32,
    ) -> io::Result<Result<(u32, i32), usize>> {
        let Some(known) = self.known.get(&bucket) else {
            return Ok(Err(0));
        };
        let (mut low, mut high) = (0, known.len());
        while low < high {
            let middle = (low + high) / 2;
            let other = &known[middle];
            match kcmp(pid, other.pid, kcmp::Kind::File(fd, other.fd))? {
                Ordering::Equal => return Ok(Ok((other.id, other.kind))),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(Err(low))
    }

    /// The object behind a description; None if it was refused.
    pub(super) fn object(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let link = d.link.to_string_lossy();
        let kind = SFlag::from_bits_truncate(d.stat.st_mode & libc::S_IFMT);
        if d.link.is_absolute() && link.starts_with("/memfd:") && kind == SFlag::S_IFREG {
            return self.memfd(d, refusals);
        }
        match kind {
            SFlag::S_IFREG if !d.link.is_absolute() => {}
            SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFLNK | SFlag::S_IFBLK => {
                return self.path(d, refusals);
            }
            SFlag::S_IFCHR => return self.device(d, refusals),
            SFlag::S_IFIFO if link.starts_with("pipe:[") => return Ok(Some(self.pipe(d))),
            SFlag::S_IFIFO => return self.fifo(d, refusals),
            SFlag::S_IFSOCK => return self.socket(d, refusals),
            _ => {}
        }
        match &*link {
            "anon_inode:[eventfd]" => return Ok(Some(self.eventfd(d))),
            "anon_inode:[eventpoll]" => return Ok(Some(self.epoll(d))),
            "anon_inode:[signalfd]" => return Ok(Some(self.signalfd(d))),
            "anon_inode:[timerfd]" => return self.timerfd(d, refusals),
            "anon_inode:[pidfd]" => return Ok(self.pidfd(d, refusals)),
            "anon_inode:inotify" => return self.inotify(d, refusals),
            _ => {}
        }
        let (what, remedy) = match &*link {
            "anon_inode:[io_uring]" => {
                ("an io_uring instance", "stop the program's asynchronous I/O")
            }
            "anon_inode:[userfaultfd]" => ("a userfaultfd", "end the tracking of memory"),
            "anon_inode:[perf_event]" => ("a performance counter", "end the measurement"),
            "anon_inode:[fanotify]" => ("a fanotify group", "stop the file monitor"),
            text if text.starts_with("anon_inode:bpf") => ("a BPF object", "close it"),
            text if text.contains(":[") => ("a namespace file", "close it before the checkpoint"),
            _ => ("a kind of file that is not known", "close it before the checkpoint"),
        };
        refusals.push(d.refuse(format!("{what} cannot be carried"), remedy));
        Ok(None)
    }

    /// Writes everything that was collected, contents too: `files.img`, a table per set of
    /// descriptors, the data of pipes and queues, deleted files, terminals, locks, and root, working
    /// directory and umask of every task.
    ///
    /// # Errors
    /// The kernel refuses the contents of a file, or an image cannot be written.
    pub fn write(
        &mut self,
        tree: &FrozenTree,
        images: &ImageDir,
        pages: &PagesIds,
    ) -> Result<(), CaptureError> {
        for (pid, entry) in &self.fs {
            images.write_one(ImageKind::Fs, *pid as u64, entry)?;
        }
        images.write_all(ImageKind::Files, 0, self.in_order())?;
        for (id, table) in &self.tables {
            images.write_all(ImageKind::Fdinfo, (*id).into(), table)?;
        }
        write_or_remove(images, ImageKind::RemapFpath, &self.remaps)?;
        write_or_remove(images, ImageKind::Filelocks, &self.locks)?;
        self.ghosts.write(images)?;
        self.pipes.write(images, ImageKind::PipesData)?;
        self.fifos.write(images, ImageKind::FifoData)?;
        self.write_memfds(images, pages)?;
        self.write_queues(tree, images)?;
        self.write_pending(images)?;
        write_or_remove(images, ImageKind::UnixPeers, &self.unix.peers)?;
        self.write_datagrams(tree, images)?;
        self.write_terminals(images)
    }
}

impl FileCollector {
    /// The files as CRIU wants them: it connects a unix socket to its peer only if that comes first.
    fn in_order(&self) -> Vec<&FileEntry> {
        let sockets: HashMap<u32, usize> = self
            .files
            .iter()
            .enumerate()
            .filter_map(|(at, file)| Some((file.usk.as_deref()?.ino, at)))
            .collect();
        let mut listed = vec![false; self.files.len()];
        let mut order = Vec::with_capacity(self.files.len());
        for (at, file) in self.files.iter().enumerate() {
            let peer = file.usk.as_deref().and_then(|socket| sockets.get(&socket.peer));
            for at in peer.copied().into_iter().chain([at]) {
                if !std::mem::replace(&mut listed[at], true) {
                    order.push(&self.files[at]);
                }
            }
        }
        order
    }
}

/// Writes a list, or removes a stale file when there is nothing to write.
pub(super) fn write_or_remove<'a, M: prost::Message + 'a>(
    images: &ImageDir,
    kind: ImageKind,
    list: &'a [M],
) -> Result<(), CaptureError> {
    if list.is_empty() {
        images.remove(kind, 0)?
    } else {
        images.write_all(kind, 0, list)?
    }
    Ok(())
}
