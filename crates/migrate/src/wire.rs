//! How two hosts talk: frames on a pair of byte streams.
//!
//! A frame is `kind: u8`, `length: u32`, CRC-32 of the payload `u32`, CRC-32 of these nine bytes `u32`,
//! all little-endian, then `length` bytes of payload. [`Kind::Message`] is one message as JSON; a stream
//! of bytes is any number of [`Kind::Data`] and one [`Kind::End`]. Nothing that the other side says
//! makes the reader allocate more than [`MAX_PAYLOAD`] bytes. The sums find damage between the two
//! programs, which ssh does not when the transport is another one: a length that is wrong would be
//! waited for.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::Crc;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Payload of a data frame, in bytes, where there is enough to fill it.
const CHUNK: usize = 256 << 10;

const HEADER: usize = 13;

const DAMAGED: &str = "what arrived was damaged on its way";

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Message = 1,
    Data = 2,
    End = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Message, Kind::Data, Kind::End].into_iter().find(|k| *k as u8 == byte)
    }
}

fn sum_of(bytes: &[u8]) -> u32 {
    let mut sum = Crc::new();
    sum.update(bytes);
    sum.sum()
}

/// What precedes a payload.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: Kind,
    length: usize,
    /// Of the payload.
    sum: u32,
}

impl Header {
    fn of(kind: Kind, payload: &[u8]) -> io::Result<[u8; HEADER]> {
        let length = u32::try_from(payload.len()).map_err(|_| invalid("a frame is too long"))?;
        let mut bytes = [0; HEADER];
        bytes[0] = kind as u8;
        bytes[1..5].copy_from_slice(&length.to_le_bytes());
        bytes[5..9].copy_from_slice(&sum_of(payload).to_le_bytes());
        let own = sum_of(&bytes[..9]);
        bytes[9..].copy_from_slice(&own.to_le_bytes());
        Ok(bytes)
    }

    fn parse(bytes: [u8; HEADER]) -> io::Result<Header> {
        let number = |at: usize| {
            let [a, b, c, d] = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            u32::from_le_bytes([a, b, c, d])
        };
        let kind = Kind::from_byte(bytes[0])
            .ok_or_else(|| invalid("the other side does not speak arctern's protocol"))?;
        let length = usize::try_from(number(1)).unwrap_or(usize::MAX);
        match number(9) == sum_of(&bytes[..9]) && length <= MAX_PAYLOAD {
            true => Ok(Header { kind, length, sum: number(5) }),
            false => Err(invalid(DAMAGED)),
        }
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The sending half. Its clones send on the same stream, whole frames each.
#[derive(Debug)]
pub struct Sender<W: Write>(Arc<Mutex<Outgoing<W>>>);

#[derive(Debug)]
struct Outgoing<W: Write> {
    to: W,
    sent: u64,
}

impl<W: Write> Clone for Sender<W> {
    fn clone(&self) -> Self {
        Sender(Arc::clone(&self.0))
    }
}

impl<W: Write> Sender<W> {
    /// Sends on this stream.
    pub fn new(to: W) -> Sender<W> {
        Sender(Arc::new(Mutex::new(Outgoing { to, sent: 0 })))
    }

    /// Bytes sent so far, frames and all.
    pub fn sent(&self) -> u64 {
        self.lock().sent
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The stream is closed, or the message is longer than a frame may be.
    pub fn message<M: Serialize>(&self, message: &M) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        if json.len() > MAX_PAYLOAD {
            return Err(invalid("a message is too long to be sent"));
        }
        self.frame(Kind::Message, &json)?;
        self.lock().to.flush()
    }

    /// Begins a stream of bytes, which ends with [`DataWriter::finish`]. No message may be sent in
    /// between.
    pub fn data(&self) -> DataWriter<W> {
        DataWriter { sender: self.clone(), buffer: Vec::with_capacity(CHUNK) }
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frame(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let header = Header::of(kind, payload)?;
        let mut outgoing = self.lock();
        outgoing.to.write_all(&header)?;
        outgoing.to.write_all(payload)?;
        outgoing.sent += (HEADER + payload.len()) as u64;
        Ok(())
    }
}

/// A stream of bytes that is being sent.
#[derive(Debug)]
pub struct DataWriter<W: Write> {
    sender: Sender<W>,
    buffer: Vec<u8>,
}

impl<W: Write> DataWriter<W> {
    /// Sends what is left, and that this is all.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn finish(mut self) -> io::Result<()> {
        self.send()?;
        self.sender.frame(Kind::End, &[])?;
        self.sender.lock().to.flush()
    }

    fn send(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.sender.frame(Kind::Data, &self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

impl<W: Write> Write for DataWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && bytes.len() >= CHUNK {
            // What fills a frame by itself is not copied first.
            let length = bytes.len().min(MAX_PAYLOAD);
            self.sender.frame(Kind::Data, &bytes[..length])?;
            return Ok(length);
        }
        let length = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.sender.lock().to.flush()
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver<R: Read> {
    from: R,
    received: u64,
}

impl<R: Read> Receiver<R> {
    /// Receives from this stream.
    pub fn new(from: R) -> Receiver<R> {
        Receiver { from, received: 0 }
    }

    /// Where it receives from. It buffers nothing: what is there can be waited for.
    pub fn get_ref(&self) -> &R {
        &self.from
    }

    /// Bytes received so far, frames and all.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next message; None when the other side is gone.
    ///
    /// # Errors
    /// What comes is no message of ours.
    pub fn message<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let Some(header) = self.header()? else { return Ok(None) };
        if header.kind != Kind::Message {
            return Err(invalid("a message was expected, and there is something else"));
        }
        let mut json = vec![0; header.length];
        self.from.read_exact(&mut json)?;
        self.received += header.length as u64;
        if sum_of(&json) != header.sum {
            return Err(invalid(DAMAGED));
        }
        Ok(Some(serde_json::from_slice(&json)?))
    }

    /// The stream of bytes that comes next.
    pub fn data(&mut self) -> DataReader<'_, R> {
        DataReader { receiver: self, left: 0, sum: Crc::new(), expected: 0, ended: false }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = [0; HEADER];
        let mut filled = 0;
        while filled < HEADER {
            match self.from.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.received += HEADER as u64;
        Header::parse(header).map(Some)
    }
}

/// A stream of bytes that is being received. It must be read to its end: only then it is whole.
#[derive(Debug)]
pub struct DataReader<'a, R: Read> {
    receiver: &'a mut Receiver<R>,
    /// Bytes of the present frame that were not read yet.
    left: usize,
    /// Of the bytes of it that were.
    sum: Crc,
    expected: u32,
    ended: bool,
}

impl<R: Read> DataReader<'_, R> {
    /// Reads and forgets what is left.
    ///
    /// # Errors
    /// The stream ends before its end was said.
    pub fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }
}

impl<R: Read> Read for DataReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.header()? {
                Some(Header { kind: Kind::Data, length, sum }) => {
                    self.left = length;
                    self.expected = sum;
                    self.sum.reset();
                }
                Some(Header { kind: Kind::End, length: 0, .. }) => self.ended = true,
                Some(_) => return Err(invalid("a stream of bytes is not ended as it should be")),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = self.left.min(buffer.len());
        let read = self.receiver.from.read(&mut buffer[..length])?;
        if read == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        self.receiver.received += read as u64;
        self.sum.update(&buffer[..read]);
        match self.left == 0 && self.sum.sum() != self.expected {
            true => Err(invalid(DAMAGED)),
            false => Ok(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_and_streams_take_turns() {
        let mut bytes = Vec::new();
        let sender = Sender::new(&mut bytes);
        sender.message(&"hello").unwrap();
        let mut data = sender.data();
        data.write_all(&[7; 3 * CHUNK + 5]).unwrap();
        data.write_all(b"end").unwrap();
        data.finish().unwrap();
        sender.data().finish().unwrap();
        sender.message(&42).unwrap();
        let sent = sender.sent();

        let mut receiver = Receiver::new(bytes.as_slice());
        assert_eq!(receiver.message::<String>().unwrap().as_deref(), Some("hello"));
        let mut content = Vec::new();
        receiver.data().read_to_end(&mut content).unwrap();
        assert_eq!(content.len(), 3 * CHUNK + 8);
        assert!(content.ends_with(b"\x07end"));
        receiver.data().drain().unwrap();
        assert_eq!(receiver.message::<i32>().unwrap(), Some(42));
        assert_eq!(receiver.message::<i32>().unwrap(), None);
        assert_eq!(receiver.received(), sent);
    }

    #[test]
    fn a_cut_stream_is_no_end() {
        let mut bytes = Vec::new();
        let sender = Sender::new(&mut bytes);
        let mut data = sender.data();
        data.write_all(b"half").unwrap();
        data.flush().unwrap();
        let mut receiver = Receiver::new(bytes.as_slice());
        let error = receiver.data().drain().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn damage_is_found(at in 0usize..200, bit in 0u32..8) {
            let mut bytes = Vec::new();
            let sender = Sender::new(&mut bytes);
            sender.message(&"hello").unwrap();
            let mut data = sender.data();
            data.write_all(&[7; 100]).unwrap();
            data.finish().unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let mut receiver = Receiver::new(bytes.as_slice());
            let read = receiver.message::<String>().and_then(|_| receiver.data().drain());
            prop_assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut receiver = Receiver::new(bytes.as_slice());
            while let Ok(Some(_)) = receiver.message::<serde_json::Value>() {}
            let _ = Receiver::new(bytes.as_slice()).data().drain();
        }
    }
}
