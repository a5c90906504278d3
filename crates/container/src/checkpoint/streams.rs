//! Which pipes lead from a container to its shim.
//!
//! They do not end inside the process tree, so a restored tree gets new ones in their place, named
//! by the inode numbers of the old ones. runc writes down where descriptors 0, 1 and 2 of init led
//! (`descriptors.json`); init may have redirected them, so we also write down what the shim gave
//! it (`arctern-streams.json`).

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::error::{Error, Result};

/// runc's file.
pub const DESCRIPTORS: &str = "descriptors.json";
/// Ours.
const STREAMS: &str = "arctern-streams.json";

/// What a descriptor of this process leads to, as `/proc` shows it.
pub fn target(fd: &OwnedFd) -> Result<String> {
    read_target(&format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn read_target(path: &str) -> Result<String> {
    let target = fs::read_link(path).map_err(Error::io("read the link", path))?;
    Ok(target.to_string_lossy().into_owned())
}

/// Writes down what the shim gave init; `run` is the container's run directory.
pub fn remember(run: &Path, streams: &[String]) -> Result<()> {
    write(&run.join("streams"), streams)
}

/// Writes both lists into a directory of images. `pid` is init.
pub fn save(run: &Path, pid: i32, images: &Path) -> Result<()> {
    let descriptors = (0..3)
        // A descriptor that init has closed leads nowhere.
        .map(|fd| read_target(&format!("/proc/{pid}/fd/{fd}")).unwrap_or_default())
        .collect::<Vec<_>>();
    write(&images.join(DESCRIPTORS), &descriptors)?;
    if let Some(streams) = read(&run.join("streams"))? {
        write(&images.join(STREAMS), &streams)?;
    }
    Ok(())
}

/// The old names of standard input, output and error, if they were pipes of the engine's.
pub fn load(images: &Path) -> Result<[Option<String>; 3]> {
    let list = match read(&images.join(STREAMS))? {
        Some(list) => list,
        None => read(&images.join(DESCRIPTORS))?.unwrap_or_default(),
    };
    let mut found = [None, None, None];
    for (slot, name) in found.iter_mut().zip(list) {
        if is_pipe(&name) {
            *slot = Some(name);
        }
    }
    Ok(found)
}

fn is_pipe(name: &str) -> bool {
    name.strip_prefix("pipe:[")
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|ino| !ino.is_empty() && ino.bytes().all(|b| b.is_ascii_digit()))
}

fn write(path: &Path, list: &[String]) -> Result<()> {
    let json = serde_json::to_vec(list).map_err(Error::json("the list of streams"))?;
    fs::write(path, json).map_err(Error::io("write", path))
}

fn read(path: &Path) -> Result<Option<Vec<String>>> {
    match fs::read(path) {
        Ok(json) => {
            serde_json::from_slice(&json).map(Some).map_err(Error::json(path.display().to_string()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pipes_are_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let list = ["/dev/null", "pipe:[12]", "pipe:[x]"].map(str::to_owned);
        write(&dir.path().join(DESCRIPTORS), &list).expect("write");
        let found = load(dir.path()).expect("load");
        assert_eq!(found, [None, Some("pipe:[12]".to_owned()), None]);
        write(&dir.path().join(STREAMS), &["pipe:[7]".to_owned()]).expect("write");
        assert_eq!(load(dir.path()).expect("load")[0].as_deref(), Some("pipe:[7]"));
    }
}
