//! Images that need no freeze: what was read, described.

use std::path::Path;

use arctern_image::images::{ImageDir, ImageError, ImageKind};
use arctern_image::messages::{
    CoreEntry, InventoryEntry, Lsmtype, MmEntry, PstreeEntry, SeccompEntry, TaskKobjIdsEntry,
};

use crate::error::{CaptureError, Subject};
use crate::state::namespaces::NamespaceCollector;
use crate::state::restart::{self, Restarts};
use crate::tree::{FrozenTask, FrozenTree};

/// Images that are in memory when every task has been read.
pub(super) struct Described {
    pub(super) tree: Vec<(PstreeEntry, Option<TaskKobjIdsEntry>)>,
    pub(super) spaces: Vec<(i32, MmEntry)>,
    pub(super) cores: Vec<(i32, CoreEntry)>,
    pub(super) seccomp: SeccompEntry,
}

impl Described {
    pub(super) fn write(&self, images: &ImageDir) -> Result<(), ImageError> {
        for (pid, mm) in &self.spaces {
            images.write_one(ImageKind::Mm, *pid as u64, mm)?;
        }
        for (tid, core) in &self.cores {
            write_core(images, *tid, core)?;
        }
        for (entry, ids) in &self.tree {
            if let Some(ids) = ids {
                images.write_one(ImageKind::Ids, entry.pid.into(), ids)?;
            }
        }
        images.write_all(ImageKind::Pstree, 0, self.tree.iter().map(|(entry, _)| entry))?;
        images.write_one(ImageKind::Seccomp, 0, &self.seccomp)
    }
}

/// Writes the image of one thread.
pub(super) fn write_core(images: &ImageDir, tid: i32, core: &CoreEntry) -> Result<(), ImageError> {
    images.write_one(ImageKind::Core, tid as u64, core)
}

/// The last images: a directory without an inventory is no checkpoint.
pub(super) fn conclude(
    images: &ImageDir,
    restarts: &Restarts,
    inventory: &InventoryEntry,
) -> Result<(), CaptureError> {
    write_restarts(images.path(), restarts)?;
    Ok(images.write_one(ImageKind::Inventory, 0, inventory)?)
}

/// The entries of pstree, and the ids of the kernel's objects that each task has.
pub(super) fn tree_entries(
    tree: &FrozenTree,
    namespaces: &NamespaceCollector,
) -> Vec<(PstreeEntry, Option<TaskKobjIdsEntry>)> {
    let entry = |(index, task): (usize, &FrozenTask)| {
        let parent = task.parent.map_or(0, |p| tree.tasks[p].inner_pid);
        let inner = |ids: &[i32], outer: i32| ids.last().copied().unwrap_or(outer) as u32;
        let threads = if task.is_zombie() {
            vec![0]
        } else {
            task.threads.iter().map(|t| t.inner_tid as u32).collect()
        };
        let entry = PstreeEntry {
            pid: task.inner_pid as u32,
            ppid: parent as u32,
            pgid: inner(&task.status.ns_pgid, task.stat.pgrp),
            sid: inner(&task.status.ns_sid, task.stat.session),
            threads,
        };
        let ids = (!task.is_zombie()).then(|| {
            let mut ids = TaskKobjIdsEntry {
                vm_id: task.ids.vm,
                files_id: task.ids.files,
                fs_id: task.ids.fs,
                sighand_id: task.ids.sighand,
                ..TaskKobjIdsEntry::default()
            };
            namespaces.fill_ids(index, &mut ids);
            ids
        });
        (entry, ids)
    };
    tree.tasks.iter().enumerate().map(entry).collect()
}

fn write_restarts(dir: &Path, restarts: &Restarts) -> Result<(), CaptureError> {
    let text = serde_json::to_vec(restarts).expect("plain numbers");
    let path = dir.join(restart::FILE_NAME);
    std::fs::write(&path, text).map_err(|source| CaptureError::Kernel {
        subject: Subject { pid: 0, comm: "the images".to_owned(), part: String::new() },
        what: format!("write {}", path.display()),
        source,
    })
}

/// What all images have in common.
pub(super) fn inventory(namespaces: &NamespaceCollector, root_cg_set: u32) -> InventoryEntry {
    InventoryEntry {
        img_version: 2,
        fdinfo_per_id: Some(true),
        root_ids: Some(namespaces.root_ids()),
        ns_per_id: Some(true),
        root_cg_set: Some(root_cg_set),
        lsmtype: Some(Lsmtype::NoLsm.into()),
        dump_uptime: super::uptime(),
        ..InventoryEntry::default()
    }
}
