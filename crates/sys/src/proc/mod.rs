//! Parsers of `/proc` text: pure functions on saved text, with the reading kept apart.
//!
//! Source: proc(5), Documentation/filesystems/proc.rst.

pub mod cgroup;
pub mod fdinfo;
pub mod limits;
pub mod locks;
pub mod meminfo;
pub mod mountinfo;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod timers;
pub mod wait;

use std::io;
use std::path::{Path, PathBuf};

use crate::Pid;

/// What is wrong with a text of the kernel's.
#[derive(Debug, thiserror::Error)]
#[error("/proc text not understood: {what}: {text:?}")]
pub struct ParseError {
    /// The expected thing.
    pub what: &'static str,
    /// The offending line.
    pub text: String,
}

impl ParseError {
    /// An error about `text` where `what` was expected.
    pub fn new(what: &'static str, text: &str) -> Self {
        ParseError { what, text: text.chars().take(200).collect() }
    }
}

impl From<ParseError> for io::Error {
    fn from(err: ParseError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, err)
    }
}

/// `/proc/PID/NAME`.
pub fn path(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Reads `/proc/PID/NAME`.
pub fn read(pid: Pid, name: &str) -> io::Result<String> {
    // The files have no size, so the standard library begins with 32 bytes; the kernel makes the
    // text anew for every call.
    const STEP: usize = 32 * 1024;
    read_text(pid, name, STEP, false)
}

/// Reads `/proc/PID/NAME`, a file that the kernel makes in one piece (`single_open`: `stat`, `status`,
/// `cgroup`, `comm`, `syscall`): what does not fill the buffer is all there is, without a second call.
pub fn read_single(pid: Pid, name: &str) -> io::Result<String> {
    read_text(pid, name, SMALL, true)
}

/// Room to begin with for a text that seldom is long.
const SMALL: usize = 4096;

fn read_text(pid: Pid, name: &str, step: usize, single: bool) -> io::Result<String> {
    use io::Read;
    let mut file = std::fs::File::open(path(pid, name))?;
    let mut bytes = vec![0; step];
    let mut len = 0;
    loop {
        if bytes.len() - len < step / 2 {
            bytes.resize(bytes.len() * 2, 0);
        }
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => {
                len += n;
                if single && len < bytes.len() {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(len);
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
    })
}

/// Reads the link `/proc/PID/NAME`.
pub fn read_link(pid: Pid, name: &str) -> io::Result<PathBuf> {
    std::fs::read_link(path(pid, name))
}

fn numeric_entries(dir: &Path) -> io::Result<Vec<i32>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if let Some(id) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The threads of a process, leader included, in no particular order.
pub fn threads(pid: Pid) -> io::Result<Vec<Pid>> {
    Ok(numeric_entries(&path(pid, "task"))?.into_iter().map(Pid).collect())
}

/// The open descriptors of a process, ascending.
pub fn descriptors(pid: Pid) -> io::Result<Vec<i32>> {
    let mut fds = numeric_entries(&path(pid, "fd"))?;
    fds.sort_unstable();
    Ok(fds)
}

/// The children of one thread of a process, zombies included. Needs the process to stand still.
pub fn children_of_thread(pid: Pid, tid: Pid) -> io::Result<Vec<Pid>> {
    let text = read_text(pid, &format!("task/{tid}/children"), SMALL, false)?;
    Ok(text.split_ascii_whitespace().filter_map(|w| w.parse().ok()).map(Pid).collect())
}

/// The children of all threads of a process, zombies included. Needs the process to stand still.
pub fn children(pid: Pid) -> io::Result<Vec<Pid>> {
    let mut all = Vec::new();
    for tid in threads(pid)? {
        match children_of_thread(pid, tid) {
            Ok(children) => all.extend(children),
            Err(e)
                if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
            }
            Err(e) => return Err(e),
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The processes of the tree under `root`, parents before children. It may run: then it is a picture of
/// some moment, of which some are gone already and others are missing.
pub fn tree(root: Pid) -> Vec<Pid> {
    let mut all = vec![root];
    let mut at = 0;
    while at < all.len() {
        all.extend(children(all[at]).unwrap_or_default());
        at += 1;
    }
    all
}

/// The inode number that identifies the namespace `name` (`pid`, `net`, `mnt`, …) of a process.
/// None where the kernel has no such namespace, or for a zombie.
pub fn namespace(pid: Pid, name: &str) -> io::Result<Option<u64>> {
    let link = match read_link(pid, &format!("ns/{name}")) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let text = link.to_string_lossy();
    let number = text.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']')?.parse().ok());
    match number {
        Some(ino) => Ok(Some(ino)),
        None => Err(ParseError::new("a namespace link", &text).into()),
    }
}

/// The auxiliary vector: bytes as the kernel passed them to the program.
pub fn auxv(pid: Pid) -> io::Result<Vec<u8>> {
    std::fs::read(path(pid, "auxv"))
}
