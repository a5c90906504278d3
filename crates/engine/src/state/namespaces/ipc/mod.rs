//! What is in an IPC namespace: settings, System V shared memory, semaphores and message queues.
//!
//! All of it is read and made by a thread of the controller's that has joined the namespace:
//! `/proc/sys` and `/proc/sysvipc` show a reader its own namespace. Objects keep their numbers
//! (`*_next_id`), keys, owners and modes. Contents of shared memory are stored like those of other
//! shared objects, under the segment's number. Not captured: which process changed an object last
//! and when, undo values of semaphores, POSIX message queues (refused when there are some). A segment that was marked for removal comes back unmarked.
//!
//! Tasks attach segments afterwards, so the namespace is filled before any memory is built.

mod capture;
mod restore;
mod settings;

pub use capture::IpcCollector;
pub use restore::IpcRestore;

use arctern_image::messages::IpcDescEntry;
use arctern_sys::ipc::Owner;

/// Messages that are longer or larger in number than any kernel allows are not believed.
const MOST_MESSAGES: u32 = 1 << 20;
const LONGEST_MESSAGE: u32 = 1 << 24;

fn description(owner: &Owner) -> IpcDescEntry {
    IpcDescEntry {
        key: owner.key as u32,
        uid: owner.uid,
        gid: owner.gid,
        cuid: owner.cuid,
        cgid: owner.cgid,
        mode: owner.mode,
        id: owner.id as u32,
    }
}

fn owner(entry: &IpcDescEntry) -> Owner {
    Owner {
        key: entry.key as i32,
        id: entry.id as i32,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        cuid: entry.cuid,
        cgid: entry.cgid,
    }
}
