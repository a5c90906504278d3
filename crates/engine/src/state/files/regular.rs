//! Files with a path: regular files, directories, symbolic links (O_PATH), and the character
//! devices that have no state of their own.
//!
//! Fields come from fdinfo (position, flags, mount), from the text of the /proc link (path) and from
//! stat(2). The path is looked up again below the task's root: if it leads to another file, or
//! nowhere, the file was deleted ([`super::ghost`]) or has only another name left, which is searched
//! in the same directory.
//!
//! Size, mode and build id are kept so that restore can refuse a file that is no longer the same.
//! Not kept: contents. Refused: paths outside of the task's root, paths that are not UTF-8 (the
//! format cannot hold them), other devices.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arctern_image::messages::{
    FdTypes, FileEntry, FownEntry, RegFileEntry, RemapFilePathEntry, RemapType,
};
use arctern_sys::mount::open_how;
use arctern_sys::proc::smaps::Mapping;
use arctern_sys::{Pid, proc};
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, fstat, fstatat, stat};

use super::build_id;
use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::table::Opener;
use crate::error::{CaptureError, Refusal, RestoreError};
use crate::options::External;
use crate::tree::{FrozenTask, FrozenTree};

/// Minor numbers of the memory devices (major 1) without state: null, zero, full, random, urandom.
const MEMORY_DEVICES: [u64; 5] = [3, 5, 7, 8, 9];
const MEMORY_MAJOR: u64 = 1;

const DELETED: &str = " (deleted)";

/// Whose mode is neither kept nor compared: it belongs to whoever made the root file system (Podman
/// gives it 0555, whatever the image says).
const ROOT: &str = "/";

/// What was looked up already.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Files of mappings, as smaps lists them: device, inode, name, flags.
    mapped: HashMap<(u32, u32, u64, String, u32), u32>,
    /// Files without a description of their own (mapped, exe, cwd, root): device, inode, path, flags.
    plain: HashMap<(u64, u64, PathBuf, u32), u32>,
    /// Where to look paths up, by task.
    roots: HashMap<i32, PathBuf>,
}

impl Paths {
    /// The directory below which absolute paths of a task's links are found. The texts begin at the
    /// root of the mount namespace, not at a root set by chroot(2).
    fn root(&mut self, tree: &FrozenTree, task: &FrozenTask) -> &Path {
        self.roots.entry(task.pid.0).or_insert_with(|| {
            let changed =
                proc::read_link(task.pid, "root").is_ok_and(|link| link != Path::new("/"));
            match tree.tasks.first() {
                Some(first) if changed => proc::path(first.pid, "root"),
                _ => proc::path(task.pid, "root"),
            }
        })
    }
}

/// Where a file was found again.
enum Located {
    /// Under this path.
    Named(String),
    /// Nowhere: it has no name any more. The path that it had.
    Nameless(String),
    /// Cannot be carried: cause and remedy.
    Not(&'static str, &'static str),
}

/// A file with a path, however the task has it.
struct Found<'a> {
    task: &'a FrozenTask,
    /// For refusals.
    part: String,
    link: PathBuf,
    stat: FileStat,
    /// Opens it: `/proc/PID/fd/N`, `/proc/PID/map_files/…`, `/proc/PID/exe`.
    through: PathBuf,
    flags: u32,
    pos: u64,
    mnt_id: Option<i32>,
    fown: FownEntry,
}

impl FileCollector {
    /// A descriptor of a regular file, directory or link.
    pub(super) fn path(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        if d.stat.st_mode & libc::S_IFMT == libc::S_IFBLK && d.flags() & libc::O_PATH as u32 == 0 {
            refusals.push(d.refuse("an open block device cannot be carried", "close it"));
            return Ok(None);
        }
        let id = self.new_id();
        let found = Found {
            task: d.task(),
            part: d.part(),
            link: d.link.clone(),
            stat: d.stat,
            through: d.path(),
            flags: d.flags(),
            pos: d.info.pos.max(0) as u64,
            mnt_id: Some(d.info.mnt_id),
            fown: d.fown.clone(),
        };
        self.regular(d.tree, id, found, refusals)
    }

    /// A descriptor of a character device.
    pub(super) fn device(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let (major, minor) =
            (nix::sys::stat::major(d.stat.st_rdev), nix::sys::stat::minor(d.stat.st_rdev));
        if d.flags() & libc::O_PATH as u32 != 0
            || major == MEMORY_MAJOR && MEMORY_DEVICES.contains(&minor)
        {
            return self.path(d, refusals);
        }
        if super::tty::is_terminal(major) {
            return self.terminal(d, refusals);
        }
        refusals.push(d.refuse(
            format!("the device {major}:{minor} has state that cannot be carried"),
            "close the device before the checkpoint",
        ));
        Ok(None)
    }

    /// The entry of the path behind another kind of file (named pipes, terminals): its id.
    pub(super) fn path_of(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<u32>, CaptureError> {
        let Some(entry) = self.path(d, refusals)? else { return Ok(None) };
        let id = entry.id;
        self.files.push(entry);
        Ok(Some(id))
    }

    /// The file of a mapping: its id in `files.img`. A shared mapping that may be written needs a
    /// file that is open for writing.
    ///
    /// # Errors
    /// The kernel does not answer about the file.
    pub fn mapped_file(
        &mut self,
        tree: &FrozenTree,
        task: usize,
        mapping: &Mapping,
        refusals: &mut Vec<Refusal>,
    ) -> Result<u32, CaptureError> {
        let writable = mapping.shared && mapping.has("mw");
        let flags = if writable { libc::O_RDWR } else { libc::O_RDONLY } as u32;
        let (major, minor) = mapping.device;
        let key = (major, minor, mapping.inode, mapping.name.clone(), flags);
        if let Some(id) = self.paths.mapped.get(&key) {
            return Ok(*id);
        }
        let task = &tree.tasks[task];
        let part = format!("mapping {:x}-{:x} ({})", mapping.start, mapping.end, mapping.name);
        let name = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
        let memory = mapping.name.starts_with("/memfd:") || mapping.name.starts_with("/dev/zero (");
        let id = if memory {
            let through = proc::path(task.pid, &name);
            self.mapped_memfd(task, &part, &mapping.name, through, flags, refusals)?
        } else {
            self.linked(tree, task, part, &name, flags, refusals)?
        };
        self.paths.mapped.insert(key, id);
        Ok(id)
    }

    /// The file behind `/proc/PID/exe`, `cwd` or `root`: its id in `files.img`.
    ///
    /// # Errors
    /// The kernel does not answer about the file.
    pub fn link_file(
        &mut self,
        tree: &FrozenTree,
        task: usize,
        link: &str,
        refusals: &mut Vec<Refusal>,
    ) -> Result<u32, CaptureError> {
        let task = &tree.tasks[task];
        self.linked(tree, task, link.to_owned(), link, 0, refusals)
    }

    /// The file behind a link below /proc/PID that is no descriptor; 0 if it was refused.
    fn linked(
        &mut self,
        tree: &FrozenTree,
        task: &FrozenTask,
        part: String,
        name: &str,
        flags: u32,
        refusals: &mut Vec<Refusal>,
    ) -> Result<u32, CaptureError> {
        let through = proc::path(task.pid, name);
        let link = std::fs::read_link(&through)
            .map_err(|e| task.failed(part.clone(), "read its link")(e))?;
        let stat =
            stat(&through).map_err(|e| task.failed(part.clone(), "look at the file")(e.into()))?;
        let key = (stat.st_dev, stat.st_ino, link.clone(), flags);
        if let Some(id) = self.paths.plain.get(&key) {
            return Ok(*id);
        }
        let mnt_id = if self.options.mount_namespace {
            Some(mount_of(&through).map_err(|e| task.failed(part.clone(), "find its mount")(e))?)
        } else {
            None
        };
        let id = self.new_id();
        let fown = FownEntry::default();
        let found = Found { task, part, link, stat, through, flags, pos: 0, mnt_id, fown };
        let Some(entry) = self.regular(tree, id, found, refusals)? else { return Ok(0) };
        self.files.push(entry);
        self.paths.plain.insert(key, id);
        Ok(id)
    }

    /// The entry of a file with a path; deleted files become ghosts.
    fn regular(
        &mut self,
        tree: &FrozenTree,
        id: u32,
        found: Found<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let Found { task, part, link, stat, through, flags, pos, mnt_id, fown } = found;
        let external = mnt_id.and_then(|mnt_id| self.external_file(mnt_id, stat.st_ino));
        let name = match &external {
            Some(key) => key.clone(),
            None => match locate(self.paths.root(tree, task), &link, &stat) {
                Located::Named(name) => name,
                Located::Nameless(name) => {
                    let Some(ghost) = self.ghosts.add(
                        task,
                        &part,
                        &stat,
                        &through,
                        self.options.ghost_limit,
                        refusals,
                    ) else {
                        return Ok(None);
                    };
                    self.remaps.push(RemapFilePathEntry {
                        orig_id: id,
                        remap_id: ghost,
                        remap_type: Some(RemapType::Ghost as i32),
                    });
                    name
                }
                Located::Not(cause, remedy) => {
                    refusals.push(task.refuse(part, cause, remedy));
                    return Ok(None);
                }
            },
        };
        let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let appended = libc::O_APPEND as u32 | libc::O_WRONLY as u32;
        let size = (regular && flags & appended != appended).then_some(stat.st_size as u64);
        let readable = flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32;
        let build_id = if regular && readable && stat.st_size >= 64 && stat.st_mode & 0o111 != 0
            || regular && name.contains(".so")
        {
            File::open(&through).map(|file| build_id::read(&file)).unwrap_or_default()
        } else {
            Vec::new()
        };
        Ok(Some(FileEntry {
            reg: Some(Box::new(RegFileEntry {
                id,
                flags,
                pos,
                fown,
                mnt_id: mnt_id.filter(|_| self.options.mount_namespace),
                size,
                ext: external.is_some().then_some(true),
                mode: (name != ROOT).then_some(stat.st_mode),
                name,
                build_id,
                ..RegFileEntry::default()
            })),
            ..entry(FdTypes::Reg, id)
        }))
    }

    /// The key of a file that the caller keeps outside, `file[MNT:INODE]` in hexadecimal.
    fn external_file(&self, mnt_id: i32, ino: u64) -> Option<String> {
        let wanted = External::File { mnt_id: mnt_id as u32, ino };
        self.options.externals.contains(&wanted).then(|| format!("file[{mnt_id:x}:{ino:x}]"))
    }
}

/// Looks the path of a file up again.
fn locate(root: &Path, link: &Path, stat: &FileStat) -> Located {
    let Some(text) = link.to_str() else {
        return Located::Not(
            "its path is not UTF-8, which the image format cannot hold",
            "rename the file",
        );
    };
    if !text.starts_with('/') {
        return Located::Not(
            "its path is not reachable from the root of the mount namespace",
            "close it, or mount the file system that it is on",
        );
    }
    let is_it = |path: &str| {
        fstatat(nix::fcntl::AT_FDCWD, &below(root, path), AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino))
    };
    if is_it(text) {
        return Located::Named(text.to_owned());
    }
    // A file may be called «x (deleted)», so the text is believed last.
    let Some(name) = text.strip_suffix(DELETED) else {
        return Located::Not(
            "another file or mount lies on its path",
            "unmount what covers it, or close it",
        );
    };
    if stat.st_nlink == 0 || stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Located::Nameless(name.to_owned());
    }
    // It has other names. The most likely place is where it was.
    let directory = Path::new(name).parent().unwrap_or(Path::new("/"));
    let names = std::fs::read_dir(below(root, &directory.to_string_lossy()));
    for other in names.into_iter().flatten().flatten() {
        let path = directory.join(other.file_name());
        if let Some(path) = path.to_str()
            && is_it(path)
        {
            return Located::Named(path.to_owned());
        }
    }
    Located::Not(
        "the name under which it was opened is deleted, and it has other names in other directories",
        "close it, or remove its other names",
    )
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The id of the mount on which a path ends.
fn mount_of(path: &Path) -> std::io::Result<i32> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
    let me = Pid(std::process::id() as i32);
    Ok(proc::fdinfo::read(me, std::os::fd::AsRawFd::as_raw_fd(&fd))?.mnt_id)
}

/// Opens a file in a stub: its number there. `path` is the name of the image or of its stand-in; if
/// it is `plain`, no link in it is followed.
pub(super) fn open(o: &mut Opener<'_>, reg: &RegFileEntry, path: &[u8], plain: bool) -> i32 {
    let path = o.c_string(path);
    // O_ASYNC waits for the owner; O_NOCTTY: nothing here may become a controlling terminal.
    let mut flags = reg.flags
        & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC) as u32
        | libc::O_NOCTTY as u32;
    if flags & libc::O_TMPFILE as u32 == libc::O_TMPFILE as u32 {
        // The nameless file has a name for the moment.
        flags &= !libc::O_TMPFILE as u32;
    }
    let at = libc::AT_FDCWD;
    let fd = if plain {
        if flags & libc::O_PATH as u32 != 0 {
            // openat2 refuses what it would ignore.
            flags &= (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u32;
        }
        let how = o.bytes(&open_how(flags as i32, libc::RESOLVE_NO_SYMLINKS));
        let args = [at.into(), path.into(), how.into(), how.len().into()];
        o.create(libc::SYS_openat2, &args, "open it without following links")
    } else {
        o.create(libc::SYS_openat, &[at.into(), path.into(), flags.into(), 0.into()], "open it")
    };
    let seekable = reg.mode.is_none_or(|mode| mode & libc::S_IFMT == libc::S_IFREG)
        || reg.mode.is_some_and(|mode| mode & libc::S_IFMT == libc::S_IFDIR);
    if reg.pos != 0 && seekable {
        let args = [fd.into(), reg.pos.into(), libc::SEEK_SET.into()];
        o.call(libc::SYS_lseek, &args, "set its position");
    }
    fd
}

/// Whether the file that `path` names below `root` is the one of the image: the difference if not.
pub(super) fn difference(
    root: BorrowedFd<'_>,
    reg: &RegFileEntry,
) -> Option<(String, &'static str)> {
    let how = |flags| {
        OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT)
    };
    let name = reg.name.as_bytes();
    let path = std::ffi::OsStr::from_bytes(if name.is_empty() { b"/" } else { name });
    let found = match openat2(root, path, how(OFlag::O_PATH | OFlag::O_NOFOLLOW)) {
        Ok(found) => found,
        Err(errno) => {
            return Some((
                format!("it cannot be found here ({})", errno.desc()),
                "put the file back, or restore on a root file system that has it",
            ));
        }
    };
    let Ok(stat) = fstat(&found) else {
        return Some(("it cannot be looked at".to_owned(), "check the file system"));
    };
    const OTHER: &str = "install the version of the file that was there at the checkpoint";
    let kind = |mode: u32| mode & libc::S_IFMT;
    if let Some(mode) = reg.mode
        && kind(mode) != kind(stat.st_mode)
    {
        return Some(("another kind of file has its name here".to_owned(), OTHER));
    }
    if let Some(size) = reg.size
        && kind(stat.st_mode) == libc::S_IFREG
        && size != stat.st_size as u64
    {
        let cause = format!("it has {} bytes here and had {size} at the checkpoint", stat.st_size);
        return Some((cause, OTHER));
    }
    if let Some(mode) = reg.mode
        && mode != stat.st_mode
        && reg.name != ROOT
    {
        let cause =
            format!("its mode is {:o} here and was {mode:o} at the checkpoint", stat.st_mode);
        return Some((cause, "give the file back its mode"));
    }
    if !reg.build_id.is_empty() {
        let here = openat2(root, path, how(OFlag::O_RDONLY | OFlag::O_NONBLOCK))
            .map(|fd| build_id::read(&File::from(fd)))
            .unwrap_or_default();
        if here != reg.build_id {
            return Some((
                "it is another build than at the checkpoint (build ids differ)".to_owned(),
                OTHER,
            ));
        }
    }
    None
}

/// Opens the root directory of a stub.
pub(super) fn root_of(tid: Pid) -> Result<std::os::fd::OwnedFd, RestoreError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(&proc::path(tid, "root"), flags, nix::sys::stat::Mode::empty()).map_err(|e| {
        RestoreError::Kernel {
            subject: crate::Subject { pid: tid.0, comm: String::new(), part: "root".to_owned() },
            what: "open its root directory".to_owned(),
            source: e.into(),
        }
    })
}
