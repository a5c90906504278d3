//! Image files as JSON for people and scripts; needs no privilege but to read them.
//!
//! A file of one record is an object, a file of many a list, field names are CRIU's. Bytes that are
//! not protobuf (queues, contents) are described by their number and their beginning.

use std::io::{self, Read, Write};

use prost::Message;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::images::{ImageDir, ImageError, ImageErrorKind, ImageKind, RecordReader};
use crate::messages::*;

/// Records that are described of one file; the rest is counted.
const MAX_RECORDS: usize = 100_000;

/// Bytes of JSON that one record may become: an empty mapping takes 2 bytes in an image, and some
/// hundred here.
const MAX_TEXT: usize = 32 << 20;

/// Bytes of a payload that are shown.
const PREVIEW: u64 = 32;

/// Describes every image of a directory, by file name. A damaged file is described by its error, so
/// that the rest can still be looked at.
///
/// # Errors
/// The directory cannot be listed.
pub fn describe(images: &ImageDir) -> Result<Value, ImageError> {
    let mut files = Map::new();
    for (kind, id) in images.list()? {
        let value = describe_file(images, kind, id).unwrap_or_else(|error| {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            json!({ "error": text })
        });
        files.insert(kind.file_name(id), value);
    }
    Ok(Value::Object(files))
}

/// Describes one image.
///
/// # Errors
/// It is missing or damaged.
pub fn describe_file(images: &ImageDir, kind: ImageKind, id: u64) -> Result<Value, ImageError> {
    let mut reader = images
        .reader(kind, id)?
        .ok_or_else(|| ImageErrorKind::Missing.at(images.path_of(kind, id)))?;
    describe_records(kind, &mut reader)
}

/// Describes the records of an open image of this kind.
pub fn describe_records<R: Read>(
    kind: ImageKind,
    reader: &mut RecordReader<R>,
) -> Result<Value, ImageError> {
    match kind {
        ImageKind::Inventory => one::<InventoryEntry, R>(reader),
        ImageKind::Pstree => many::<PstreeEntry, R>(reader),
        ImageKind::Core => one::<CoreEntry, R>(reader),
        ImageKind::Ids => one::<TaskKobjIdsEntry, R>(reader),
        ImageKind::Mm => one::<MmEntry, R>(reader),
        ImageKind::Fs => one::<FsEntry, R>(reader),
        ImageKind::Creds => one::<CredsEntry, R>(reader),
        ImageKind::Fdinfo => many::<FdinfoEntry, R>(reader),
        ImageKind::Files => many::<FileEntry, R>(reader),
        ImageKind::UnixPeers => many::<UnixPeerEntry, R>(reader),
        ImageKind::TtyInfo => many::<TtyInfoEntry, R>(reader),
        ImageKind::TtyData => many::<TtyDataEntry, R>(reader),
        ImageKind::RemapFpath => many::<RemapFilePathEntry, R>(reader),
        ImageKind::Memfd => many::<MemfdInodeEntry, R>(reader),
        ImageKind::Filelocks => many::<FileLockEntry, R>(reader),
        ImageKind::Seccomp => one::<SeccompEntry, R>(reader),
        ImageKind::Apparmor => one::<ApparmorEntry, R>(reader),
        ImageKind::Cgroup => one::<CgroupEntry, R>(reader),
        ImageKind::Mountpoints => many::<MntEntry, R>(reader),
        ImageKind::Utsns => one::<UtsnsEntry, R>(reader),
        ImageKind::Userns => one::<UsernsEntry, R>(reader),
        ImageKind::Timens => one::<TimensEntry, R>(reader),
        ImageKind::Pidns => one::<PidnsEntry, R>(reader),
        ImageKind::IpcnsVar => one::<IpcVarEntry, R>(reader),
        ImageKind::Netns => one::<NetnsEntry, R>(reader),
        ImageKind::Netdev => many::<NetDeviceEntry, R>(reader),
        ImageKind::Autofs => one::<AutofsEntry, R>(reader),
        ImageKind::BinfmtMisc => many::<BinfmtMiscEntry, R>(reader),
        ImageKind::Cpuinfo => one::<CpuinfoEntry, R>(reader),
        ImageKind::StatsDump => one::<StatsEntry, R>(reader),
        ImageKind::StatsRestore => one::<StatsEntry, R>(reader),
        ImageKind::IrmapCache => many::<IrmapCacheEntry, R>(reader),
        ImageKind::OldRegFiles => many::<RegFileEntry, R>(reader),
        ImageKind::OldExtFiles => many::<ExtFileEntry, R>(reader),
        ImageKind::OldNsFiles => many::<NsFileEntry, R>(reader),
        ImageKind::OldEventfd => many::<EventfdFileEntry, R>(reader),
        ImageKind::OldEventpoll => many::<EventpollFileEntry, R>(reader),
        ImageKind::OldEventpollTfd => many::<EventpollTfdEntry, R>(reader),
        ImageKind::OldSignalfd => many::<SignalfdEntry, R>(reader),
        ImageKind::OldInotify => many::<InotifyFileEntry, R>(reader),
        ImageKind::OldInotifyWd => many::<InotifyWdEntry, R>(reader),
        ImageKind::OldFanotify => many::<FanotifyFileEntry, R>(reader),
        ImageKind::OldFanotifyMark => many::<FanotifyMarkEntry, R>(reader),
        ImageKind::OldPipes => many::<PipeEntry, R>(reader),
        ImageKind::OldFifo => many::<FifoEntry, R>(reader),
        ImageKind::OldUnixsk => many::<UnixSkEntry, R>(reader),
        ImageKind::OldInetsk => many::<InetSkEntry, R>(reader),
        ImageKind::OldPacketsk => many::<PacketSockEntry, R>(reader),
        ImageKind::OldNetlinksk => many::<NetlinkSkEntry, R>(reader),
        ImageKind::OldTty => many::<TtyFileEntry, R>(reader),
        ImageKind::OldTunfile => many::<TunfileEntry, R>(reader),
        ImageKind::OldTimerfd => many::<TimerfdEntry, R>(reader),
        ImageKind::OldPidfd => many::<PidfdEntry, R>(reader),
        ImageKind::OldBpfmapFile => many::<BpfmapFileEntry, R>(reader),
        ImageKind::OldSigacts => many::<SaEntry, R>(reader),
        ImageKind::OldVmas => many::<VmaEntry, R>(reader),
        ImageKind::OldItimers => many::<ItimerEntry, R>(reader),
        ImageKind::OldPosixTimers => many::<PosixTimerEntry, R>(reader),
        ImageKind::OldRlimit => many::<RlimitEntry, R>(reader),
        ImageKind::OldSignalShared => many::<SiginfoEntry, R>(reader),
        ImageKind::OldSignalPrivate => many::<SiginfoEntry, R>(reader),
        ImageKind::Pagemap | ImageKind::PagemapShmem => pagemap(reader),
        ImageKind::PipesData | ImageKind::FifoData => {
            with_payload(reader, |entry: &PipeDataEntry| vec![("data", entry.bytes.into())])
        }
        ImageKind::SkQueues => {
            with_payload(reader, |entry: &SkPacketEntry| vec![("data", entry.length.into())])
        }
        ImageKind::Datagrams => {
            with_payload(reader, |entry: &DatagramEntry| vec![("data", entry.length.into())])
        }
        ImageKind::UnixPending => with_payload(reader, |entry: &UnixPendingEntry| {
            vec![("data", entry.lengths.iter().map(|length| u64::from(*length)).sum())]
        }),
        ImageKind::TcpStream => with_payload(reader, |entry: &TcpStreamEntry| {
            vec![("inq", entry.inq_len.into()), ("outq", entry.outq_len.into())]
        }),
        ImageKind::BpfmapData => with_payload(reader, |entry: &BpfmapDataEntry| {
            vec![("keys", entry.keys_bytes.into()), ("values", entry.values_bytes.into())]
        }),
        ImageKind::IpcnsShm => with_payload(reader, |entry: &IpcShmEntry| {
            if entry.in_pagemaps() { vec![] } else { vec![("data", padded(entry.size, 4))] }
        }),
        ImageKind::IpcnsSem => with_payload(reader, |entry: &IpcSemEntry| {
            vec![("values", padded(u64::from(entry.nsems) * 2, 8))]
        }),
        ImageKind::IpcnsMsg => messages_of_queues(reader),
        ImageKind::GhostFile => ghost_file(reader),
        ImageKind::Pages
        | ImageKind::Ifaddr
        | ImageKind::Route
        | ImageKind::Route6
        | ImageKind::Rule
        | ImageKind::Iptables
        | ImageKind::Ip6tables
        | ImageKind::Nftables
        | ImageKind::NetnsCt
        | ImageKind::NetnsExp
        | ImageKind::TmpfsDev
        | ImageKind::Tmpfs => {
            Ok(json!({ "bytes": reader.left(), "begins": preview(reader, reader.left())? }))
        }
    }
}

/// `length` with its filling up to a multiple of `unit`.
fn padded(length: u64, unit: u64) -> u64 {
    length.checked_next_multiple_of(unit).unwrap_or(length)
}

/// A message as JSON, or a note that it is too large to be shown.
fn value<M: Serialize>(message: &M) -> Value {
    let mut text = Bounded(Vec::new());
    let written = serde_json::to_writer(&mut text, message);
    match written.and_then(|()| serde_json::from_slice(&text.0)) {
        Ok(value) => value,
        // Messages are structs of strings, numbers and lists: nothing else can go wrong.
        Err(_) => json!({ "omitted": "more than can be shown" }),
    }
}

/// Takes [`MAX_TEXT`] bytes and no more.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn one<M, R>(reader: &mut RecordReader<R>) -> Result<Value, ImageError>
where
    M: Message + Default + Serialize,
    R: Read,
{
    Ok(value(&reader.required::<M>()?))
}

fn many<M, R>(reader: &mut RecordReader<R>) -> Result<Value, ImageError>
where
    M: Message + Default + Serialize,
    R: Read,
{
    with_payload(reader, |_: &M| vec![])
}

/// Describes records after each of which come the payloads that `payloads` names, with their lengths.
fn with_payload<M, R>(
    reader: &mut RecordReader<R>,
    payloads: impl Fn(&M) -> Vec<(&'static str, u64)>,
) -> Result<Value, ImageError>
where
    M: Message + Default + Serialize,
    R: Read,
{
    let mut list = List::default();
    while let Some(message) = reader.next_record::<M>()? {
        let mut shown = value(&message);
        for (name, length) in payloads(&message) {
            let begins = preview(reader, length)?;
            if length > 0
                && let Value::Object(fields) = &mut shown
            {
                fields.insert(format!("({name})"), begins);
            }
        }
        list.push(shown);
    }
    Ok(list.into_value())
}

/// The beginning of a payload as hexadecimal digits; the rest is passed over.
fn preview<R: Read>(reader: &mut RecordReader<R>, length: u64) -> Result<Value, ImageError> {
    let shown = reader.payload(length.min(PREVIEW))?;
    reader.skip_payload(length - shown.len() as u64)?;
    let mut text: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    if length > PREVIEW {
        text.push('…');
    }
    Ok(Value::String(text))
}

fn pagemap<R: Read>(reader: &mut RecordReader<R>) -> Result<Value, ImageError> {
    let head: PagemapHead = reader.required()?;
    Ok(json!({ "head": value(&head), "runs": many::<PagemapEntry, R>(reader)? }))
}

fn messages_of_queues<R: Read>(reader: &mut RecordReader<R>) -> Result<Value, ImageError> {
    let mut list = List::default();
    while let Some(queue) = reader.next_record::<IpcMsgEntry>()? {
        let mut messages = List::default();
        for _ in 0..queue.qnum {
            let message: IpcMsg = reader.required()?;
            let data = preview(reader, padded(message.msize.into(), 8))?;
            messages.push(json!({ "message": value(&message), "data": data }));
        }
        list.push(json!({ "queue": value(&queue), "messages": messages.into_value() }));
    }
    Ok(list.into_value())
}

fn ghost_file<R: Read>(reader: &mut RecordReader<R>) -> Result<Value, ImageError> {
    let entry: GhostFileEntry = reader.required()?;
    let content = if entry.chunks() {
        with_payload(reader, |chunk: &GhostChunkEntry| vec![("data", chunk.len)])?
    } else {
        json!({ "bytes": reader.left(), "begins": preview(reader, reader.left())? })
    };
    Ok(json!({ "entry": value(&entry), "content": content }))
}

/// A list that stops growing at [`MAX_RECORDS`].
#[derive(Default)]
struct List {
    shown: Vec<Value>,
    omitted: u64,
}

impl List {
    fn push(&mut self, value: Value) {
        if self.shown.len() < MAX_RECORDS {
            self.shown.push(value);
        } else {
            self.omitted += 1;
        }
    }

    fn into_value(mut self) -> Value {
        if self.omitted > 0 {
            self.shown.push(json!({ "omitted": self.omitted }));
        }
        Value::Array(self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_readable() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let tree = PstreeEntry { pid: 1, threads: vec![1, 5], ..Default::default() };
        images.write_one(ImageKind::Pstree, 0, &tree).unwrap();
        let core = CoreEntry {
            mtype: CoreEntryMarch::X8664 as i32,
            tc: Some(TaskCoreEntry {
                blk_sigset: 0x10,
                comm: "nginx".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        images.write_one(ImageKind::Core, 1, &core).unwrap();
        let mut pipes = images.writer(ImageKind::PipesData, 0).unwrap();
        let entry = PipeDataEntry { pipe_id: 9, bytes: 40, size: None };
        pipes.record(&entry).unwrap();
        pipes.payload(&[0xab; 40]).unwrap();
        pipes.finish().unwrap();
        images.write_raw(ImageKind::Iptables, 3, b"*nat").unwrap();
        std::fs::write(dir.path().join("mm-1.img"), b"broken!!").unwrap();

        let shown = describe(&images).unwrap();
        assert_eq!(shown["pstree.img"][0]["threads"], json!([1, 5]));
        assert_eq!(shown["core-1.img"]["mtype"], "X86_64");
        assert_eq!(shown["core-1.img"]["tc"]["blk_sigset"], "0x10");
        assert_eq!(shown["core-1.img"]["tc"]["comm"], "nginx");
        let data = format!("{}…", "ab".repeat(32));
        assert_eq!(shown["pipes-data.img"][0]["(data)"], data);
        assert_eq!(shown["iptables-3.img"], json!({ "bytes": 4, "begins": "2a6e6174" }));
        let error = shown["mm-1.img"]["error"].as_str().unwrap();
        assert!(error.contains("mm-1.img") && error.contains("not a file of this kind"), "{error}");
    }

    #[test]
    fn a_record_that_swells_is_left_out() {
        let vmas = vec![VmaEntry::default(); 400_000];
        let shown = value(&MmEntry { vmas, ..Default::default() });
        assert!(shown["omitted"].is_string());
    }

    #[test]
    fn a_list_says_what_it_left_out() {
        let mut list = List::default();
        for number in 0..MAX_RECORDS + 2 {
            list.push(number.into());
        }
        let Value::Array(shown) = list.into_value() else { panic!("a list") };
        assert_eq!(shown.last(), Some(&json!({ "omitted": 2 })));
    }
}
