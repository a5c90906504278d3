//! Images that CRIU 4.2.1 wrote: every record decodes, holds no field that is unknown here, and
//! encodes to the same bytes.
//!
//! The first sample is a dump of a program with threads, a child, a zombie, pipes, a fifo, unix and
//! inet sockets, epoll, eventfd, timerfd, inotify, shared memory, a memfd, deleted files, locks, a
//! queued signal and an interval timer; the second of one in UTS, IPC and network namespaces of its
//! own, with a message queue, semaphores and SysV shared memory. Both without their pages files.

use std::path::Path;

use arctern_image::describe::describe;
use arctern_image::images::{Head, ImageDir, ImageKind, RecordReader};
use arctern_image::messages::*;
use prost::Message;

const SAMPLES: [&str; 2] = ["criu-4.2.1", "criu-4.2.1-namespaces"];

fn sample(name: &str) -> ImageDir {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name);
    ImageDir::open(path).unwrap()
}

/// Decodes the next record twice: as the message, and as the bytes that it stands in.
fn same<M: Message + Default>(
    kind: ImageKind,
    reader: &mut RecordReader<&[u8]>,
    bytes: &[u8],
) -> Option<M> {
    let at = bytes.len() - reader.left() as usize;
    let message: M = reader.next_record().unwrap()?;
    let end = bytes.len() - reader.left() as usize;
    assert_eq!(message.encode_to_vec(), bytes[at + 4..end], "{kind:?} at {at}");
    Some(message)
}

#[test]
fn records_of_criu_encode_to_the_same_bytes() {
    for name in SAMPLES {
        check_records(&sample(name));
    }
}

fn check_records(images: &ImageDir) {
    let list = images.list().unwrap();
    assert!(list.len() > 25, "{list:?}");
    for (kind, id) in list {
        let name = images.path_of(kind, id);
        let bytes = std::fs::read(&name).unwrap();
        let length = bytes.len() as u64;
        let mut reader = RecordReader::new(bytes.as_slice(), length, kind, &name).unwrap();
        let reader = &mut reader;
        macro_rules! all {
            ($message:ty) => {
                while same::<$message>(kind, reader, &bytes).is_some() {}
            };
            ($message:ty, $length:ident) => {
                while let Some(entry) = same::<$message>(kind, reader, &bytes) {
                    reader.skip_payload(entry.$length.into()).unwrap();
                }
            };
        }
        match kind {
            ImageKind::Inventory => all!(InventoryEntry),
            ImageKind::Pstree => all!(PstreeEntry),
            ImageKind::Core => all!(CoreEntry),
            ImageKind::Ids => all!(TaskKobjIdsEntry),
            ImageKind::Mm => all!(MmEntry),
            ImageKind::Fs => all!(FsEntry),
            ImageKind::Fdinfo => all!(FdinfoEntry),
            ImageKind::Files => all!(FileEntry),
            ImageKind::Memfd => all!(MemfdInodeEntry),
            ImageKind::Filelocks => all!(FileLockEntry),
            ImageKind::RemapFpath => all!(RemapFilePathEntry),
            ImageKind::Seccomp => all!(SeccompEntry),
            ImageKind::Cgroup => all!(CgroupEntry),
            ImageKind::Timens => all!(TimensEntry),
            ImageKind::StatsDump => all!(StatsEntry),
            ImageKind::TtyInfo => all!(TtyInfoEntry),
            ImageKind::Utsns => all!(UtsnsEntry),
            ImageKind::Mountpoints => all!(MntEntry),
            ImageKind::Netns => all!(NetnsEntry),
            ImageKind::Netdev => all!(NetDeviceEntry),
            ImageKind::IpcnsVar => all!(IpcVarEntry),
            ImageKind::Pidns => all!(PidnsEntry),
            ImageKind::Pagemap | ImageKind::PagemapShmem => {
                same::<PagemapHead>(kind, reader, &bytes).unwrap();
                all!(PagemapEntry);
            }
            ImageKind::PipesData | ImageKind::FifoData => all!(PipeDataEntry, bytes),
            ImageKind::SkQueues => all!(SkPacketEntry, length),
            ImageKind::GhostFile => {
                let entry: GhostFileEntry = same(kind, reader, &bytes).unwrap();
                if entry.chunks() {
                    all!(GhostChunkEntry, len);
                }
            }
            ImageKind::IpcnsMsg => {
                while let Some(queue) = same::<IpcMsgEntry>(kind, reader, &bytes) {
                    for _ in 0..queue.qnum {
                        let message: IpcMsg = same(kind, reader, &bytes).unwrap();
                        reader.skip_payload(message.msize.next_multiple_of(8).into()).unwrap();
                    }
                }
            }
            ImageKind::IpcnsSem => {
                while let Some(set) = same::<IpcSemEntry>(kind, reader, &bytes) {
                    reader.skip_payload((set.nsems * 2).next_multiple_of(8).into()).unwrap();
                }
            }
            ImageKind::IpcnsShm => {
                while let Some(segment) = same::<IpcShmEntry>(kind, reader, &bytes) {
                    assert!(segment.in_pagemaps());
                }
            }
            raw if raw.head() == Head::Raw => {}
            other => panic!("{other:?} is in the sample and not in the test"),
        }
    }
}

#[test]
fn a_dump_of_criu_is_described_without_error() {
    for name in SAMPLES {
        let shown = describe(&sample(name)).unwrap();
        for (name, value) in shown.as_object().unwrap() {
            assert!(value.get("error").is_none(), "{name}: {value}");
        }
        assert_eq!(shown["inventory.img"]["img_version"], 2);
    }
    let shown = describe(&sample(SAMPLES[0])).unwrap();
    assert_eq!(shown["pipes-data.img"][0]["(data)"], "7069706564617461");
    let shown = describe(&sample(SAMPLES[1])).unwrap();
    assert_eq!(shown["utsns-11.img"]["nodename"], "sample");
}
