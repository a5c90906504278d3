//! Writing files of a directory tree as members of a tar stream.

use rustix::fs::{Stat, Timespec, Timestamps};

/// The times of a file as they are set on its copy.
pub(crate) fn stat_times(st: &Stat) -> Timestamps {
    let mtime =
        Timespec { tv_sec: st.st_mtime, tv_nsec: i64::try_from(st.st_mtime_nsec).unwrap_or(0) };
    Timestamps { last_access: mtime, last_modification: mtime }
}
