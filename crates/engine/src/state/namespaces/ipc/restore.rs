//! Restore of an IPC namespace.

use std::io;
use std::os::fd::AsFd;

use arctern_image::images::{ImageDir, ImageErrorKind, ImageKind};
use arctern_image::messages::{IpcMsg, IpcMsgEntry, IpcSemEntry, IpcShmEntry, IpcVarEntry};
use arctern_sys::Pid;
use arctern_sys::ipc::{self, Message, Segment};
use arctern_sys::namespace::{self, Kind};

use super::{LONGEST_MESSAGE, MOST_MESSAGES, owner, settings};
use crate::error::{RestoreError, Subject};
use crate::options::{Event, Events};
use crate::state::shmem;

/// What comes into an IPC namespace.
#[derive(Debug)]
pub struct IpcRestore {
    /// The images again, for the memory.
    images: ImageDir,
    settings: Option<IpcVarEntry>,
    /// With the memory if it is in this image instead of a page store.
    segments: Vec<(IpcShmEntry, Option<Vec<u8>>)>,
    semaphores: Vec<(IpcSemEntry, Vec<u16>)>,
    queues: Vec<(IpcMsgEntry, Vec<Message>)>,
}

impl IpcRestore {
    /// Reads the images of the namespace with number `id`.
    pub fn load(images: &ImageDir, id: u64) -> Result<Self, RestoreError> {
        let again = images.as_fd().try_clone_to_owned();
        let again = again.map_err(failed("ipc namespace", "open its images"))?;
        let mut ipc = IpcRestore {
            images: ImageDir::from_fd(again, images.path()),
            settings: images.read_optional(ImageKind::IpcnsVar, id)?,
            segments: Vec::new(),
            semaphores: Vec::new(),
            queues: Vec::new(),
        };
        if let Some(mut reader) = images.reader(ImageKind::IpcnsShm, id)? {
            while let Some(entry) = reader.next_record::<IpcShmEntry>()? {
                let inline = !entry.in_pagemaps.unwrap_or(false);
                let memory = if inline {
                    let mut memory = reader.payload(entry.size.next_multiple_of(4))?;
                    memory.truncate(entry.size as usize);
                    Some(memory)
                } else {
                    None
                };
                ipc.segments.push((entry, memory));
            }
        }
        if let Some(mut reader) = images.reader(ImageKind::IpcnsSem, id)? {
            while let Some(entry) = reader.next_record::<IpcSemEntry>()? {
                let length = u64::from(entry.nsems) * 2;
                let bytes = reader.payload(length.next_multiple_of(8))?;
                let values = bytes[..length as usize].chunks_exact(2);
                let values = values.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
                ipc.semaphores.push((entry, values));
            }
        }
        if let Some(mut reader) = images.reader(ImageKind::IpcnsMsg, id)? {
            while let Some(entry) = reader.next_record::<IpcMsgEntry>()? {
                let mut messages = Vec::new();
                for _ in 0..entry.qnum.min(MOST_MESSAGES) {
                    let head: IpcMsg = reader.required()?;
                    if head.msize > LONGEST_MESSAGE {
                        let (size, limit) = (head.msize.into(), LONGEST_MESSAGE.into());
                        return Err(reader
                            .error(ImageErrorKind::RecordTooLarge { size, limit })
                            .into());
                    }
                    let mut text = reader.payload(u64::from(head.msize).next_multiple_of(8))?;
                    text.truncate(head.msize as usize);
                    messages.push((head.mtype as i64, text));
                }
                ipc.queues.push((entry, messages));
            }
        }
        Ok(ipc)
    }

    /// Fills the namespace of `root`, which is new.
    pub fn build(&self, root: Pid, events: &mut dyn Events) -> Result<(), RestoreError> {
        let done = namespace::inside(root, &[Kind::Ipc], || Ok(self.fill()));
        let warnings = done.map_err(failed("ipc namespace", "join it"))??;
        for warning in warnings {
            events.event(Event::Warning(warning));
        }
        Ok(())
    }

    /// Runs in the namespace.
    fn fill(&self) -> Result<Vec<String>, RestoreError> {
        let warnings = self.settings.as_ref().map(settings::write).unwrap_or_default();
        for (entry, memory) in &self.segments {
            let id = entry.desc.id as i32;
            let failed = |what| failed(&format!("shared memory segment {id}"), what);
            if entry.hugetlb_flag.unwrap_or(0) != 0 {
                let error = io::Error::from(io::ErrorKind::Unsupported);
                return Err(failed("make it of huge pages")(error));
            }
            let owner = owner(&entry.desc);
            settings::next_number("shm", id)
                .and_then(|()| ipc::create_segment(owner.key, entry.size, owner.mode))
                .and_then(|made| same(made, id))
                .map_err(failed("make it"))?;
            let segment = Segment::attach(id, entry.size).map_err(failed("attach it"))?;
            let file = segment.file().map_err(failed("open it"))?;
            match memory {
                Some(memory) => std::os::unix::fs::FileExt::write_all_at(&file, memory, 0)
                    .map_err(failed("fill it"))?,
                None => shmem::restore(&file, entry.desc.id.into(), &self.images)?,
            }
            ipc::own_segment(id, &owner).map_err(failed("give it its owner"))?;
        }
        for (entry, values) in &self.semaphores {
            let id = entry.desc.id as i32;
            let failed = |what| failed(&format!("semaphores {id}"), what);
            let owner = owner(&entry.desc);
            settings::next_number("sem", id)
                .and_then(|()| ipc::create_semaphores(owner.key, values.len() as i32, owner.mode))
                .and_then(|made| same(made, id))
                .map_err(failed("make them"))?;
            ipc::set_semaphores(id, &owner, values).map_err(failed("set them"))?;
        }
        for (entry, messages) in &self.queues {
            let id = entry.desc.id as i32;
            let failed = |what| failed(&format!("message queue {id}"), what);
            let owner = owner(&entry.desc);
            settings::next_number("msg", id)
                .and_then(|()| ipc::create_queue(owner.key, owner.mode))
                .and_then(|made| same(made, id))
                .map_err(failed("make it"))?;
            ipc::own_queue(id, &owner, entry.qbytes.into()).map_err(failed("give it its owner"))?;
            for (kind, text) in messages {
                ipc::send_message(id, *kind, text).map_err(failed("fill it"))?;
            }
        }
        Ok(warnings)
    }
}

/// An object that came with another number than the one that was asked for.
fn same(made: i32, wanted: i32) -> io::Result<()> {
    if made == wanted {
        return Ok(());
    }
    Err(io::Error::other(format!("the kernel gave it number {made}")))
}

fn failed(part: &str, what: &str) -> impl FnOnce(io::Error) -> RestoreError + use<> {
    let subject = Subject { pid: 1, comm: String::new(), part: part.to_owned() };
    let what = what.to_owned();
    move |source| RestoreError::Kernel { subject, what, source }
}
