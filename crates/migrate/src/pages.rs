//! Pages on the wire: what a [`PageSink`] is told, as bytes.
//!
//! Each word is one byte and its numbers, little-endian: [`SPACE`] pid `i32`; [`STORED`] address `u64`,
//! length `u32`, the bytes; [`UNCHANGED`] address `u64`, pages `u64`;
//! [`MAPPINGS`] length `u32`, an mm image; [`END`]. The reader allocates no
//! more than [`LONGEST`] bytes, whatever the other side says; that addresses ascend and are aligned is
//! for the sink to check, which has to know.

use std::io::{self, Read, Write};

use arctern_engine::options::HookError;
use arctern_engine::precopy::PageSink;
use arctern_image::messages::MmEntry;
use prost::Message;

const SPACE: u8 = 1;
const STORED: u8 = 2;
const UNCHANGED: u8 = 3;
const END: u8 = 4;
const MAPPINGS: u8 = 5;

/// Most bytes of pages in one word.
const LONGEST: usize = 1 << 20;

/// A sink whose pages go to a stream.
#[derive(Debug)]
pub struct PageWriter<W: Write>(W);

impl<W: Write> PageWriter<W> {
    /// Over this stream, which should be buffered.
    pub fn new(to: W) -> PageWriter<W> {
        PageWriter(to)
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.0
    }
}

impl<W: Write> PageSink for PageWriter<W> {
    fn space(&mut self, pid: i32) -> Result<(), HookError> {
        self.0.write_all(&[SPACE])?;
        Ok(self.0.write_all(&pid.to_le_bytes())?)
    }

    fn mappings(&mut self, mm: &MmEntry) -> Result<(), HookError> {
        let bytes = mm.encode_to_vec();
        if bytes.len() > LONGEST {
            // What is not told is not used.
            return Ok(());
        }
        self.0.write_all(&[MAPPINGS])?;
        self.0.write_all(&u32::try_from(bytes.len())?.to_le_bytes())?;
        Ok(self.0.write_all(&bytes)?)
    }

    fn stored(&mut self, vaddr: u64, bytes: &[u8]) -> Result<(), HookError> {
        let mut at = vaddr;
        for piece in bytes.chunks(LONGEST) {
            let mut head = [0; 13];
            head[0] = STORED;
            head[1..9].copy_from_slice(&at.to_le_bytes());
            head[9..].copy_from_slice(&u32::try_from(piece.len())?.to_le_bytes());
            self.0.write_all(&head)?;
            self.0.write_all(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn unchanged(&mut self, vaddr: u64, pages: u64) -> Result<(), HookError> {
        let mut word = [0; 17];
        word[0] = UNCHANGED;
        word[1..9].copy_from_slice(&vaddr.to_le_bytes());
        word[9..].copy_from_slice(&pages.to_le_bytes());
        Ok(self.0.write_all(&word)?)
    }

    fn end(&mut self) -> Result<(), HookError> {
        Ok(self.0.write_all(&[END])?)
    }
}

/// Reads pages until the stream ends, and gives them to a sink.
///
/// # Errors
/// The stream fails or ends within a word, or the sink does not take what it says.
pub fn read_pages(mut from: impl Read, sink: &mut dyn PageSink) -> Result<(), HookError> {
    let mut buffer = Vec::new();
    loop {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(());
        }
        match kind[0] {
            SPACE => sink.space(i32::from_le_bytes(number(&mut from)?))?,
            STORED => {
                let vaddr = u64::from_le_bytes(number(&mut from)?);
                let length = u32::from_le_bytes(number(&mut from)?) as usize;
                if length == 0 || length > LONGEST || !length.is_multiple_of(4096) {
                    return Err(format!("{length} bytes are no pages").into());
                }
                buffer.resize(length, 0);
                from.read_exact(&mut buffer)?;
                sink.stored(vaddr, &buffer)?;
            }
            UNCHANGED => {
                let vaddr = u64::from_le_bytes(number(&mut from)?);
                sink.unchanged(vaddr, u64::from_le_bytes(number(&mut from)?))?;
            }
            MAPPINGS => {
                let length = u32::from_le_bytes(number(&mut from)?) as usize;
                if length > LONGEST {
                    return Err(format!("mappings of {length} bytes").into());
                }
                buffer.resize(length, 0);
                from.read_exact(&mut buffer)?;
                sink.mappings(&MmEntry::decode(buffer.as_slice())?)?;
            }
            END => sink.end()?,
            other => return Err(format!("word {other} among pages").into()),
        }
    }
}

fn number<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes down what it is told.
    #[derive(Default)]
    struct Told(Vec<String>);

    impl PageSink for Told {
        fn space(&mut self, pid: i32) -> Result<(), HookError> {
            self.0.push(format!("space {pid}"));
            Ok(())
        }
        fn mappings(&mut self, mm: &MmEntry) -> Result<(), HookError> {
            self.0.push(format!("heap at {:#x}", mm.mm_start_brk));
            Ok(())
        }
        fn stored(&mut self, vaddr: u64, bytes: &[u8]) -> Result<(), HookError> {
            self.0.push(format!("{vaddr:#x}: {} of {}", bytes.len(), bytes[0]));
            Ok(())
        }
        fn unchanged(&mut self, vaddr: u64, pages: u64) -> Result<(), HookError> {
            self.0.push(format!("{vaddr:#x}: {pages} as before"));
            Ok(())
        }
        fn end(&mut self) -> Result<(), HookError> {
            self.0.push("end".to_owned());
            Ok(())
        }
    }

    #[test]
    fn what_is_told_arrives() {
        let mut writer = PageWriter::new(Vec::new());
        writer.space(7).unwrap();
        writer.mappings(&MmEntry { mm_start_brk: 0x77, ..MmEntry::default() }).unwrap();
        writer.stored(0x1000, &[3; 8192]).unwrap();
        writer.unchanged(0x9000, 4).unwrap();
        writer.stored(0x10_0000, &vec![4; LONGEST + 4096]).unwrap();
        writer.end().unwrap();
        let mut told = Told::default();
        read_pages(writer.into_inner().as_slice(), &mut told).unwrap();
        assert_eq!(
            told.0,
            [
                "space 7",
                "heap at 0x77",
                "0x1000: 8192 of 3",
                "0x9000: 4 as before",
                "0x100000: 1048576 of 4",
                "0x200000: 4096 of 4",
                "end"
            ]
        );
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_pages(bytes.as_slice(), &mut Told::default());
        }
    }
}
