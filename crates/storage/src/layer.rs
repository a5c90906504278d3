//! Layers: unpacked once into a directory each, and kept as the compressed archive they came in, so
//! that an image can be handed on exactly as it was.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

use oci_spec::image::MediaType;
use sha2::{Digest, Sha256};

use crate::store::{AtPath, Scratch, Store, StoreError, make_dir, open_dir};
use crate::tarstream::TarStream;
use crate::unpack::{Unpacker, Whiteouts};

/// A layer that was unpacked and is not yet in its place.
#[derive(Debug)]
pub(crate) struct Layer {
    /// SHA-256 of the uncompressed archive, hexadecimal: its name.
    pub hex: String,
    /// Bytes of file contents.
    pub size: u64,
    /// The archive it came in.
    pub blob: Blob,
    /// Holds what has not got its place yet.
    pub _scratch: Option<Scratch>,
    /// Where it was unpacked; `None` when the store had it already, or only keeps the archive.
    pub unpacked: Option<PathBuf>,
}

impl Layer {
    /// One that the store has already.
    pub fn in_place(hex: &str, size: u64, blob: Blob) -> Self {
        Layer { hex: hex.to_owned(), size, blob, _scratch: None, unpacked: None }
    }
}

/// A content-addressed file that is not yet in its place.
#[derive(Debug)]
pub(crate) struct Blob {
    /// Its SHA-256, hexadecimal.
    pub hex: String,
    /// Its length.
    pub len: u64,
    /// What it is.
    pub media: MediaType,
    /// Where it is now.
    pub path: PathBuf,
}

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn layer_media(self) -> MediaType {
        match self {
            Compression::Plain => MediaType::ImageLayer,
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
        }
    }
}

/// Recognises the compression of a stream by its first bytes, and gives the stream back whole.
pub(crate) fn sniff<R: Read>(mut stream: R) -> Result<(Compression, impl Read), StoreError> {
    let mut head = Vec::with_capacity(6);
    (&mut stream).take(6).read_to_end(&mut head).map_err(StoreError::ReadArchive)?;
    let compression = match head[..] {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [b'B', b'Z', b'h', ..] => return Err(StoreError::UnknownCompression("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(StoreError::UnknownCompression("xz")),
        _ => Compression::Plain,
    };
    Ok((compression, io::Cursor::new(head).chain(stream)))
}

/// The stream inside a compressed one.
pub(crate) enum Decompressed<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Decompressed::Plain(stream) => stream.read(buf),
            Decompressed::Gzip(stream) => stream.read(buf),
            Decompressed::Zstd(stream) => stream.read(buf),
        }
    }
}

/// Takes the compression off a stream.
pub(crate) fn decompress<R: Read>(
    compression: Compression,
    stream: R,
) -> Result<Decompressed<R>, StoreError> {
    let stream = BufReader::with_capacity(256 * 1024, stream);
    Ok(match compression {
        Compression::Plain => Decompressed::Plain(stream),
        Compression::Gzip => {
            Decompressed::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(stream)))
        }
        Compression::Zstd => {
            Decompressed::Zstd(zstd::Decoder::with_buffer(stream).map_err(StoreError::ReadArchive)?)
        }
    })
}

impl Store {
    /// Unpacks an archive into a new layer. A plain archive is compressed for keeping.
    pub(crate) fn add_layer(
        &self,
        archive: impl Read,
        whiteouts: Whiteouts,
    ) -> Result<Layer, StoreError> {
        let scratch = self.scratch()?;
        let path = scratch.path().join("blob");
        let file = File::create(&path).at("make", &path)?;
        let mut sink = Digesting::new(BufWriter::with_capacity(256 * 1024, file));
        let (compression, stream) = sniff(archive)?;
        let (unpacked, media) = match compression {
            Compression::Plain => {
                let encoder = zstd::Encoder::new(&mut sink, 1).and_then(|mut encoder| {
                    // In a thread of its own, beside the unpacking.
                    encoder.multithread(1)?;
                    Ok(encoder)
                });
                let mut tee = Tee { stream, copy: encoder.map_err(StoreError::ReadArchive)? };
                let unpacked = self.unpack_layer(&scratch, &mut tee, whiteouts)?;
                tee.copy.finish().at("write", &path)?;
                (unpacked, MediaType::ImageLayerZstd)
            }
            compressed => {
                let mut tee = Tee { stream, copy: &mut sink };
                let unpacked =
                    self.unpack_layer(&scratch, decompress(compressed, &mut tee)?, whiteouts)?;
                // What follows the compressed stream belongs to the archive too.
                io::copy(&mut tee, &mut io::sink()).map_err(StoreError::ReadArchive)?;
                (unpacked, compressed.layer_media())
            }
        };
        let (mut file, hex, len) = sink.finish();
        file.flush().at("write", &path)?;
        let (diff_hex, size, dir) = unpacked;
        let mut entries = std::fs::read_dir(dir.join("diff")).at("list", &dir)?;
        if entries.next().is_none() {
            return Err(StoreError::NotAnImage("it is empty"));
        }
        let blob = Blob { hex, len, media, path };
        let fd = open_dir(&dir)?;
        rustix::fs::syncfs(&fd).at("sync", &dir)?;
        Ok(Layer { hex: diff_hex, size, blob, _scratch: Some(scratch), unpacked: Some(dir) })
    }

    /// Unpacks a plain archive: digest, bytes of contents, and where it is.
    pub(crate) fn unpack_layer(
        &self,
        scratch: &Scratch,
        archive: impl Read,
        whiteouts: Whiteouts,
    ) -> Result<(String, u64, PathBuf), StoreError> {
        let dir = scratch.path().join("layer");
        let diff = dir.join("diff");
        make_dir(&diff, 0o755)?;
        let mut archive = Digesting::new(archive);
        let mut unpacker = Unpacker::new(&diff, whiteouts).at("open", &diff)?;
        unpacker.unpack(&mut TarStream::new(&mut archive))?;
        let unpacked = unpacker.finish()?;
        if unpacked.dropped_xattrs > 0 {
            tracing::warn!(
                count = unpacked.dropped_xattrs,
                "extended attributes dropped: the file system of the store does not support them"
            );
        }
        // The digest is over the whole stream, padding after the end mark included.
        io::copy(&mut archive, &mut io::sink()).map_err(StoreError::ReadArchive)?;
        let (_, hex, _) = archive.finish();
        Ok((hex, unpacked.bytes, dir))
    }
}

/// Digests what passes through, in either direction.
pub(crate) struct Digesting<T> {
    inner: T,
    hash: Sha256,
    len: u64,
}

impl<T> Digesting<T> {
    pub fn new(inner: T) -> Self {
        Digesting { inner, hash: Sha256::new(), len: 0 }
    }

    /// What was wrapped, the digest and the number of bytes.
    pub fn finish(self) -> (T, String, u64) {
        (self.inner, hex(&self.hash.finalize()), self.len)
    }

    fn note(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
    }
}

impl<T: Read> Read for Digesting<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.note(&buf[..n]);
        Ok(n)
    }
}

impl<T: Write> Write for Digesting<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.note(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A reader that writes a copy of what passes through.
pub(crate) struct Tee<R, W> {
    pub stream: R,
    pub copy: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buf)?;
        self.copy.write_all(&buf[..n])?;
        Ok(n)
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
