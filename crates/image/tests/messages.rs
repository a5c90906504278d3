//! Messages and their framing against arbitrary bytes and values.

use std::path::Path;

use arctern_image::describe::describe_records;
use arctern_image::images::{ImageKind, RecordReader, RecordWriter};
use arctern_image::messages::*;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

/// One field as it stands in a protobuf message.
fn field() -> impl Strategy<Value = Vec<u8>> {
    let number = 1u32..64;
    let content = prop_oneof![
        any::<u64>().prop_map(|value| (0u32, varint(value))),
        any::<u64>().prop_map(|value| (1, value.to_le_bytes().to_vec())),
        any::<u32>().prop_map(|value| (5, value.to_le_bytes().to_vec())),
        vec(any::<u8>(), 0..24).prop_map(|bytes| {
            let mut content = varint(bytes.len() as u64);
            content.extend(bytes);
            (2, content)
        }),
    ];
    (number, content).prop_map(|(number, (wire, content))| {
        let mut bytes = varint(u64::from(number << 3 | wire));
        bytes.extend(content);
        bytes
    })
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn wire() -> impl Strategy<Value = Vec<u8>> {
    vec(field(), 0..24).prop_map(|fields| fields.concat())
}

/// What decodes must encode to something that decodes to the same.
fn stable<M: Message + Default + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
) -> Result<(), TestCaseError> {
    if let Ok(message) = M::decode(bytes) {
        let again = message.encode_to_vec();
        prop_assert_eq!(again.len(), message.encoded_len());
        prop_assert_eq!(M::decode(again.as_slice()).unwrap(), message);
    }
    Ok(())
}

proptest! {
    #[test]
    fn decoded_messages_are_stable(bytes in wire()) {
        stable::<CoreEntry>(&bytes)?;
        stable::<TaskCoreEntry>(&bytes)?;
        stable::<ThreadCoreEntry>(&bytes)?;
        stable::<ThreadInfoX86>(&bytes)?;
        stable::<MmEntry>(&bytes)?;
        stable::<FileEntry>(&bytes)?;
        stable::<InventoryEntry>(&bytes)?;
        stable::<InetSkEntry>(&bytes)?;
        stable::<UnixSkEntry>(&bytes)?;
        stable::<CgroupEntry>(&bytes)?;
        stable::<NetDeviceEntry>(&bytes)?;
        stable::<TtyInfoEntry>(&bytes)?;
        stable::<IpcVarEntry>(&bytes)?;
        stable::<CriuOpts>(&bytes)?;
        stable::<CriuReq>(&bytes)?;
    }

    /// Any bytes as any kind of image: an error or a description, never a panic.
    #[test]
    fn every_kind_survives_any_records(
        records in vec((wire(), vec(any::<u8>(), 0..40)), 0..4),
    ) {
        for &kind in ImageKind::ALL {
            let mut bytes = RecordWriter::new(Vec::new(), kind, Path::new("x")).unwrap().finish().unwrap();
            for (record, payload) in &records {
                bytes.extend((record.len() as u32).to_le_bytes());
                bytes.extend(record);
                bytes.extend(payload);
            }
            let length = bytes.len() as u64;
            let mut reader = RecordReader::new(bytes.as_slice(), length, kind, Path::new("x")).unwrap();
            let _ = describe_records(kind, &mut reader);
        }
    }

    #[test]
    fn mappings_come_back(
        mappings in vec((any::<u64>(), any::<u64>(), any::<u32>(), proptest::option::of(any::<u64>())), 0..50),
        pid in any::<u32>(),
    ) {
        let mm = MmEntry {
            mm_start_code: u64::from(pid),
            mm_saved_auxv: mappings.iter().map(|&(start, ..)| start).collect(),
            vmas: mappings.iter().map(|&(start, end, status, madv)| VmaEntry {
                start, end, status, madv, fd: -1, ..Default::default()
            }).collect(),
            ..Default::default()
        };
        let name = Path::new("mm-1.img");
        let mut writer = RecordWriter::new(Vec::new(), ImageKind::Mm, name).unwrap();
        writer.record(&mm).unwrap();
        let bytes = writer.finish().unwrap();
        let length = bytes.len() as u64;
        let mut reader = RecordReader::new(bytes.as_slice(), length, ImageKind::Mm, name).unwrap();
        prop_assert_eq!(reader.required::<MmEntry>().unwrap(), mm);
        prop_assert_eq!(reader.next_record::<MmEntry>().unwrap(), None);
    }
}

#[test]
fn repeated_scalars_are_written_one_by_one_and_read_packed_too() {
    let tree = PstreeEntry { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: vec![1, 300] };
    let bytes = tree.encode_to_vec();
    assert_eq!(bytes, [8, 1, 16, 0, 24, 1, 32, 1, 40, 1, 40, 0xac, 2]);
    let packed = [8, 1, 16, 0, 24, 1, 32, 1, 42, 3, 1, 0xac, 2];
    assert_eq!(PstreeEntry::decode(&packed[..]).unwrap(), tree);
}

#[test]
fn unknown_fields_are_skipped() {
    let mut bytes = PstreeEntry { pid: 7, ..Default::default() }.encode_to_vec();
    bytes.extend([0xfa, 0x3f, 2, 1, 2]);
    assert_eq!(PstreeEntry::decode(bytes.as_slice()).unwrap().pid, 7);
}

#[test]
fn defaults_are_those_of_criu() {
    let file = RegFileEntry::default();
    assert_eq!(file.mnt_id(), -1);
    assert_eq!(CriuOpts::default().log_level(), 2);
    assert_eq!(CriuOpts::default().ghost_limit(), 1 << 20);
    assert_eq!(CriuOpts::default().network_lock(), CriuNetworkLockMethod::Iptables);
    assert_eq!(UserX86RegsEntry::default().mode(), UserX86RegsMode::Native);
}
