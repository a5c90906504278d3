//! What is said on the shim's sockets.
//!
//! A stream of frames, `kind: u8`, `length: u32` little-endian, then that many bytes. The command
//! that started the shim has its socket from the beginning and hears one [`Report`] first; others
//! connect to the control socket and say [`Kind::Attach`] or [`Kind::Wait`]. The shim answers with
//! output (only to those that attached) and, when everything of the container is cleaned up, with
//! one [`Kind::Exit`].

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Longest payload: also the most that one frame makes the reader allocate.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// From the shim: [`Report`] as JSON.
    Report = 1,
    /// From the shim: bytes of standard output, or of the terminal.
    Stdout = 2,
    /// From the shim: bytes of standard error.
    Stderr = 3,
    /// From the shim: exit code, `i32` little-endian. Nothing follows.
    Exit = 4,
    /// To the shim: send output from now on.
    Attach = 16,
    /// To the shim: tell only the end.
    Wait = 17,
    /// To the shim: bytes for standard input.
    Stdin = 18,
    /// To the shim: no more input.
    StdinEnd = 19,
    /// To the shim: let go what was built.
    Go = 21,
    /// To a shim that was started ahead of its container: a round of memory is there, whose number
    /// follows, `u32` little-endian. It answers [`Report::Done`].
    Round = 22,
    /// To such a shim: everything is there.
    Build = 23,
    /// To such a shim: the container stands still and is locked where it was, so that it may be noticed
    /// here.
    Appear = 24,
    /// To the shim: rows and columns of the terminal, two `u16` little-endian.
    Resize = 20,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::{
            Appear, Attach, Build, Exit, Go, Report, Resize, Round, Stderr, Stdin, StdinEnd,
            Stdout, Wait,
        };
        [
            Report, Stdout, Stderr, Exit, Attach, Wait, Stdin, StdinEnd, Resize, Go, Round, Build,
            Appear,
        ]
        .into_iter()
        .find(|k| *k as u8 == byte)
    }
}

/// How the start went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// What comes ahead of the container was done: a place for it was made, or a round of memory was
    /// taken in.
    Done,
    /// The container is built, and waits for [`Kind::Go`]; a second report follows.
    Built {
        /// Where the time went.
        laps: Vec<crate::transfer::Lap>,
    },
    /// The container runs.
    Running {
        /// Pid of its init as the host sees it.
        pid: i32,
        /// Statistics of the engine after a restore.
        restore: Option<arctern_engine::options::RestoreReport>,
        /// What the user should know.
        warnings: Vec<String>,
        /// Where the time went since [`Kind::Go`].
        laps: Vec<crate::transfer::Lap>,
    },
    /// It does not, and nothing of the attempt is left.
    Failed {
        /// The message with its causes.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// Exit code of the command.
        code: i32,
    },
}

/// A frame as bytes.
#[must_use]
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Writes one frame to a blocking stream.
pub fn send(mut to: impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    to.write_all(&encode(kind, payload))
}

/// Reads one frame from a blocking stream; None at its end.
pub fn receive(mut from: impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut header = [0u8; 5];
    if let Err(e) = from.read_exact(&mut header) {
        return if e.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(e) };
    }
    let (kind, length) = parse_header(header)?;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}

fn parse_header(header: [u8; 5]) -> io::Result<(Kind, usize)> {
    let [kind, length @ ..] = header;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    match Kind::from_byte(kind) {
        Some(kind) if length <= MAX_PAYLOAD => Ok((kind, length)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a frame of a shim")),
    }
}

/// Frames out of bytes that arrive in any pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes in bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame.
    pub fn next_frame(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let Some(header) = self.buffer.first_chunk::<5>() else {
            return Ok(None);
        };
        let (kind, length) = parse_header(*header)?;
        if self.buffer.len() < 5 + length {
            return Ok(None);
        }
        let payload = self.buffer[5..5 + length].to_vec();
        self.buffer.drain(..5 + length);
        Ok(Some((kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut() {
        let mut bytes = encode(Kind::Stdout, b"hello");
        bytes.extend(encode(Kind::Exit, &7i32.to_le_bytes()));
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for byte in bytes {
            decoder.push(&[byte]);
            frames.extend(decoder.next_frame().expect("valid"));
        }
        assert_eq!(frames, [(Kind::Stdout, b"hello".to_vec()), (Kind::Exit, vec![7, 0, 0, 0])]);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let mut decoder = Decoder::default();
        decoder.push(b"GET / HTTP/1.1");
        assert!(decoder.next_frame().is_err());
        let mut decoder = Decoder::default();
        decoder.push(&[2, 255, 255, 255, 255]);
        assert!(decoder.next_frame().is_err());
        assert!(receive(&b"\x02"[..]).expect("end").is_none());
    }
}
