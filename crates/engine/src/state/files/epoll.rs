//! epoll.
//!
//! fdinfo lists what a description watches: number, events, data, and device and inode of the file.
//! The kernel keys an item by file and number, so an item must be added again under its number, even
//! where the number leads to another file by now or to none (the file lives on in another
//! descriptor): then the entry's `id`, which CRIU leaves at 0, holds the file's id, and restore puts
//! the file under that number for the moment of the call.
//!
//! Refused: an item whose file is held by nobody in the tree.

use arctern_image::messages::{EventpollFileEntry, EventpollTfdEntry, FdTypes, FileEntry};
use arctern_sys::Pid;
use arctern_sys::kcmp::epoll_target;
use arctern_sys::proc::fdinfo::EpollItem;

use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::table::Opener;
use crate::error::{CaptureError, Refusal};
use crate::tree::FrozenTree;

/// An epoll description whose items are resolved when every descriptor is known.
#[derive(Debug)]
pub(super) struct Pending {
    id: u32,
    index: usize,
    fd: i32,
    part: String,
    items: Vec<EpollItem>,
}

impl FileCollector {
    pub(super) fn epoll(&mut self, d: &Descriptor<'_>) -> FileEntry {
        let id = self.new_id();
        self.epolls.push(Pending {
            id,
            index: d.index,
            fd: d.fd,
            part: d.part(),
            items: d.info.epoll.clone(),
        });
        FileEntry {
            epfd: Some(Box::new(EventpollFileEntry {
                id,
                flags: d.flags(),
                fown: d.fown.clone(),
                tfd: Vec::new(),
            })),
            ..entry(FdTypes::Eventpoll, id)
        }
    }

    /// Finds the files of all items, after the last descriptor was collected.
    pub(super) fn resolve_epolls(
        &mut self,
        tree: &FrozenTree,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CaptureError> {
        for pending in std::mem::take(&mut self.epolls) {
            let task = &tree.tasks[pending.index];
            let mut entries = Vec::with_capacity(pending.items.len());
            for (at, item) in pending.items.iter().enumerate() {
                // The kernel lists items of one number in the order that kcmp counts them.
                let offset =
                    pending.items[..at].iter().filter(|i| i.tfd == item.tfd).count() as u32;
                let watches = |pid: Pid, fd: i32| {
                    epoll_target(pid, fd, task.pid, pending.fd, item.tfd, offset).unwrap_or(false)
                };
                let id = if watches(task.pid, item.tfd) {
                    0
                } else {
                    let known = self.known.iter().filter(|(bucket, _)| bucket.1 == item.ino);
                    let mut candidates = known.flat_map(|(_, known)| known);
                    match candidates.find(|known| watches(known.pid, known.fd)) {
                        Some(known) => known.id,
                        None => {
                            refusals.push(task.refuse(
                                pending.part.clone(),
                                format!(
                                    "it watches a file (number {}, inode {}) that no task of the tree has open",
                                    item.tfd, item.ino
                                ),
                                "include the process that has it open, or close the epoll descriptor",
                            ));
                            continue;
                        }
                    }
                };
                entries.push(EventpollTfdEntry {
                    id,
                    tfd: item.tfd as u32,
                    events: item.events,
                    data: item.data,
                    dev: Some(item.device),
                    inode: Some(item.ino),
                    pos: Some(item.pos),
                });
            }
            if let Some(file) = self.files.iter_mut().find(|file| file.id == pending.id)
                && let Some(epoll) = &mut file.epfd
            {
                epoll.tfd = entries;
            }
        }
        Ok(())
    }
}

pub(super) fn open(o: &mut Opener<'_>, epoll: &EventpollFileEntry) -> i32 {
    let fd = o.create(libc::SYS_epoll_create1, &[0.into()], "make the epoll descriptor");
    o.set_status(fd, epoll.flags);
    fd
}

/// Adds an item. `elsewhere`: where the item's file is while another has its number.
pub(super) fn add(o: &mut Opener<'_>, fd: i32, item: &EventpollTfdEntry, elsewhere: Option<i32>) {
    const EPOLL_CTL_ADD: i32 = 1;
    let number = item.tfd as i32;
    let mut event = [0; 12];
    event[..4].copy_from_slice(&item.events.to_ne_bytes());
    event[4..].copy_from_slice(&item.data.to_ne_bytes());
    let kept = match elsewhere {
        Some(_) if o.table.get(number).is_some() => {
            // dup keeps what has the number now; close-on-exec is put back below.
            Some(o.create(libc::SYS_dup, &[number.into()], "keep a descriptor"))
        }
        _ => None,
    };
    if let Some(from) = elsewhere {
        o.call(libc::SYS_dup3, &[from.into(), number.into(), 0.into()], "take its number");
    }
    let event = o.bytes(&event);
    let args = [fd.into(), EPOLL_CTL_ADD.into(), number.into(), event.into()];
    o.call(libc::SYS_epoll_ctl, &args, "add what it watches");
    match (elsewhere, kept) {
        (Some(_), Some(kept)) => {
            o.call(libc::SYS_dup3, &[kept.into(), number.into(), 0.into()], "give the number back");
            o.close(kept);
        }
        (Some(_), None) => {
            o.call(libc::SYS_close, &[number.into()], "give the number back");
        }
        _ => {}
    }
}
