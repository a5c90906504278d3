//! The build id of an ELF file: tells two builds of a library apart whatever their names are.
//!
//! Source: elf(5); NT_GNU_BUILD_ID (type 3, owner `GNU`) in a PT_NOTE segment.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Program headers and notes beyond this are not looked at.
const MAX_HEADERS: usize = 64;
const MAX_NOTES: usize = 64 * 1024;

/// Reads the build id as CRIU keeps it, 32-bit words of the file's bytes; empty without one.
pub fn read(file: &File) -> Vec<u32> {
    find(file).unwrap_or_default()
}

fn find(file: &File) -> Option<Vec<u32>> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    if &header[..4] != b"\x7fELF" || header[4] != 2 || header[5] != 1 {
        return None;
    }
    let offset = word(&header, 32)?;
    let (size, count) = (half(&header, 54)?, half(&header, 56)?);
    for i in 0..count.min(MAX_HEADERS) {
        let mut segment = [0; 56];
        file.read_exact_at(&mut segment, offset.checked_add((i * size) as u64)?).ok()?;
        if segment[..4] != 4u32.to_le_bytes() {
            continue;
        }
        let mut notes = vec![0; (word(&segment, 32)? as usize).min(MAX_NOTES)];
        file.read_exact_at(&mut notes, word(&segment, 8)?).ok()?;
        // Notes are aligned to 4 bytes but in segments that say 8.
        let align = if word(&segment, 48)? == 8 { 8 } else { 4 };
        if let Some(id) = in_notes(&notes, align) {
            return Some(id);
        }
    }
    None
}

fn in_notes(mut notes: &[u8], align: usize) -> Option<Vec<u32>> {
    while notes.len() >= 12 {
        let name_size = u32::from_le_bytes(notes[0..4].try_into().ok()?) as usize;
        let size = u32::from_le_bytes(notes[4..8].try_into().ok()?) as usize;
        let kind = u32::from_le_bytes(notes[8..12].try_into().ok()?);
        let at = 12usize.checked_add(name_size)?.checked_next_multiple_of(align)?;
        let content = notes.get(at..at.checked_add(size)?)?;
        if kind == 3 && notes.get(12..12 + name_size) == Some(b"GNU\0") {
            return Some(
                content
                    .chunks(4)
                    .map(|chunk| {
                        let mut bytes = [0; 4];
                        bytes[..chunk.len()].copy_from_slice(chunk);
                        u32::from_le_bytes(bytes)
                    })
                    .collect(),
            );
        }
        notes = notes.get((at + size).checked_next_multiple_of(align)?..)?;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_before_the_build_id_are_passed_over() {
        let mut notes = Vec::new();
        for (name, kind, content) in
            [(&b"CORE\0"[..], 1u32, &b"abcde"[..]), (b"GNU\0", 3, b"\x01\0\0\0\x02\0\0\0\x03")]
        {
            notes.extend((name.len() as u32).to_le_bytes());
            notes.extend((content.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(name);
            notes.resize(notes.len().next_multiple_of(4), 0);
            notes.extend(content);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(in_notes(&notes, 4), Some(vec![1, 2, 3]));
        for cut in 0..notes.len() - 4 {
            in_notes(&notes[..cut], 4);
        }
        assert_eq!(in_notes(&[0xff; 40], 4), None);
    }

    #[test]
    fn other_files_have_none() {
        assert!(read(&File::open("/dev/null").unwrap()).is_empty());
        assert!(read(&File::open("/proc/self/status").unwrap()).is_empty());
    }
}
