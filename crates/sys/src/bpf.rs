//! Small BPF programs (bpf(2); CAP_BPF and CAP_PERFMON, or root). Two only look: one reads memory of
//! the kernel, one lists unix sockets. Others are in the modules of their purpose.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::check;

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const PROG_LOAD: i64 = 5;
const PROG_TEST_RUN: i64 = 10;
pub(crate) const LINK_CREATE: i64 = 28;
const ITER_CREATE: i64 = 33;

const MAP_TYPE_ARRAY: u64 = 2;
const PROG_TYPE_RAW_TRACEPOINT: u64 = 17;
const PROG_TYPE_TRACING: u64 = 26;
const TRACE_ITER: u64 = 28;

const PROBE_READ_KERNEL: i32 = 113;
const SEQ_WRITE: i32 = 127;

/// struct tcp_sock of a struct sock_common, or null.
pub(crate) const SKC_TO_TCP_SOCK: i32 = 137;

/// Most bytes of one read.
const ROOM: usize = 4096;

/// An instruction: code, destination, source, offset, immediate.
pub(crate) type Instruction = (u8, u8, u8, i16, i32);

/// bpf(2).
///
/// # Safety
/// What `attributes` points at must be valid for what `command` does with it.
unsafe fn bpf(command: i64, attributes: &mut [u64]) -> io::Result<i64> {
    let (start, size) = (attributes.as_mut_ptr(), size_of_val(attributes));
    // SAFETY: the kernel reads and writes `size` bytes of `attributes`; the rest is the caller's.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, start, size) })
}

/// bpf(2) with a command that makes a descriptor.
///
/// # Safety
/// As of [`bpf`].
pub(crate) unsafe fn make(command: i64, attributes: &mut [u64]) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Loads a program: its type, instructions, and what it is to be attached to.
pub(crate) fn load(
    kind: u64,
    program: &[Instruction],
    attach: u64,
    target: u32,
) -> io::Result<OwnedFd> {
    let words: Vec<u64> = program
        .iter()
        .map(|&(code, to, from, offset, value)| {
            u64::from(code)
                | u64::from(to | from << 4) << 8
                | u64::from(offset as u16) << 16
                | u64::from(value as u32) << 32
        })
        .collect();
    let license = c"GPL";
    let mut attributes = [0; 15];
    attributes[0] = kind | (words.len() as u64) << 32;
    attributes[1] = words.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    attributes[8] = attach << 32;
    attributes[13] = u64::from(target) << 32;
    // SAFETY: the instructions and the license outlive the call, which reads them.
    unsafe { make(PROG_LOAD, &mut attributes) }
}

/// Reads memory of the kernel. A wrong address is an error and harms nobody.
#[derive(Debug)]
pub struct Reader {
    map: OwnedFd,
    program: OwnedFd,
}

impl Reader {
    /// Loads the program.
    pub fn new() -> io::Result<Self> {
        let mut attributes = [MAP_TYPE_ARRAY | 4 << 32, ROOM as u64 | 1 << 32, 0];
        // SAFETY: the attributes hold numbers only.
        let map = unsafe { make(MAP_CREATE, &mut attributes) }?;
        // The context of a test run is what we pass: address and length.
        let program = [
            (0x79, 3, 1, 0, 0),                 // r3 = address
            (0x79, 2, 1, 8, 0),                 // r2 = length
            (0x25, 2, 0, 4, ROOM as i32),       // if r2 > ROOM: fail
            (0x18, 1, 2, 0, map.as_raw_fd()),   // r1 = the map's value
            (0, 0, 0, 0, 0),                    // (second half)
            (0x85, 0, 0, 0, PROBE_READ_KERNEL), // r0 = probe_read_kernel(r1, r2, r3)
            (0x95, 0, 0, 0, 0),                 // return r0
            (0xb7, 0, 0, 0, 1),                 // fail: r0 = 1
            (0x95, 0, 0, 0, 0),                 // return r0
        ];
        let program = load(PROG_TYPE_RAW_TRACEPOINT, &program, 0, 0)?;
        Ok(Reader { map, program })
    }

    /// Reads `len` bytes at `address`.
    pub fn read(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let part = (len - bytes.len()).min(ROOM);
            let value = self.read_part(address.wrapping_add(bytes.len() as u64), part)?;
            bytes.extend(&value[..part]);
        }
        Ok(bytes)
    }

    fn read_part(&self, address: u64, len: usize) -> io::Result<[u8; ROOM]> {
        let context = [address, len as u64];
        let mut attributes = [0; 9];
        attributes[0] = self.program.as_raw_fd() as u64;
        attributes[5] = size_of_val(&context) as u64;
        attributes[6] = context.as_ptr() as u64;
        // SAFETY: the context outlives the call, which reads it.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
        if attributes[0] >> 32 != 0 {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let (key, mut value) = (0u32, [0u8; ROOM]);
        let (key, to) = ((&raw const key) as u64, value.as_mut_ptr() as u64);
        let mut attributes = [self.map.as_raw_fd() as u64, key, to, 0];
        // SAFETY: the key has four bytes and the value ROOM, as the map was made.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut attributes) }?;
        Ok(value)
    }

    /// Reads a pointer.
    pub fn pointer(&self, address: u64) -> io::Result<u64> {
        let bytes = self.read(address, 8)?;
        Ok(bytes.try_into().map(u64::from_ne_bytes).unwrap_or_default())
    }

    /// Reads an unsigned int.
    pub fn word(&self, address: u64) -> io::Result<u32> {
        let bytes = self.read(address, 4)?;
        Ok(bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default())
    }
}

/// Addresses of the unix sockets (struct sock) of the calling thread's network namespace. `target` is
/// the BTF id of `bpf_iter_unix` (kernel 5.15).
pub fn unix_sockets(target: u32) -> io::Result<Vec<u64>> {
    // The context (struct bpf_iter__unix): pointer to the meta data, pointer to the socket.
    let program = [
        (0x79, 7, 1, 8, 0),         // r7 = socket
        (0x55, 7, 0, 2, 0),         // if r7 == 0:
        (0xb7, 0, 0, 0, 0),         //   r0 = 0
        (0x95, 0, 0, 0, 0),         //   return
        (0x79, 1, 1, 0, 0),         // r1 = meta data
        (0x79, 1, 1, 0, 0),         // r1 = its seq_file
        (0x7b, 10, 7, -8, 0),       // on the stack: socket
        (0xbf, 2, 10, 0, 0),        // r2 = stack
        (0x07, 2, 0, 0, -8),        // r2 -= 8
        (0xb7, 3, 0, 0, 8),         // r3 = 8
        (0x85, 0, 0, 0, SEQ_WRITE), // seq_write(r1, r2, r3)
        (0xb7, 0, 0, 0, 0),         // r0 = 0
        (0x95, 0, 0, 0, 0),         // return
    ];
    let bytes = iterate(target, &program)?;
    let word = |chunk: &[u8]| chunk.try_into().map(u64::from_ne_bytes).unwrap_or_default();
    Ok(bytes.chunks_exact(8).map(word).collect())
}

/// Runs a program for each item that the iterator with BTF id `target` has, once for the end of all;
/// what it writes.
pub(crate) fn iterate(target: u32, program: &[Instruction]) -> io::Result<Vec<u8>> {
    let program = load(PROG_TYPE_TRACING, program, TRACE_ITER, target)?;
    let mut attributes = [program.as_raw_fd() as u64, TRACE_ITER];
    // SAFETY: the attributes hold numbers only.
    let link = unsafe { make(LINK_CREATE, &mut attributes) }?;
    let mut attributes = [link.as_raw_fd() as u64];
    // SAFETY: the attributes hold numbers only.
    let list = unsafe { make(ITER_CREATE, &mut attributes) }?;
    // In few large reads: where one ends, the kernel may leave out a socket.
    let (mut list, mut bytes, mut buffer) = (File::from(list), Vec::new(), vec![0; 1 << 16]);
    loop {
        match list.read(&mut buffer)? {
            0 => return Ok(bytes),
            n => bytes.extend(&buffer[..n]),
        }
    }
}
