//! Capture of an IPC namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{IpcMsg, IpcMsgEntry, IpcSemEntry, IpcShmEntry, IpcVarEntry};
use arctern_image::pages::PagesIds;
use arctern_sys::ipc::{self, Listed, Message, Segment};
use arctern_sys::namespace::{self, Kind};

use super::{LONGEST_MESSAGE, description, settings};
use crate::error::{CaptureError, Refusal};
use crate::state::shmem;
use crate::tree::FrozenTask;

/// What a frozen tree has in its IPC namespace.
#[derive(Debug)]
pub struct IpcCollector {
    settings: IpcVarEntry,
    /// With the memory as a file.
    segments: Vec<(IpcShmEntry, File)>,
    /// With the values.
    semaphores: Vec<(IpcSemEntry, Vec<u16>)>,
    /// With the messages.
    queues: Vec<(IpcMsgEntry, Vec<Message>)>,
    /// Names of POSIX message queues, which are not carried.
    posix_queues: Vec<String>,
}

impl IpcCollector {
    /// Reads everything but the memory of segments.
    pub fn collect(root: &FrozenTask) -> Result<Self, CaptureError> {
        namespace::inside(root.pid, &[Kind::Ipc], collect)
            .map_err(root.failed("ipc namespace", "read what is in it"))
    }

    /// Refuses what is in the namespace and not carried.
    pub fn check(&self, root: &FrozenTask, refusals: &mut Vec<Refusal>) {
        for name in &self.posix_queues {
            refusals.push(root.refuse(
                "ipc namespace",
                format!("the POSIX message queue /{name} cannot be carried"),
                "remove it (mq_unlink) before the checkpoint",
            ));
        }
    }

    /// Writes the images of the namespace with number `id`.
    pub fn write(&self, id: u64, images: &ImageDir, pages: &PagesIds) -> Result<(), CaptureError> {
        images.write_one(ImageKind::IpcnsVar, id, &self.settings)?;
        if !self.segments.is_empty() {
            images.write_all(ImageKind::IpcnsShm, id, self.segments.iter().map(|(e, _)| e))?;
        }
        for (entry, memory) in &self.segments {
            shmem::capture(memory, entry.desc.id.into(), images, pages)?;
        }
        if !self.semaphores.is_empty() {
            let mut writer = images.writer(ImageKind::IpcnsSem, id)?;
            for (entry, values) in &self.semaphores {
                writer.record(entry)?;
                writer.payload(&padded(values.iter().flat_map(|v| v.to_le_bytes()).collect()))?;
            }
            writer.finish()?;
        }
        if !self.queues.is_empty() {
            let mut writer = images.writer(ImageKind::IpcnsMsg, id)?;
            for (entry, messages) in &self.queues {
                writer.record(entry)?;
                for (kind, text) in messages {
                    let head = IpcMsg { mtype: *kind as u64, msize: text.len() as u32 };
                    writer.record(&head)?;
                    writer.payload(&padded(text.clone()))?;
                }
            }
            writer.finish()?;
        }
        Ok(())
    }
}

/// Filled up to a multiple of eight bytes.
fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn listed(name: &str) -> io::Result<Vec<Listed>> {
    Ok(ipc::parse(&fs::read_to_string(format!("/proc/sysvipc/{name}"))?)?)
}

/// Names of the POSIX message queues of the thread's namespace.
fn posix_queues() -> io::Result<Vec<String>> {
    let mount = match arctern_sys::mount::detached(c"mqueue") {
        // A kernel without such queues.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(Vec::new()),
        other => other?,
    };
    let entries = fs::read_dir(format!("/proc/self/fd/{}", mount.as_raw_fd()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Runs in the namespace.
fn collect() -> io::Result<IpcCollector> {
    let mut found = IpcCollector {
        settings: settings::read()?,
        segments: Vec::new(),
        semaphores: Vec::new(),
        queues: Vec::new(),
        posix_queues: posix_queues()?,
    };
    for Listed { owner, size } in listed("shm")? {
        let entry = IpcShmEntry {
            desc: description(&owner),
            size,
            in_pagemaps: Some(true),
            hugetlb_flag: None,
        };
        found.segments.push((entry, Segment::attach(owner.id, size)?.file()?));
    }
    for Listed { owner, size } in listed("sem")? {
        let entry = IpcSemEntry { desc: description(&owner), nsems: size as u32 };
        found.semaphores.push((entry, ipc::semaphores(owner.id, size)?));
    }
    for Listed { owner, size } in listed("msg")? {
        let largest = found.settings.msg_ctlmax.min(LONGEST_MESSAGE) as usize;
        let mut messages = Vec::new();
        for index in 0..size {
            messages.extend(ipc::peek_message(owner.id, index, largest)?);
        }
        let entry = IpcMsgEntry {
            desc: description(&owner),
            qbytes: ipc::queue_limit(owner.id)? as u32,
            qnum: messages.len() as u32,
        };
        found.queues.push((entry, messages));
    }
    Ok(found)
}
