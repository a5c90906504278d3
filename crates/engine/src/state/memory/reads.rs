//! Pages read by the task itself, from the pages files straight to their places.

use std::collections::HashMap;

use arctern_image::pages::Extent;
use arctern_tracee::Batch;
use arctern_tracee::stub::{BATCH_ROOM, Stub};

use crate::error::RestoreError;

/// Ranges in one preadv (IOV_MAX).
const IOVECS: usize = 1024;
/// Bytes in one preadv.
const READ_LIMIT: u64 = 16 << 20;
/// Runs from this size on are populated first.
const POPULATE_FROM: u64 = 128 << 10;
/// MADV_POPULATE_WRITE (linux/mman.h, kernel 5.14).
const MADV_POPULATE_WRITE: i32 = 23;

/// One preadv: neighbours in a pages file, wherever they go.
#[derive(Debug)]
pub(super) struct Read {
    level: usize,
    offset: u64,
    ranges: Vec<(u64, u64)>,
    bytes: u64,
}

/// Groups extents into reads.
pub(super) fn reads(extents: &[Extent]) -> Vec<Read> {
    let mut all: Vec<Read> = Vec::new();
    for extent in extents {
        let mut done = 0;
        while done < extent.len() {
            let len = (extent.len() - done).min(READ_LIMIT);
            let (vaddr, offset) = (extent.vaddr + done, extent.offset + done);
            match all.last_mut() {
                Some(last)
                    if last.level == extent.level
                        && last.offset + last.bytes == offset
                        && last.ranges.len() < IOVECS
                        && last.bytes + len <= READ_LIMIT =>
                {
                    last.ranges.push((vaddr, len));
                    last.bytes += len;
                }
                _ => all.push(Read {
                    level: extent.level,
                    offset,
                    ranges: vec![(vaddr, len)],
                    bytes: len,
                }),
            }
            done += len;
        }
    }
    all
}

/// Reads that one thread makes in one stop.
#[derive(Debug, Default)]
pub(super) struct Reads {
    batch: Batch,
    expected: Vec<(arctern_tracee::CallId, u64)>,
    pub(super) bytes: u64,
}

impl Reads {
    pub(super) fn add(&mut self, read: &Read, files: &HashMap<usize, i32>) {
        let mut iov = Vec::with_capacity(read.ranges.len() * 16);
        for (vaddr, len) in &read.ranges {
            if *len >= POPULATE_FROM {
                // Makes the pages without a fault for each. Where the kernel cannot, the read does.
                self.batch.call(
                    libc::SYS_madvise,
                    &[(*vaddr).into(), (*len).into(), MADV_POPULATE_WRITE.into()],
                );
            }
            iov.extend(vaddr.to_ne_bytes());
            iov.extend(len.to_ne_bytes());
        }
        let iov = self.batch.bytes(&iov);
        let call = self.batch.call(
            libc::SYS_preadv,
            &[
                files[&read.level].into(),
                iov.into(),
                read.ranges.len().into(),
                read.offset.into(),
                0.into(),
            ],
        );
        self.expected.push((call, read.bytes));
        self.bytes += read.bytes;
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.size() > BATCH_ROOM / 4
    }

    pub(super) fn run(&mut self, stub: &Stub) -> Result<(), RestoreError> {
        stub.run(&mut self.batch)?;
        self.verify()
    }

    pub(super) fn run_two(
        stub: &Stub,
        here: &mut Reads,
        there: &mut Reads,
    ) -> Result<(), RestoreError> {
        stub.run_two(&mut here.batch, &mut there.batch)?;
        here.verify()?;
        there.verify()
    }

    fn verify(&mut self) -> Result<(), RestoreError> {
        for (call, bytes) in self.expected.drain(..) {
            match self.batch.result(call) {
                Ok(got) if got == bytes => {}
                other => {
                    return Err(RestoreError::Inconsistent(format!(
                        "a read of {bytes} bytes of pages gave {other:?}"
                    )));
                }
            }
        }
        *self = Reads::default();
        Ok(())
    }
}
