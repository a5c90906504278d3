//! The calls of one stop: numbers, arguments, and the memory that they read and write.
//!
//! ```ignore
//! let mut batch = Batch::new();
//! let path = batch.c_string(b"/var/log/x");
//! let fd = batch.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.into(), 0.into()]);
//! batch.call(libc::SYS_lseek, &[fd.into(), 42.into(), libc::SEEK_SET.into()]);
//! remote.run(&mut batch)?;
//! batch.result(fd)?;
//! ```

use std::io;

use crate::gadget::{CALL_SIZE, COPY, RET_OFFSET};

/// A call of the batch, to ask for its result or to use the result as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(usize);

/// A point of the batch at which the thread stands still ([`Batch::pause`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause(usize);

/// A piece of memory that travels with the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    offset: usize,
    len: usize,
}

impl Arena {
    /// The part that begins `bytes` further.
    pub fn at(self, bytes: usize) -> Arena {
        assert!(bytes <= self.len, "beyond the piece");
        Arena { offset: self.offset + bytes, len: self.len - bytes }
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether the piece has no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// An argument.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A number.
    Value(u64),
    /// The address of a piece of the batch's memory.
    Address(Arena),
    /// The result of an earlier call.
    Result(CallId),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Arg::Value(value)
    }
}
impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Arg::Value(value as u64)
    }
}
impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Arg::Value(value as i64 as u64)
    }
}
impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Arg::Value(value.into())
    }
}
impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Arg::Value(value as u64)
    }
}
impl From<Arena> for Arg {
    fn from(piece: Arena) -> Self {
        Arg::Address(piece)
    }
}
impl From<CallId> for Arg {
    fn from(call: CallId) -> Self {
        Arg::Result(call)
    }
}

/// Number that stands for a pause until the batch runs.
const PAUSE: i64 = -2;

#[derive(Clone, Debug)]
struct Entry {
    nr: i64,
    args: [Arg; 6],
}

#[derive(Clone, Copy, Debug)]
enum Fixup {
    /// Store the address of a piece at an arena offset.
    Pointer { at: usize, target: Arena },
}

/// Calls and memory of one stop.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    entries: Vec<Entry>,
    arena: Vec<u8>,
    fixups: Vec<Fixup>,
    wants_arena_back: bool,
    results: Vec<i64>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of calls.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that the batch takes in the remote data area.
    pub fn size(&self) -> usize {
        self.entries.len() * CALL_SIZE + self.arena.len()
    }

    /// Adds a call. Missing arguments are 0.
    pub fn call(&mut self, nr: i64, args: &[Arg]) -> CallId {
        assert!(args.len() <= 6, "a system call has at most six arguments");
        let mut entry = Entry { nr, args: [Arg::Value(0); 6] };
        entry.args[..args.len()].copy_from_slice(args);
        // The gadget reads a call's arguments when it reaches it: results go there by copies
        // that run just before.
        let copies: Vec<(usize, CallId)> = args
            .iter()
            .enumerate()
            .filter_map(|(i, arg)| if let Arg::Result(id) = arg { Some((i, *id)) } else { None })
            .collect();
        let at = self.entries.len() + copies.len();
        for (arg, from) in copies {
            self.entries.push(Entry {
                nr: COPY,
                args: [
                    Arg::Value((from.0 * CALL_SIZE + RET_OFFSET) as u64),
                    Arg::Value((at * CALL_SIZE + 8 + arg * 8) as u64),
                    Arg::Value(0),
                    Arg::Value(0),
                    Arg::Value(0),
                    Arg::Value(0),
                ],
            });
        }
        self.entries.push(entry);
        CallId(at)
    }

    /// A point at which a live thread stands still while its controller acts
    /// ([`crate::live::LiveSession::run_paused`]). Without a controller it runs on.
    pub fn pause(&mut self) -> Pause {
        self.entries.push(Entry { nr: PAUSE, args: [Arg::Value(0); 6] });
        Pause(self.entries.len() - 1)
    }

    /// Makes the calls out of which pauses are.
    pub(crate) fn set_pauses(&mut self, nr: i64, args: [Arg; 3]) {
        for entry in self.entries.iter_mut().filter(|entry| entry.nr == PAUSE) {
            entry.nr = nr;
            entry.args[..3].copy_from_slice(&args);
        }
    }

    /// Calls from the pause on to the end, itself included.
    pub(crate) fn left_at(&self, pause: Pause) -> u64 {
        (self.entries.len() - pause.0) as u64
    }

    /// Adds bytes that calls can point at; aligned to 16.
    pub fn bytes(&mut self, bytes: &[u8]) -> Arena {
        let offset = self.arena.len().next_multiple_of(16);
        self.arena.resize(offset, 0);
        self.arena.extend_from_slice(bytes);
        Arena { offset, len: bytes.len() }
    }

    /// Adds a C string.
    pub fn c_string(&mut self, text: &[u8]) -> Arena {
        let piece = self.bytes(text);
        self.arena.push(0);
        Arena { len: piece.len + 1, ..piece }
    }

    /// Reserves zeroed memory for calls to write into; read it afterwards with [`Batch::memory`].
    pub fn reserve(&mut self, len: usize) -> Arena {
        self.wants_arena_back = true;
        let offset = self.arena.len().next_multiple_of(16);
        self.arena.resize(offset + len, 0);
        Arena { offset, len }
    }

    /// Stores the address of `target` into the first eight bytes of `at` (iovecs, msghdrs, …).
    pub fn pointer(&mut self, at: Arena, target: Arena) {
        assert!(at.len >= 8, "no room for an address");
        self.fixups.push(Fixup::Pointer { at: at.offset, target });
    }

    /// Writes eight bytes into `at`.
    pub fn set_u64(&mut self, at: Arena, value: u64) {
        self.arena[at.offset..at.offset + 8].copy_from_slice(&value.to_ne_bytes());
    }

    /// Stores the eight-byte result of a call into `at` when the batch reaches this point.
    pub fn store_result(&mut self, call: CallId, at: Arena) {
        assert!(at.len >= 8, "no room for a result");
        self.entries.push(Entry {
            nr: COPY,
            args: [
                Arg::Value((call.0 * CALL_SIZE + RET_OFFSET) as u64),
                Arg::Address(at),
                Arg::Value(0),
                Arg::Value(0),
                Arg::Value(0),
                Arg::Value(0),
            ],
        });
    }

    /// The result of a call after the run, or its error.
    pub fn result(&self, call: CallId) -> io::Result<u64> {
        match self.results.get(call.0).copied() {
            Some(error @ -4095..=-1) => Err(io::Error::from_raw_os_error(-error as i32)),
            Some(value) => Ok(value as u64),
            None => Err(io::Error::other("the batch has not run")),
        }
    }

    /// The first failed call with its number, after the run.
    pub fn first_error(&self) -> Option<(CallId, i64, io::Error)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, e)| e.nr != COPY)
            .find_map(|(i, e)| self.result(CallId(i)).err().map(|error| (CallId(i), e.nr, error)))
    }

    /// What calls wrote into reserved memory, after the run.
    pub fn memory(&self, piece: Arena) -> &[u8] {
        &self.arena[piece.offset..piece.offset + piece.len]
    }

    /// The bytes for a data area at `base`: calls, then the arena.
    pub(crate) fn encode(&self, base: u64) -> Vec<u8> {
        let arena_at = base + self.arena_offset() as u64;
        let mut bytes = Vec::with_capacity(self.size() + 64);
        for entry in &self.entries {
            bytes.extend(entry.nr.to_le_bytes());
            for (i, arg) in entry.args.iter().enumerate() {
                let value = match *arg {
                    // A copy's plain numbers are offsets into the data area.
                    Arg::Value(v) if entry.nr == COPY && i < 2 => base + v,
                    Arg::Value(v) => v,
                    Arg::Address(piece) => arena_at + piece.offset as u64,
                    Arg::Result(_) => 0,
                };
                bytes.extend(value.to_le_bytes());
            }
            bytes.extend((-(libc::ENOSYS as i64)).to_le_bytes());
        }
        bytes.resize(self.arena_offset(), 0);
        bytes.extend(&self.arena);
        for Fixup::Pointer { at, target } in &self.fixups {
            let at = self.arena_offset() + at;
            bytes[at..at + 8].copy_from_slice(&(arena_at + target.offset as u64).to_le_bytes());
        }
        bytes
    }

    fn arena_offset(&self) -> usize {
        self.entries.len() * CALL_SIZE
    }

    /// How many bytes of the data area must be read back.
    pub(crate) fn read_back(&self) -> usize {
        self.arena_offset() + if self.wants_arena_back { self.arena.len() } else { 0 }
    }

    /// Takes results and memory from the bytes read back.
    pub(crate) fn decode(&mut self, bytes: &[u8]) {
        let calls = self.arena_offset();
        self.results = bytes[..calls]
            .chunks_exact(CALL_SIZE)
            .map(|c| i64::from_le_bytes(c[RET_OFFSET..].try_into().expect("eight bytes")))
            .collect();
        if self.wants_arena_back {
            let len = self.arena.len();
            self.arena.copy_from_slice(&bytes[calls..calls + len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn results_reach_later_calls_by_copies() {
        let mut batch = Batch::new();
        let text = batch.c_string(b"ab");
        let first = batch.call(2, &[text.into(), 5.into()]);
        let second = batch.call(3, &[first.into()]);
        assert_eq!((batch.len(), first, second), (3, CallId(0), CallId(2)));
        let bytes = batch.encode(0x1000);
        assert_eq!(word(&bytes, 8), 0x1000 + 3 * 64);
        assert_eq!(word(&bytes, 64) as i64, COPY);
        assert_eq!(word(&bytes, 72), 0x1000 + 56, "from the first call's result");
        assert_eq!(word(&bytes, 80), 0x1000 + 128 + 8, "to the second call's first argument");
        assert_eq!(&bytes[192..195], b"ab\0");
    }

    #[test]
    fn errors_and_memory_come_back() {
        let mut batch = Batch::new();
        let call = batch.call(1, &[]);
        let out = batch.reserve(3);
        let mut bytes = batch.encode(0);
        bytes[56..64].copy_from_slice(&(-2i64).to_le_bytes());
        bytes[64..67].copy_from_slice(b"xyz");
        batch.decode(&bytes[..batch.read_back()]);
        assert_eq!(batch.result(call).unwrap_err().raw_os_error(), Some(2));
        assert_eq!(batch.memory(out), b"xyz");
    }
}
