//! Memory files (memfd_create(2)), also where they are only mapped.
//!
//! `memfd.img` has the inodes (name, size, seals, mode, owner), the pages are those of a shared
//! memory object (`pagemap-shmem-%u.img`, by inode number). Restore makes each inode once, in the
//! controller, and hands every task descriptions of it. Seals come last: some of them forbid what
//! the restore itself must do (write, map for writing).
//!
//! Shared anonymous memory is a memfd called `/dev/zero`, in CRIU's images and in the kernel.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{FdTypes, FileEntry, FownEntry, MemfdFileEntry, MemfdInodeEntry};
use arctern_image::pages::PagesIds;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod, stat};
use nix::unistd::{Gid, Uid, Whence, fchown, lseek};

use super::capture::{FileCollector, write_or_remove};
use super::descriptor::{Descriptor, entry};
use super::table::Opener;
use crate::error::{CaptureError, Refusal, RestoreError, Subject};
use crate::state::shmem;
use crate::tree::FrozenTask;

/// F_SEAL_SEAL alone: the file was made without MFD_ALLOW_SEALING.
const SEALED: u32 = 1;
/// MFD_HUGETLB, in hugetlb_flag.
const HUGETLB: u32 = 4;
/// Where the binary logarithm of the size of the pages stands in the flags (linux/memfd.h).
const MFD_HUGE_SHIFT: u32 = 26;

impl FileCollector {
    /// A descriptor of a memfd.
    pub(super) fn memfd(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let name = d.link.to_string_lossy();
        let Some(inode_id) = self.memfd_inode(d.task(), &d.part(), &name, d.path(), refusals)?
        else {
            return Ok(None);
        };
        let id = self.new_id();
        Ok(Some(FileEntry {
            memfd: Some(Box::new(MemfdFileEntry {
                id,
                flags: d.flags(),
                pos: d.info.pos.max(0) as u64,
                fown: d.fown.clone(),
                inode_id,
            })),
            ..entry(FdTypes::Memfd, id)
        }))
    }

    /// A memfd, or shared anonymous memory, that a task has mapped: the id of its file.
    pub(super) fn mapped_memfd(
        &mut self,
        task: &FrozenTask,
        part: &str,
        name: &str,
        through: PathBuf,
        flags: u32,
        refusals: &mut Vec<Refusal>,
    ) -> Result<u32, CaptureError> {
        let Some(inode_id) = self.memfd_inode(task, part, name, through, refusals)? else {
            return Ok(0);
        };
        if let Some(id) = self.mapped_memfds.get(&(inode_id, flags)) {
            return Ok(*id);
        }
        let id = self.new_id();
        self.mapped_memfds.insert((inode_id, flags), id);
        let fown = FownEntry::default();
        self.files.push(FileEntry {
            memfd: Some(Box::new(MemfdFileEntry { id, flags, pos: 0, fown, inode_id })),
            ..entry(FdTypes::Memfd, id)
        });
        Ok(id)
    }

    /// The inode behind a memfd, listed once.
    fn memfd_inode(
        &mut self,
        task: &FrozenTask,
        part: &str,
        link: &str,
        through: PathBuf,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<u32>, CaptureError> {
        let stat = stat(&through).map_err(|e| task.failed(part, "look at the memory")(e.into()))?;
        let shmid = stat.st_ino as u32;
        if let Some((inode, _)) = self.memfds.iter().find(|(inode, _)| inode.shmid == shmid) {
            return Ok(Some(inode.inode_id as u32));
        }
        let file = File::open(&through).map_err(task.failed(part, "open the memory"))?;
        let seals = match fcntl(&file, FcntlArg::F_GET_SEALS) {
            Ok(seals) => seals as u32,
            Err(errno) => return Err(task.failed(part, "read its seals")(errno.into())),
        };
        // st_blksize of hugetlbfs is the size of its pages.
        let huge = stat.st_blksize > 4096 && is_hugetlb(&file);
        if huge && stat.st_blocks != 0 {
            refusals.push(task.refuse(
                part,
                "memory of huge pages (MFD_HUGETLB) cannot be carried",
                "configure the program to use ordinary pages",
            ));
            return Ok(None);
        }
        let link = link.strip_suffix(" (deleted)").unwrap_or(link);
        let inode_id = self.memfds.len() as u32 + 1;
        let inode = MemfdInodeEntry {
            name: link.strip_prefix("/memfd:").unwrap_or(link).to_owned(),
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            shmid,
            seals,
            inode_id: inode_id.into(),
            hugetlb_flag: huge
                .then(|| (stat.st_blksize as u64).ilog2() << MFD_HUGE_SHIFT | HUGETLB),
            mode: Some(stat.st_mode),
        };
        self.memfds.push((inode, through));
        Ok(Some(inode_id))
    }

    /// Writes the inodes and their pages.
    pub(super) fn write_memfds(
        &self,
        images: &ImageDir,
        pages: &PagesIds,
    ) -> Result<(), CaptureError> {
        let inodes: Vec<MemfdInodeEntry> =
            self.memfds.iter().map(|(inode, _)| inode.clone()).collect();
        write_or_remove(images, ImageKind::Memfd, &inodes)?;
        // One of huge pages holds none, or it was refused; hugetlbfs does not tell holes.
        let pages_of = self.memfds.iter().filter(|(inode, _)| inode.hugetlb_flag.is_none());
        for (inode, through) in pages_of {
            let file = File::open(through).map_err(|source| CaptureError::Kernel {
                subject: Subject {
                    pid: 0,
                    comm: String::new(),
                    part: through.display().to_string(),
                },
                what: "open the memory".to_owned(),
                source,
            })?;
            shmem::capture(&file, inode.shmid.into(), images, pages)?;
        }
        Ok(())
    }
}

fn is_hugetlb(file: &File) -> bool {
    const HUGETLBFS_MAGIC: u64 = 0x958458f6;
    nix::sys::statfs::fstatfs(file).is_ok_and(|fs| fs.filesystem_type().0 as u64 == HUGETLBFS_MAGIC)
}

/// The inodes of a restore, made when they are first needed.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    entries: BTreeMap<u32, MemfdInodeEntry>,
    made: BTreeMap<u32, OwnedFd>,
}

impl Inodes {
    pub fn load(images: &ImageDir) -> Result<Self, RestoreError> {
        let list: Vec<MemfdInodeEntry> = images.read_all(ImageKind::Memfd, 0)?;
        let entries = list.into_iter().map(|inode| (inode.inode_id as u32, inode)).collect();
        Ok(Inodes { entries, made: BTreeMap::new() })
    }

    /// A description of the controller's own, with the flags and position of `memfd`.
    pub fn describe(
        &mut self,
        images: &ImageDir,
        memfd: &MemfdFileEntry,
    ) -> Result<OwnedFd, RestoreError> {
        let Some(inode) = self.entries.get(&memfd.inode_id) else {
            return Err(RestoreError::Inconsistent(format!(
                "memfd {} has inode {}, which memfd.img does not list",
                memfd.id, memfd.inode_id
            )));
        };
        let failed = |what: &'static str| {
            let part = format!("memfd {}", inode.name);
            move |source: nix::Error| RestoreError::Kernel {
                subject: Subject { pid: 0, comm: String::new(), part },
                what: what.to_owned(),
                source: source.into(),
            }
        };
        if !self.made.contains_key(&memfd.inode_id) {
            let made = make(images, inode).map_err(|e| match e {
                Failed::Kernel(what, errno) => failed(what)(errno),
                Failed::Pages(error) => error,
            })?;
            self.made.insert(memfd.inode_id, made);
        }
        let made = &self.made[&memfd.inode_id];
        let path = format!("/proc/self/fd/{}", made.as_raw_fd());
        let flags =
            memfd.flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC) as u32;
        let flags = OFlag::from_bits_retain(flags as i32) | OFlag::O_CLOEXEC;
        let fd =
            nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(failed("open it"))?;
        if memfd.pos != 0 {
            lseek(&fd, memfd.pos as i64, Whence::SeekSet).map_err(failed("set its position"))?;
        }
        Ok(fd)
    }

    /// Adds the seals, when nothing will be written or mapped any more.
    pub fn seal(&self) -> Result<(), RestoreError> {
        for (id, fd) in &self.made {
            let inode = &self.entries[id];
            if inode.seals & !SEALED == 0 && inode.seals != 0 {
                continue;
            }
            let seals = SealFlag::from_bits_retain(inode.seals as i32);
            fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| RestoreError::Kernel {
                subject: Subject {
                    pid: 0,
                    comm: String::new(),
                    part: format!("memfd {}", inode.name),
                },
                what: "seal it".to_owned(),
                source: errno.into(),
            })?;
        }
        Ok(())
    }
}

enum Failed {
    Kernel(&'static str, nix::Error),
    Pages(RestoreError),
}

fn make(images: &ImageDir, inode: &MemfdInodeEntry) -> Result<OwnedFd, Failed> {
    let name = CString::new(inode.name.as_str())
        .map_err(|_| Failed::Kernel("use its name", nix::Error::EINVAL))?;
    let mut flags = MFdFlags::MFD_CLOEXEC;
    if inode.seals != SEALED {
        flags |= MFdFlags::MFD_ALLOW_SEALING;
    }
    flags |= MFdFlags::from_bits_retain(
        inode.hugetlb_flag.unwrap_or(0) & !3 | {
            if inode.hugetlb_flag.is_some() { HUGETLB } else { 0 }
        },
    );
    let fd = memfd_create(name.as_c_str(), flags).map_err(|e| Failed::Kernel("make it", e))?;
    let file = File::from(fd);
    nix::unistd::ftruncate(&file, inode.size as i64)
        .map_err(|e| Failed::Kernel("give it its size", e))?;
    shmem::restore(&file, inode.shmid.into(), images).map_err(Failed::Pages)?;
    if inode.uid != 0 || inode.gid != 0 {
        fchown(&file, Some(Uid::from_raw(inode.uid)), Some(Gid::from_raw(inode.gid)))
            .map_err(|e| Failed::Kernel("give it to its owner", e))?;
    }
    if let Some(mode) = inode.mode {
        fchmod(&file, Mode::from_bits_truncate(mode & 0o7777))
            .map_err(|e| Failed::Kernel("set its mode", e))?;
    }
    Ok(file.into())
}

/// Puts a description into a stub: its number.
pub(super) fn open(
    o: &mut Opener<'_>,
    images: &ImageDir,
    inodes: &mut Inodes,
    memfd: &MemfdFileEntry,
) -> Result<i32, RestoreError> {
    let fd = inodes.describe(images, memfd)?;
    o.inject(fd.as_fd())
}
