//! How an archive is compressed, and both directions of it.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::{ArchiveError, STEP};

/// Compression of the whole archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip at its fastest level.
    Gzip,
    /// zstd at its fastest ordinary level, on every processor.
    Zstd,
}

impl Compression {
    /// The compression that a file's name asks for: none for `.tar`, gzip for `.gz` and `.tgz`, else
    /// zstd, which is Podman's default too. `.age` after it says something else.
    pub fn from_file_name(path: &Path) -> Self {
        let bare = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "age"));
        let path = bare.map_or(path, Path::new);
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("tar") => Self::None,
            Some("gz" | "tgz") => Self::Gzip,
            _ => Self::Zstd,
        }
    }
}

/// zstd's level: on memory pages level 1 is twice as fast as 3 and the result 5 % larger.
const ZSTD_LEVEL: i32 = 1;

/// The largest zstd window that is accepted, as a power of two: 128 MiB, which is what the format's
/// own tools accept.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Compresses what is written to it.
pub(super) enum Encoder<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    pub fn new(sink: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(sink),
            Compression::Gzip => Self::Gzip(GzEncoder::new(sink, flate2::Compression::fast())),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(sink, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                let processors = std::thread::available_parallelism().map_or(1, usize::from);
                encoder.multithread(u32::try_from(processors.min(8)).unwrap_or(1))?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Ends the compressed stream and returns the sink.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(sink) => Ok(sink),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(sink) => sink.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(sink) => sink.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// The first bytes of a stream, then the rest of it.
pub(super) type Sniffed<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Decompresses what is read from it.
pub(super) enum Decoder<R: Read> {
    None(BufReader<Sniffed<R>>),
    Gzip(Box<MultiGzDecoder<BufReader<Sniffed<R>>>>),
    Zstd(zstd::Decoder<'static, BufReader<Sniffed<R>>>),
}

impl<R: Read> Decoder<R> {
    /// Recognises the compression by the first bytes, as Podman does.
    pub fn new(mut source: R) -> Result<Self, ArchiveError> {
        let read_error = |error| ArchiveError::Damaged { member: "its beginning".into(), error };
        let mut first = Vec::new();
        (&mut source).take(6).read_to_end(&mut first).map_err(read_error)?;
        let unsupported = |name, tool| ArchiveError::UnsupportedCompression { name, tool };
        let start = first.clone();
        let stream = BufReader::with_capacity(STEP, io::Cursor::new(first).chain(source));
        match start.as_slice() {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut decoder = zstd::Decoder::with_buffer(stream).map_err(read_error)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(read_error)?;
                Ok(Self::Zstd(decoder))
            }
            [0x1f, 0x8b, 0x08, ..] => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(stream)))),
            [b'B', b'Z', b'h', ..] => Err(unsupported("bzip2", "bunzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(unsupported("xz", "unxz")),
            start if crate::seal::is_encrypted(start) => Err(ArchiveError::Encrypted),
            _ => Ok(Self::None(stream)),
        }
    }

    pub fn compression(&self) -> Compression {
        match self {
            Self::None(_) => Compression::None,
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_the_compression() {
        for (name, compression) in [
            ("nginx.tar", Compression::None),
            ("nginx.tar.gz", Compression::Gzip),
            ("nginx.TGZ", Compression::Gzip),
            ("nginx.tar.zst", Compression::Zstd),
            ("nginx", Compression::Zstd),
            ("nginx.tar.age", Compression::None),
            ("nginx.tgz.age", Compression::Gzip),
            (".age", Compression::Zstd),
        ] {
            assert_eq!(Compression::from_file_name(Path::new(name)), compression, "{name}");
        }
    }

    #[test]
    fn both_directions_agree_and_others_are_named() {
        let text = b"compress me ".repeat(1000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
            encoder.write_all(&text).unwrap();
            let bytes = encoder.finish().unwrap();
            let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
            assert_eq!(decoder.compression(), compression);
            let mut back = Vec::new();
            decoder.read_to_end(&mut back).unwrap();
            assert_eq!(back, text);
        }
        for (bytes, name) in [(&b"BZh91AY"[..], "bzip2"), (&b"\xfd7zXZ\0\0"[..], "xz")] {
            let error = Decoder::new(bytes).err().unwrap();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
