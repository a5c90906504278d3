//! Small file systems of a host, and how they become full.

use crate::host::{Host, run};
use anyhow::Result;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};

/// Mounts a file system of so many mebibytes at `name` in the directory of a host with mounts of its own.
pub fn mount(host: &Host, name: &str, mebibytes: u64) -> Result<()> {
    let (place, file) = (host.dir().join(name), host.dir().join(format!("{name}.ext4")));
    fs::create_dir(&place)?;
    File::create(&file)?.set_len(mebibytes << 20)?;
    run(host.enter("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file))?;
    run(host.enter("mount").args(["-o", "loop"]).arg(&file).arg(&place)).map(drop)
}

/// Takes all that is left of the file system that a file is on.
pub fn fill(file: &File) -> Result<()> {
    let mut end = 0;
    for step in [16 << 20, 1 << 20, 1 << 16, 1 << 12] {
        while fallocate(file, FallocateFlags::empty(), end, step).is_ok() {
            end += step;
        }
    }
    Ok(())
}
