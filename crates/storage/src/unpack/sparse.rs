//! File contents with their holes.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::error::{UnpackErrorKind, doing};

/// Writes `content` to `file` from `start` on, leaving holes where whole blocks are zero; returns
/// its length.
pub(super) fn copy_sparse(
    content: &mut impl Read,
    file: BorrowedFd<'_>,
    start: u64,
    buffer: &mut [u8],
) -> Result<u64, UnpackErrorKind> {
    const BLOCK: usize = 4096;
    let mut offset = start;
    let mut written = start;
    loop {
        let len = fill(content, buffer).map_err(UnpackErrorKind::Read)?;
        if len == 0 {
            break;
        }
        let mut at = 0;
        while at < len {
            // One run of blocks that are all zero, or all not.
            let zero = is_zero(&buffer[at..len.min(at + BLOCK)]);
            let mut end = len.min(at + BLOCK);
            while end < len && is_zero(&buffer[end..len.min(end + BLOCK)]) == zero {
                end = len.min(end + BLOCK);
            }
            if !zero {
                write_all_at(file, &buffer[at..end], offset + at as u64)?;
                written = offset + end as u64;
            }
            at = end;
        }
        offset += len as u64;
    }
    if written < offset {
        rustix::fs::ftruncate(file, offset).map_err(doing("set the length"))?;
    }
    Ok(offset - start)
}

fn fill(content: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match content.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

fn write_all_at(
    file: BorrowedFd<'_>,
    mut bytes: &[u8],
    mut offset: u64,
) -> Result<(), UnpackErrorKind> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(doing("write the contents")(e)),
        }
    }
    Ok(())
}
