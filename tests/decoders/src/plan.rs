//! A directory of images as a restore reads it, up to the plan: what is read of several files
//! together.

use std::fs;

use arctern_image::images::{ImageDir, ImageKind};

use crate::scratch;

/// Kinds of which a tree is read, with the ids that they may have.
const KINDS: &[ImageKind] = &[
    ImageKind::Pstree,
    ImageKind::Core,
    ImageKind::Mm,
    ImageKind::Ids,
    ImageKind::Pagemap,
    ImageKind::Pages,
    ImageKind::Inventory,
    ImageKind::Seccomp,
    ImageKind::Files,
    ImageKind::Fdinfo,
    ImageKind::Fs,
    ImageKind::Mountpoints,
    ImageKind::Cgroup,
    ImageKind::GhostFile,
    ImageKind::RemapFpath,
    ImageKind::TtyInfo,
    ImageKind::TtyData,
    ImageKind::PagemapShmem,
    ImageKind::Memfd,
    ImageKind::Filelocks,
    ImageKind::SkQueues,
    ImageKind::Datagrams,
    ImageKind::UnixPending,
    ImageKind::TcpStream,
    ImageKind::PipesData,
    ImageKind::FifoData,
    ImageKind::Utsns,
    ImageKind::Userns,
    ImageKind::Timens,
    ImageKind::Pidns,
    ImageKind::IpcnsVar,
    ImageKind::IpcnsShm,
    ImageKind::IpcnsSem,
    ImageKind::IpcnsMsg,
    ImageKind::Netns,
    ImageKind::Apparmor,
    ImageKind::Cpuinfo,
];

/// Files follow each other: kind, id, length (two bytes), content.
pub fn plan(mut input: &[u8]) {
    let dir = scratch();
    while let [kind, id, low, high, rest @ ..] = input {
        // A list of ours, which is JSON.
        let waiting = *kind == u8::MAX;
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (content, after) = rest.split_at(length);
        if waiting {
            fs::write(dir.path().join("arctern-accept.json"), content).expect("write");
            input = after;
            continue;
        }
        let mut bytes = kind.head().word().map_or(Vec::new(), |word| word.to_le_bytes().to_vec());
        if kind.type_word() != 0 {
            bytes.extend(kind.type_word().to_le_bytes());
        }
        bytes.extend(content);
        fs::write(dir.path().join(kind.file_name(u64::from(*id))), bytes).expect("write");
        input = after;
    }
    let _ = arctern_engine::describe_plan(dir.path(), true);
    if let Ok(images) = ImageDir::open(dir.path()) {
        let _ = arctern_engine::examine(&images);
        let _ = arctern_engine::room::of_images(images.path());
    }
}
