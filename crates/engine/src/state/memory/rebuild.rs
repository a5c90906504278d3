//! Mappings and pages put back by remote calls.
//!
//! Copy-on-write sharing is kept by construction: a child is cloned from a parent whose memory is
//! complete, keeps the mappings that it has in common with it, and gets only the pages that differ.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use arctern_image::images::ImageDir;
use arctern_image::messages::{MmEntry, VmaEntry};
use arctern_image::pages::{Extent, PagemapReader};
use arctern_sys::{PAGE_SIZE, shared_memory};
use arctern_tracee::stub::{GADGET_SIZE, Stub};
use arctern_tracee::{Arg, Batch, TraceeError};

use super::reads::{Reads, reads};
use super::space::{AddressSpace, Kept, TASK_SIZE, is_inherited};
use super::vma::{ADVICE, MAP_DROPPABLE, is_shared_anonymous, status};
use crate::error::RestoreError;
use crate::precopy::Preloaded;
use crate::restore_context::RestoreContext;

/// MADV_GUARD_INSTALL (linux/mman.h, kernel 6.13).
const MADV_GUARD_INSTALL: i32 = 102;
const ARCH_MAP_VDSO_64: u64 = 0x2003;
/// Calls in one batch.
const BATCH_CALLS: usize = 4000;
/// From this size on two threads read.
const PARALLEL_FROM: u64 = 32 << 20;

/// What the memory room keeps during a restore.
#[derive(Debug, Default)]
pub struct Memory {
    /// Shared anonymous objects by image id.
    shared: HashMap<u64, File>,
    /// Sizes of them, from all mappings of all tasks.
    sizes: HashMap<u64, u64>,
    /// Pages written.
    pub pages_restored: u64,
    /// Pages compared with the parent's and found equal.
    pub pages_shared: u64,
}

/// Opens a mapped file in a stub: files id, and whether the mapping is shared and writable.
pub type OpenFile<'a> =
    &'a mut dyn FnMut(&mut RestoreContext, &Stub, u32, bool) -> Result<i32, RestoreError>;

impl Memory {
    /// Looks at all address spaces for objects that they share.
    pub fn new<'a>(spaces: impl Iterator<Item = &'a AddressSpace>) -> Self {
        let mut memory = Memory::default();
        for vma in spaces.flat_map(AddressSpace::mapped) {
            if is_shared_anonymous(vma) {
                let end = vma.pgoff.saturating_add(vma.end - vma.start);
                let size = memory.sizes.entry(vma.shmid).or_default();
                *size = end.max(*size);
            }
        }
        memory
    }

    /// Builds the mappings of a task and fills them. `parent` is the space of the task that `stub`
    /// was cloned from, whose memory it still has; None if it has nothing but the gadget at `gadget`
    /// and the controller's mappings, of which some may be `preloaded` for it.
    #[expect(clippy::too_many_arguments, reason = "one call, all of it needed")]
    pub fn build(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        gadget: u64,
        space: &AddressSpace,
        parent: Option<&AddressSpace>,
        preloaded: Option<&Preloaded>,
        images: &ImageDir,
        open: OpenFile<'_>,
    ) -> Result<(), RestoreError> {
        let ours = preloaded.map(|ours| AddressSpace { mm: ours.mappings(), pages: None });
        let kept = unmap_rest(stub, gadget, space, parent.or(ours.as_ref()))?;
        self.map(ctx, stub, space, &kept, images, open)?;
        match preloaded {
            Some(ours) => self.complete(ctx, stub, space, ours, &kept)?,
            None => self.fill(ctx, stub, space, parent, &kept)?,
        }
        protect(stub, space, &kept)
    }

    fn map(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        space: &AddressSpace,
        kept: &Kept,
        images: &ImageDir,
        open: OpenFile<'_>,
    ) -> Result<(), RestoreError> {
        let mut opened: HashMap<(u64, bool), i32> = HashMap::new();
        let mut injected: HashMap<u64, i32> = HashMap::new();
        let mut calls = Calls::new(stub, "map memory");
        let mut vvar: Option<u64> = None;
        let mut vdso: Option<u64> = None;
        for vma in space.mapped() {
            if vma.status & status::VVAR != 0 {
                vvar.get_or_insert(vma.start);
                continue;
            }
            if vma.status & status::VDSO != 0 {
                vdso = Some(vma.start);
                continue;
            }
            match kept.end_of(vma.start) {
                Some(end) if end >= vma.end => continue,
                // It grew since the fork. A second mapping beside it would look the same and stay apart
                // for ever, and the program could not move both at once (mremap(2), EFAULT).
                Some(end) => {
                    let (start, old, new) = (vma.start, end - vma.start, vma.end - vma.start);
                    if space.has_stored_pages(vma) {
                        let prot = vma.prot as i32 & 7 | libc::PROT_READ | libc::PROT_WRITE;
                        calls.call(libc::SYS_mprotect, &[start.into(), old.into(), prot.into()])?;
                    }
                    calls.call(
                        libc::SYS_mremap,
                        &[start.into(), old.into(), new.into(), 0.into()],
                    )?;
                    continue;
                }
                None => {}
            }
            let len = vma.end - vma.start;
            if vma.status & status::SYSVIPC != 0 {
                const SHM_RDONLY: i32 = 0o10000;
                const SHM_REMAP: i32 = 0o40000;
                let write = vma.prot & libc::PROT_WRITE as u32 != 0;
                let flags = SHM_REMAP | if write { 0 } else { SHM_RDONLY };
                calls.call(libc::SYS_shmat, &[vma.shmid.into(), vma.start.into(), flags.into()])?;
                continue;
            }
            let shared = vma.flags & libc::MAP_SHARED as u32 != 0;
            let carried = libc::MAP_GROWSDOWN | libc::MAP_NORESERVE | MAP_DROPPABLE;
            let mut flags = vma.flags & carried as u32 | libc::MAP_FIXED as u32;
            if vma.flags & MAP_DROPPABLE as u32 == 0 {
                flags |= if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE } as u32;
            }
            let mut prot = vma.prot & 7;
            if space.has_stored_pages(vma) {
                // The pages are read into it; protections follow when they are there.
                prot |= (libc::PROT_READ | libc::PROT_WRITE) as u32;
            }
            let file = vma.status & (status::FILE_PRIVATE | status::FILE_SHARED) != 0;
            let fd = if is_shared_anonymous(vma) {
                match injected.get(&vma.shmid) {
                    Some(fd) => *fd,
                    None => {
                        let at = ctx.temporary();
                        let object = self.shared_object(vma.shmid, images)?;
                        ctx.inject(stub, object.as_fd(), at)?;
                        injected.insert(vma.shmid, at);
                        at
                    }
                }
            } else if file {
                let writable = shared && vma.prot & libc::PROT_WRITE as u32 != 0;
                match opened.get(&(vma.shmid, writable)) {
                    Some(fd) => *fd,
                    None => {
                        let id = u32::try_from(vma.shmid).map_err(|_| {
                            RestoreError::Inconsistent(format!("no file has id {}", vma.shmid))
                        })?;
                        let fd = open(ctx, stub, id, writable)?;
                        opened.insert((vma.shmid, writable), fd);
                        fd
                    }
                }
            } else {
                flags |= libc::MAP_ANONYMOUS as u32;
                -1
            };
            let offset = if fd < 0 { 0 } else { vma.pgoff };
            calls.call(
                libc::SYS_mmap,
                &[
                    vma.start.into(),
                    len.into(),
                    prot.into(),
                    flags.into(),
                    fd.into(),
                    offset.into(),
                ],
            )?;
        }
        if let (Some(start), true) = (vvar.or(vdso), !kept.vdso) {
            calls.call(libc::SYS_arch_prctl, &[ARCH_MAP_VDSO_64.into(), start.into()])?;
        }
        for fd in opened.into_values().chain(injected.into_values()) {
            calls.call(libc::SYS_close, &[fd.into()])?;
        }
        calls.finish()
    }

    fn shared_object(&mut self, id: u64, images: &ImageDir) -> Result<&File, RestoreError> {
        if !self.shared.contains_key(&id) {
            let size = self.sizes.get(&id).copied().unwrap_or(PAGE_SIZE);
            let kernel = |source| RestoreError::Kernel {
                subject: crate::restore_context::subject(
                    0,
                    "the tree",
                    format!("shared memory {id}"),
                ),
                what: "make it".to_owned(),
                source,
            };
            let file = shared_memory::create(size).map_err(kernel)?;
            crate::state::shmem::restore(&file, id, images)?;
            self.shared.insert(id, file);
        }
        Ok(&self.shared[&id])
    }

    /// Puts the pages of the images into the task.
    fn fill(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        space: &AddressSpace,
        parent: Option<&AddressSpace>,
        kept: &Kept,
    ) -> Result<(), RestoreError> {
        let Some(pages) = &space.pages else { return Ok(()) };
        let mut wanted: Vec<Extent> = Vec::new();
        let mut stale: Vec<(u64, u64)> = Vec::new();
        let parent_pages = parent.and_then(|p| p.pages.as_ref());
        for extent in own_pages(space) {
            match parent_pages {
                Some(theirs) if kept.touches(extent) => {
                    self.differing(extent, pages, theirs, kept, &mut wanted)?;
                }
                _ => wanted.push(*extent),
            }
        }
        if let Some(theirs) = parent_pages {
            // Pages that the parent has and the child has not: dropped since the fork.
            for vma in &kept.vmas {
                let extents = theirs.extents();
                let first = extents.partition_point(|extent| extent.end() <= vma.start);
                for extent in extents[first..].iter().take_while(|e| e.vaddr < vma.end) {
                    let (mut at, end) = (extent.vaddr.max(vma.start), extent.end().min(vma.end));
                    while at < end {
                        if pages.find(at).is_none() {
                            match stale.last_mut() {
                                Some((_, to)) if *to == at => *to += PAGE_SIZE,
                                _ => stale.push((at, at + PAGE_SIZE)),
                            }
                        }
                        at += PAGE_SIZE;
                    }
                }
            }
        }
        drop_pages(stub, stale)?;
        self.read_pages(ctx, stub, pages, &wanted)
    }

    /// Splits an extent into the runs that the parent does not have the same way.
    fn differing(
        &mut self,
        extent: &Extent,
        ours: &PagemapReader,
        theirs: &PagemapReader,
        kept: &Kept,
        wanted: &mut Vec<Extent>,
    ) -> Result<(), RestoreError> {
        const STEP: usize = 64 * PAGE_SIZE as usize;
        let mut mine = vec![0u8; STEP];
        let mut other = vec![0u8; PAGE_SIZE as usize];
        let mut done = 0;
        while done < extent.len() {
            let len = (extent.len() - done).min(STEP as u64) as usize;
            let file = ours.file(extent)?;
            file.read_exact_at(&mut mine[..len], extent.offset + done)
                .map_err(|e| unreadable(extent, e))?;
            for (i, page) in mine[..len].chunks_exact(PAGE_SIZE as usize).enumerate() {
                let delta = done + i as u64 * PAGE_SIZE;
                let vaddr = extent.vaddr + delta;
                let same = match theirs.find(vaddr) {
                    Some(their) if kept.covers(vaddr) => {
                        let at = their.offset + (vaddr - their.vaddr);
                        theirs
                            .file(their)?
                            .read_exact_at(&mut other, at)
                            .map_err(|e| unreadable(their, e))?;
                        page == other
                    }
                    _ => false,
                };
                if same {
                    self.pages_shared += 1;
                    continue;
                }
                match wanted.last_mut() {
                    Some(last)
                        if last.end() == vaddr
                            && last.level == extent.level
                            && last.offset + last.len() == extent.offset + delta =>
                    {
                        last.nr_pages += 1;
                    }
                    _ => wanted.push(Extent {
                        vaddr,
                        nr_pages: 1,
                        offset: extent.offset + delta,
                        ..*extent
                    }),
                }
            }
            done += len as u64;
        }
        Ok(())
    }

    /// The task itself reads its pages from the pages files, straight to their places.
    pub(super) fn read_pages(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        pages: &PagemapReader,
        extents: &[Extent],
    ) -> Result<(), RestoreError> {
        let mut files: HashMap<usize, i32> = HashMap::new();
        for extent in extents {
            if !files.contains_key(&extent.level) {
                let at = ctx.temporary();
                ctx.inject(stub, pages.file(extent)?.as_fd(), at)?;
                files.insert(extent.level, at);
            }
        }
        let total: u64 = extents.iter().map(Extent::len).sum();
        self.pages_restored += total / PAGE_SIZE;
        let mut here = Reads::default();
        if total < PARALLEL_FROM {
            for read in reads(extents) {
                here.add(&read, &files);
                if here.is_full() {
                    here.run(stub)?;
                }
            }
            here.run(stub)?;
        } else {
            // Two threads of the task read at a time; each read is short enough that both end
            // together.
            let mut there = Reads::default();
            for read in reads(extents) {
                let next = if here.bytes <= there.bytes { &mut here } else { &mut there };
                next.add(&read, &files);
                if here.is_full() || there.is_full() {
                    Reads::run_two(stub, &mut here, &mut there)?;
                }
            }
            Reads::run_two(stub, &mut here, &mut there)?;
        }
        let mut calls = Calls::new(stub, "close the pages files");
        for fd in files.into_values() {
            calls.call(libc::SYS_close, &[fd.into()])?;
        }
        calls.finish()
    }
}

/// The pages of the images that the task is given. The vDSO is this kernel's own.
pub(super) fn own_pages(space: &AddressSpace) -> impl Iterator<Item = &Extent> {
    let vdso = space.vdso().map_or(0..0, |v| v.start..v.end);
    let all = space.pages.as_ref().map_or(&[][..], PagemapReader::extents);
    all.iter().filter(move |extent| !vdso.contains(&extent.vaddr))
}

pub(super) fn drop_pages(stub: &Stub, ranges: Vec<(u64, u64)>) -> Result<(), RestoreError> {
    let mut calls = Calls::new(stub, "drop pages");
    for (start, end) in ranges {
        calls.call(
            libc::SYS_madvise,
            &[start.into(), (end - start).into(), libc::MADV_DONTNEED.into()],
        )?;
    }
    calls.finish()
}

fn unreadable(extent: &Extent, source: std::io::Error) -> RestoreError {
    RestoreError::Inconsistent(format!("pages at {:#x} cannot be read: {source}", extent.vaddr))
}

/// Remote calls in as few stops as possible; the first failure ends it.
pub struct Calls<'a> {
    stub: &'a Stub,
    what: &'static str,
    batch: Batch,
}

impl<'a> Calls<'a> {
    /// Calls in `stub`; `what` says in errors what they are for.
    pub fn new(stub: &'a Stub, what: &'static str) -> Self {
        Calls { stub, what, batch: Batch::new() }
    }

    /// Adds a call; runs those before when enough have come together.
    pub fn call(&mut self, nr: i64, args: &[Arg]) -> Result<(), TraceeError> {
        if self.batch.len() >= BATCH_CALLS {
            self.stub.run_all(&mut self.batch, self.what)?;
            self.batch = Batch::new();
        }
        self.batch.call(nr, args);
        Ok(())
    }

    /// Runs the rest.
    pub fn finish(mut self) -> Result<(), RestoreError> {
        Ok(self.stub.run_all(&mut self.batch, self.what)?)
    }
}

/// Unmaps everything that the task must not have.
fn unmap_rest(
    stub: &Stub,
    gadget: u64,
    space: &AddressSpace,
    parent: Option<&AddressSpace>,
) -> Result<Kept, RestoreError> {
    let mut kept = Kept::default();
    if let Some(parent) = parent {
        let mut theirs = parent.mapped().peekable();
        for vma in space.mapped() {
            while theirs.next_if(|p| p.start < vma.start).is_some() {}
            if let Some(p) = theirs.peek().filter(|p| is_inherited(vma, p)) {
                kept.vmas.push(VmaEntry { end: vma.end.min(p.end), ..vma.clone() });
            }
        }
        kept.vdso = match (space.vdso(), parent.vdso()) {
            (Some(a), Some(b)) => (a.start, a.end) == (b.start, b.end),
            _ => false,
        };
    }
    let mut keep: Vec<(u64, u64)> = kept.vmas.iter().map(|v| (v.start, v.end)).collect();
    keep.push((gadget, gadget + GADGET_SIZE));
    if kept.vdso {
        let special = status::VDSO | status::VVAR;
        keep.extend(space.mapped().filter(|v| v.status & special != 0).map(|v| (v.start, v.end)));
    }
    keep.sort_unstable();
    let mut calls = Calls::new(stub, "unmap memory");
    let mut at = 0;
    for (start, end) in keep.into_iter().chain([(TASK_SIZE, TASK_SIZE)]) {
        if start > at {
            calls.call(libc::SYS_munmap, &[at.into(), (start - at).into()])?;
        }
        at = at.max(end);
    }
    calls.finish()?;
    if parent.is_some() {
        // The pages are written through these mappings; protections follow.
        let mut calls = Calls::new(stub, "make memory writable");
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        for vma in kept.vmas.iter().filter(|v| space.has_stored_pages(v)) {
            let prot = vma.prot as i32 & 7 | read_write;
            calls.call(
                libc::SYS_mprotect,
                &[vma.start.into(), (vma.end - vma.start).into(), prot.into()],
            )?;
        }
        calls.finish()?;
    }
    Ok(kept)
}

/// Final protections, advice, guard pages and locks.
fn protect(stub: &Stub, space: &AddressSpace, kept: &Kept) -> Result<(), RestoreError> {
    let read_write = (libc::PROT_READ | libc::PROT_WRITE) as u32;
    let mut calls = Calls::new(stub, "protect memory");
    for vma in space.mapped() {
        let (start, len) = (Arg::from(vma.start), Arg::from(vma.end - vma.start));
        if vma.status & (status::VDSO | status::VVAR) != 0 {
            continue;
        }
        // A kept mapping may have another protection in the parent; an equal one costs nothing.
        let opened = space.has_stored_pages(vma) && vma.prot & read_write != read_write;
        if opened || kept.contains(vma) {
            calls.call(libc::SYS_mprotect, &[start, len, (vma.prot & 7).into()])?;
        }
        let madv = vma.madv.unwrap_or(0);
        for (_, advice) in ADVICE.iter().filter(|(_, advice)| madv & 1 << advice != 0) {
            calls.call(libc::SYS_madvise, &[start, len, (*advice).into()])?;
        }
    }
    for guard in space.mm.vmas.iter().filter(|v| v.status & status::GUARD != 0) {
        let (start, len) = (guard.start, guard.end - guard.start);
        calls.call(libc::SYS_madvise, &[start.into(), len.into(), MADV_GUARD_INSTALL.into()])?;
    }
    // Guard pages cannot be made in locked memory.
    for vma in space.mapped() {
        let (start, len) = (Arg::from(vma.start), Arg::from(vma.end - vma.start));
        if vma.flags & libc::MAP_LOCKED as u32 != 0 {
            const MLOCK_ONFAULT: i32 = 1;
            calls.call(libc::SYS_mlock2, &[start, len, MLOCK_ONFAULT.into()])?;
        }
    }
    calls.finish()
}

/// Tells the kernel where text, data, heap, stack, arguments and environment lie
/// (PR_SET_MM_MAP, prctl(2)), and which file the task runs (None: as it is). Everything of the old
/// file must be unmapped by then, else the kernel answers EBUSY.
pub fn set_mm(stub: &Stub, mm: &MmEntry, exe_fd: Option<i32>) -> Result<(), RestoreError> {
    const PR_SET_MM_MAP: i32 = 14;
    let mut batch = Batch::new();
    let auxv: Vec<u8> = mm.mm_saved_auxv.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let auxv_piece = batch.bytes(&auxv);
    let mut map = Vec::with_capacity(104);
    for word in [
        mm.mm_start_code,
        mm.mm_end_code,
        mm.mm_start_data,
        mm.mm_end_data,
        mm.mm_start_brk,
        mm.mm_brk,
        mm.mm_start_stack,
        mm.mm_arg_start,
        mm.mm_arg_end,
        mm.mm_env_start,
        mm.mm_env_end,
        0,
    ] {
        map.extend(word.to_ne_bytes());
    }
    map.extend((auxv.len() as u32).to_ne_bytes());
    map.extend(exe_fd.unwrap_or(-1).to_ne_bytes());
    let map = batch.bytes(&map);
    batch.pointer(map.at(88), auxv_piece);
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_SET_MM.into(), PR_SET_MM_MAP.into(), map.into(), 104.into(), 0.into()],
    );
    if let Some(fd) = exe_fd {
        batch.call(libc::SYS_close, &[fd.into()]);
    }
    if mm.thp_disabled == Some(true) {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_THP_DISABLE.into(), 1.into()]);
    }
    Ok(stub.run_all(&mut batch, "describe the memory layout (PR_SET_MM_MAP)")?)
}
