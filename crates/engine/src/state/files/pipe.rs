//! Pipes and named pipes.
//!
//! A pipe has several descriptions (two ends, more when it was opened again through /proc) and one
//! buffer, which is copied with tee(2) and stays in the pipe. In packet mode (O_DIRECT) every packet
//! becomes a record of its own. A pipe whose other end is outside of the tree comes back with that
//! end closed, unless the caller hands in a descriptor for `pipe:[INODE]`.
//!
//! Not kept: which process was charged for the buffers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{FdTypes, FifoEntry, FileEntry, PipeDataEntry, PipeEntry};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::table::Opener;
use crate::error::{CaptureError, Refusal, RestoreError, Subject};

/// The buffers to copy, by pipe id.
#[derive(Debug, Default)]
pub(super) struct Contents(BTreeMap<u32, Source>);

#[derive(Debug)]
struct Source {
    /// A descriptor of a reading end in the frozen task.
    through: Option<PathBuf>,
    packets: bool,
}

impl Contents {
    fn add(&mut self, pipe_id: u32, d: &Descriptor<'_>) {
        let source = self.0.entry(pipe_id).or_insert(Source { through: None, packets: false });
        if d.flags() & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32 {
            source.through.get_or_insert_with(|| d.path());
        } else {
            source.packets |= d.flags() & libc::O_DIRECT as u32 != 0;
        }
    }

    /// Writes the buffers.
    pub fn write(&self, images: &ImageDir, kind: ImageKind) -> Result<(), CaptureError> {
        if self.0.is_empty() {
            images.remove(kind, 0)?;
            return Ok(());
        }
        let mut writer = images.writer(kind, 0)?;
        for (pipe_id, source) in &self.0 {
            let Some(through) = &source.through else { continue };
            let failed = |source| CaptureError::Kernel {
                subject: Subject {
                    pid: 0,
                    comm: String::new(),
                    part: through.display().to_string(),
                },
                what: "copy what is in the pipe".to_owned(),
                source,
            };
            let (size, chunks) = copy(through, source.packets).map_err(failed)?;
            for chunk in chunks {
                writer.record(&PipeDataEntry {
                    pipe_id: *pipe_id,
                    bytes: chunk.len() as u32,
                    size: Some(size),
                })?;
                writer.payload(&chunk)?;
            }
        }
        writer.finish()?;
        Ok(())
    }
}

/// Size of the pipe's buffer and what is in it, one piece per packet.
fn copy(through: &std::path::Path, packets: bool) -> io::Result<(u32, Vec<Vec<u8>>)> {
    let mut options = File::options();
    options.read(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let pipe = options.open(through)?;
    let size = fcntl(&pipe, FcntlArg::F_GETPIPE_SZ)?;
    let (mut out, into) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map(|(r, w)| (File::from(r), w))?;
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(size))?;
    match arctern_sys::fd::tee(&pipe, &into, size as usize) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Err(e) => return Err(e),
    }
    drop(into);
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    let mut buffer = vec![0; (size as usize).max(1 << 16)];
    loop {
        match out.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if packets => chunks.push(buffer[..n].to_vec()),
            Ok(n) => match chunks.last_mut() {
                Some(chunk) => chunk.extend_from_slice(&buffer[..n]),
                None => chunks.push(buffer[..n].to_vec()),
            },
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if chunks.is_empty() {
        // The size of the buffer is worth a record.
        chunks.push(Vec::new());
    }
    Ok((size as u32, chunks))
}

impl FileCollector {
    /// A descriptor of a pipe.
    pub(super) fn pipe(&mut self, d: &Descriptor<'_>) -> FileEntry {
        let pipe_id = d.stat.st_ino as u32;
        self.pipes.add(pipe_id, d);
        let id = self.new_id();
        FileEntry {
            pipe: Some(Box::new(PipeEntry { id, pipe_id, flags: d.flags(), fown: d.fown.clone() })),
            ..entry(FdTypes::Pipe, id)
        }
    }

    /// A descriptor of a named pipe.
    pub(super) fn fifo(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        if d.flags() & libc::O_PATH as u32 != 0 {
            return self.path(d, refusals);
        }
        let Some(regf_id) = self.path_of(d, refusals)? else { return Ok(None) };
        let pipe_id = d.stat.st_ino as u32;
        self.fifos.add(pipe_id, d);
        let id = self.new_id();
        Ok(Some(FileEntry {
            fifo: Some(Box::new(FifoEntry { id, pipe_id, regf_id: Some(regf_id) })),
            ..entry(FdTypes::Fifo, id)
        }))
    }
}

/// What goes back into a pipe's buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Refill {
    pub size: Option<u32>,
    pub chunks: Vec<Vec<u8>>,
}

/// Reads the buffers of all pipes.
pub(super) fn read_contents(
    images: &ImageDir,
    kind: ImageKind,
) -> Result<BTreeMap<u32, Refill>, RestoreError> {
    let mut contents: BTreeMap<u32, Refill> = BTreeMap::new();
    let Some(mut reader) = images.reader(kind, 0)? else { return Ok(contents) };
    while let Some(record) = reader.next_record::<PipeDataEntry>()? {
        let bytes = reader.payload(record.bytes.into())?;
        let refill = contents.entry(record.pipe_id).or_default();
        refill.size = record.size;
        if !bytes.is_empty() {
            refill.chunks.push(bytes);
        }
    }
    Ok(contents)
}

/// Makes a pipe with all its descriptions in `ends` (id, entry): ids with their numbers.
pub(super) fn open(
    o: &mut Opener<'_>,
    ends: &[(u32, &PipeEntry)],
    refill: Option<&Refill>,
    inherited: Option<&OwnedFd>,
) -> Result<Vec<(u32, i32)>, RestoreError> {
    let access = |flags: u32| flags as i32 & libc::O_ACCMODE;
    if let Some(fd) = inherited {
        return open_inherited(o, ends, refill, fd);
    }
    let packets = ends.iter().any(|(_, end)| {
        access(end.flags) == libc::O_WRONLY && end.flags & libc::O_DIRECT as u32 != 0
    });
    let pair = o.create_pair(libc::SYS_pipe2, &[], 0, "make the pipe");
    let mut unused = [true, true];
    let mut made = Vec::new();
    for (id, end) in ends {
        let side = match access(end.flags) {
            libc::O_RDONLY => 0,
            libc::O_WRONLY => 1,
            _ => 2,
        };
        let fd = if side < 2 && unused[side] {
            unused[side] = false;
            o.set_status(pair[side], end.flags);
            pair[side]
        } else {
            let path = o.c_string(format!("/proc/self/fd/{}", pair[0]).as_bytes());
            let settable = libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_APPEND;
            let flags = end.flags & settable as u32;
            let args = [libc::AT_FDCWD.into(), path.into(), flags.into()];
            o.create(libc::SYS_openat, &args, "open the pipe once more")
        };
        made.push((*id, fd));
    }
    if let Some(refill) = refill {
        fill(o, pair[1], refill, packets)?;
    }
    for side in 0..2 {
        if unused[side] {
            o.close(pair[side]);
        }
    }
    Ok(made)
}

/// Descriptions of a pipe whose other end lives outside, from a descriptor that the caller hands in.
fn open_inherited(
    o: &mut Opener<'_>,
    ends: &[(u32, &PipeEntry)],
    refill: Option<&Refill>,
    fd: &OwnedFd,
) -> Result<Vec<(u32, i32)>, RestoreError> {
    let again = |flags: i32| {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
        nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty())
    };
    let is_pipe =
        nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO);
    let mut made = Vec::new();
    for (id, end) in ends {
        let settable = libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_APPEND;
        // Each has status flags of its own; what is no pipe is taken as it is.
        let number = match again(end.flags as i32 & settable) {
            Ok(own) if is_pipe => o.inject(own.as_fd())?,
            _ => o.inject(fd.as_fd())?,
        };
        made.push((*id, number));
    }
    if let Some(refill) = refill.filter(|refill| is_pipe && !refill.chunks.is_empty()) {
        again(libc::O_RDWR | libc::O_NONBLOCK)
            .map_err(std::io::Error::from)
            .and_then(|both| refill_through(&both, refill, false))
            .map_err(o.failed_here("put the data back into the pipe"))?;
    }
    Ok(made)
}

/// Puts the bytes back through a writing end of the stub's.
fn fill(o: &mut Opener<'_>, fd: i32, refill: &Refill, packets: bool) -> Result<(), RestoreError> {
    const DEFAULT: u32 = 65536;
    if refill.chunks.is_empty() && refill.size.is_none_or(|size| size == DEFAULT) {
        return Ok(());
    }
    let pipe = o.fetch(fd)?;
    refill_through(&pipe, refill, packets).map_err(o.failed_here("put the data back into the pipe"))
}

fn refill_through(pipe: &OwnedFd, refill: &Refill, packets: bool) -> io::Result<()> {
    if let Some(size) = refill.size
        && fcntl(pipe, FcntlArg::F_GETPIPE_SZ)? != size as i32
    {
        fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size as i32))?;
    }
    let before = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    let mode = if packets { OFlag::O_DIRECT } else { OFlag::empty() };
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | mode))?;
    for chunk in &refill.chunks {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let n = nix::unistd::write(pipe, rest)?;
            rest = &rest[n..];
        }
    }
    let status = OFlag::O_NONBLOCK | OFlag::O_DIRECT | OFlag::O_APPEND | OFlag::O_NOATIME;
    fcntl(pipe, FcntlArg::F_SETFL(before & status))?;
    Ok(())
}

/// Opens a named pipe with all its descriptions: (id, flags) with their numbers. Opening one end
/// would wait for the other, so both are held open meanwhile.
pub(super) fn open_fifo(
    o: &mut Opener<'_>,
    ends: &[(u32, u32)],
    path: &[u8],
    refill: Option<&Refill>,
) -> Result<Vec<(u32, i32)>, RestoreError> {
    let name = o.c_string(path);
    let flags = libc::O_RDWR | libc::O_NONBLOCK;
    let args = [libc::AT_FDCWD.into(), name.into(), flags.into()];
    let both = o.create(libc::SYS_openat, &args, "open the named pipe");
    let mut made = Vec::new();
    for (id, flags) in ends {
        let name = o.c_string(path);
        let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_ASYNC) as u32;
        let args = [libc::AT_FDCWD.into(), name.into(), flags.into()];
        made.push((*id, o.create(libc::SYS_openat, &args, "open the named pipe")));
    }
    if let Some(refill) = refill {
        fill(o, both, refill, false)?;
    }
    o.close(both);
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn link(fd: &impl AsRawFd) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    #[test]
    fn data_is_copied_and_stays() {
        let (r, mut w) = io::pipe().unwrap();
        w.write_all(b"some bytes").unwrap();
        for _ in 0..2 {
            let (size, chunks) = copy(&link(&r), false).unwrap();
            assert_eq!((size, chunks), (65536, vec![b"some bytes".to_vec()]));
        }
        let (again, into) = nix::unistd::pipe().unwrap();
        refill_through(
            &into,
            &Refill { size: Some(1 << 17), chunks: vec![b"xyz".to_vec()] },
            false,
        )
        .unwrap();
        let (size, chunks) = copy(&link(&again), false).unwrap();
        assert_eq!((size, chunks), (1 << 17, vec![b"xyz".to_vec()]));
    }

    #[test]
    fn packets_keep_their_limits() {
        let (r, w) = nix::unistd::pipe2(OFlag::O_DIRECT).unwrap();
        let packets = vec![b"one".to_vec(), b"second".to_vec()];
        refill_through(&w, &Refill { size: None, chunks: packets.clone() }, true).unwrap();
        assert_eq!(copy(&link(&r), true).unwrap().1, packets);
        let flags = OFlag::from_bits_retain(fcntl(&w, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_DIRECT) && !flags.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn an_empty_pipe_keeps_its_size() {
        let (r, _w) = io::pipe().unwrap();
        assert_eq!(copy(&link(&r), false).unwrap(), (65536, vec![vec![]]));
    }
}
