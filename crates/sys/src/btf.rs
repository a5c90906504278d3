//! Where the running kernel keeps the fields of its structures: BTF (Documentation/bpf/btf.rst), which
//! it describes itself with in `/sys/kernel/btf/vmlinux`.

use std::collections::HashMap;
use std::io;

/// Kinds of types that are looked for.
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const FUNC: u8 = 12;
const MOST_NESTING: u32 = 8;

/// The types of a kernel.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Place of each type's head; the first has id 1.
    types: Vec<usize>,
    names: HashMap<(u8, u32), u32>,
}

impl Btf {
    /// Reads the running kernel's.
    pub fn load() -> io::Result<Self> {
        Self::parse(std::fs::read("/sys/kernel/btf/vmlinux")?)
    }

    fn parse(bytes: Vec<u8>) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "BTF not understood");
        let word = |at: usize| word(&bytes, at).ok_or_else(bad);
        if word(0)? & 0xffff != 0xeb9f {
            return Err(bad());
        }
        let (head, start, length) = (word(4)? as usize, word(8)? as usize, word(12)? as usize);
        let strings = head + word(16)? as usize;
        let (mut at, end) = (head + start, head + start + length);
        let (mut types, mut names) = (Vec::new(), HashMap::new());
        while at < end {
            let (name, info) = (word(at)?, word(at + 4)?);
            let (kind, members) = ((info >> 24 & 0x1f) as u8, (info & 0xffff) as usize);
            types.push(at);
            if name != 0 && matches!(kind, STRUCT | FUNC) {
                names.entry((kind, name)).or_insert(types.len() as u32);
            }
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | UNION | 15 | 19 => 12 * members,
                    6 | 13 => 8 * members,
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return Err(bad()),
                };
        }
        Ok(Btf { bytes, strings, types, names })
    }

    fn text(&self, offset: u32) -> &[u8] {
        let rest = self.bytes.get(self.strings + offset as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn find(&self, kind: u8, name: &str) -> Option<u32> {
        let mut all = self.names.iter().filter(|((known, _), _)| *known == kind);
        all.find(|((_, text), _)| self.text(*text) == name.as_bytes()).map(|(_, id)| *id)
    }

    /// The id of a function.
    pub fn function(&self, name: &str) -> io::Result<u32> {
        self.find(FUNC, name).ok_or_else(|| missing(name))
    }

    /// The offset of a field in bytes, also of one in an anonymous part.
    pub fn offset(&self, structure: &str, field: &str) -> io::Result<u64> {
        Ok(u64::from(self.bits(structure, field)?) / 8)
    }

    /// Where a field of one bit is: the offset of its byte, and its mask there.
    pub fn flag(&self, structure: &str, field: &str) -> io::Result<(u64, u8)> {
        let bits = self.bits(structure, field)?;
        let bit = if cfg!(target_endian = "little") { bits % 8 } else { 7 - bits % 8 };
        Ok((u64::from(bits) / 8, 1 << bit))
    }

    fn bits(&self, structure: &str, field: &str) -> io::Result<u32> {
        let id = self.find(STRUCT, structure).ok_or_else(|| missing(structure))?;
        self.in_type(id, field, 0).ok_or_else(|| missing(field))
    }

    fn in_type(&self, id: u32, field: &str, depth: u32) -> Option<u32> {
        let at = *self.types.get((id as usize).checked_sub(1)?)?;
        let info = word(&self.bytes, at + 4)?;
        let kind = (info >> 24 & 0x1f) as u8;
        if !matches!(kind, STRUCT | UNION) || depth > MOST_NESTING {
            return None;
        }
        (0..(info & 0xffff) as usize).find_map(|member| {
            let at = at + 12 + 12 * member;
            let (name, inner) = (word(&self.bytes, at)?, word(&self.bytes, at + 4)?);
            let mut bits = word(&self.bytes, at + 8)?;
            if info >> 31 != 0 {
                // The highest byte is the width of a bit field.
                bits &= 0xff_ffff;
            }
            match name {
                0 => Some(bits + self.in_type(inner, field, depth + 1)?),
                _ => (self.text(name) == field.as_bytes()).then_some(bits),
            }
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("this kernel has no `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_running_kernel_are_found() {
        let Ok(btf) = Btf::load() else {
            eprintln!("skip: this kernel has no BTF");
            return;
        };
        assert_eq!(btf.offset("list_head", "prev").unwrap(), 8);
        // In an anonymous part.
        assert_eq!(btf.offset("sk_buff", "next").unwrap(), 0);
        assert!(btf.offset("sk_buff", "no_such_field").is_err());
        assert!(btf.function("vfs_read").unwrap() > 0);
    }

    #[test]
    fn damaged_descriptions_are_errors() {
        assert!(Btf::parse(vec![]).is_err());
        let mut bytes = vec![0; 60];
        bytes[..4].copy_from_slice(&[0x9f, 0xeb, 1, 0]);
        bytes[4] = 24;
        bytes[12] = 200;
        assert!(Btf::parse(bytes.clone()).is_err());
        bytes[12] = 36;
        bytes[31] = 31;
        assert!(Btf::parse(bytes).is_err());
    }
}
