//! The remote calls of which mounts are made.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use arctern_image::messages::MntEntry;
use arctern_sys::mount::{
    FSCONFIG_CMD_CREATE, FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC,
    MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH, MountAttr, OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE, open_how,
};
use arctern_tracee::stub::Stub;
use arctern_tracee::{Arg, Batch, CallId};

use super::build::MountRestore;
use super::table;
use crate::error::RestoreError;

/// Nothing outside of the mount, no link, no other mount.
const WITHIN: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;

/// A batch that knows which mount each call is about.
pub struct Calls<'a> {
    restore: &'a MountRestore,
    /// The calls.
    pub batch: Batch,
    labels: Vec<(CallId, usize, &'static str)>,
}

impl<'a> Calls<'a> {
    pub fn new(restore: &'a MountRestore) -> Self {
        Calls { restore, batch: Batch::new(), labels: Vec::new() }
    }

    pub fn call(&mut self, index: usize, what: &'static str, nr: i64, args: &[Arg]) -> CallId {
        let call = self.batch.call(nr, args);
        self.labels.push((call, index, what));
        call
    }

    /// Runs the calls; the first failed one becomes the error.
    pub fn run(mut self, stub: &Stub) -> Result<Batch, RestoreError> {
        stub.run(&mut self.batch)?;
        for (call, index, what) in self.labels {
            if let Err(error) = self.batch.result(call) {
                return Err(self.restore.failed(index, what.to_owned())(error));
            }
        }
        Ok(self.batch)
    }

    fn path(&mut self, path: &Path) -> Arg {
        self.batch.c_string(path.as_os_str().as_bytes()).into()
    }

    pub fn clone_of(&mut self, index: usize, path: &Path) -> CallId {
        let path = self.path(path);
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
        let args = [libc::AT_FDCWD.into(), path, flags.into()];
        self.call(index, "find its source on the host", libc::SYS_open_tree, &args)
    }

    pub fn clone_of_fd(&mut self, index: usize, fd: CallId) -> CallId {
        let empty = self.path(Path::new(""));
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
        self.call(index, "bind it", libc::SYS_open_tree, &[fd.into(), empty, flags.into()])
    }

    pub fn open(&mut self, index: usize, what: &'static str, fd: Arg, below: &str) -> CallId {
        let below = self.path(Path::new(below));
        let how = self.batch.bytes(&open_how(libc::O_PATH | libc::O_CLOEXEC, WITHIN));
        self.call(index, what, libc::SYS_openat2, &[fd, below, how.into(), how.len().into()])
    }

    pub fn config(&mut self, index: usize, context: Arg, key: &str, value: Option<&str>) {
        let key = self.path(Path::new(key));
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        let value = value.map_or(Arg::Value(0), |value| self.path(Path::new(value)));
        let args = [context, command.into(), key, value, 0.into()];
        self.call(index, "set an option of its file system", libc::SYS_fsconfig, &args);
    }

    pub fn config_command(&mut self, index: usize, context: Arg, command: u32) {
        let args = [context, command.into(), 0.into(), 0.into(), 0.into()];
        self.call(index, "set up its file system", libc::SYS_fsconfig, &args);
    }

    /// A new file system: its mount, and its configuration.
    pub fn new_file_system(&mut self, index: usize, entry: &MntEntry) -> (CallId, CallId) {
        let name = table::file_system_name(entry.fstype).unwrap_or_default();
        let name_arg = self.path(Path::new(name));
        let args = [name_arg, FSOPEN_CLOEXEC.into()];
        let context = self.call(index, "open its file system", libc::SYS_fsopen, &args);
        if !entry.source.is_empty() {
            self.config(index, context.into(), "source", Some(&entry.source));
        }
        // The others are one file system for everybody: their options are the host's.
        if matches!(name, "tmpfs" | "devpts" | "proc" | "cgroup" | "mqueue") {
            for option in entry.options.split(',').filter(|option| !option.is_empty()) {
                match option.split_once('=') {
                    None if option == "newinstance" => {}
                    Some(("release_agent", _)) => {}
                    Some((key, value)) => self.config(index, context.into(), key, Some(value)),
                    None => self.config(index, context.into(), option, None),
                }
            }
        }
        let read_only = entry.sb_flags.unwrap_or(0) & libc::MS_RDONLY as u32 != 0;
        if read_only && matches!(name, "proc" | "sysfs" | "devpts" | "mqueue") {
            self.config(index, context.into(), "ro", None);
        }
        self.config_command(index, context.into(), FSCONFIG_CMD_CREATE);
        let args = [context.into(), FSMOUNT_CLOEXEC.into(), 0.into()];
        let mount = self.call(index, "mount its file system", libc::SYS_fsmount, &args);
        (mount, context)
    }

    pub fn attributes(&mut self, index: usize, fd: Arg, attr: MountAttr) {
        let empty = self.path(Path::new(""));
        let attr = self.batch.bytes(&attr.to_bytes());
        let args = [fd, empty, libc::AT_EMPTY_PATH.into(), attr.into(), MountAttr::SIZE.into()];
        self.call(index, "set its flags", libc::SYS_mount_setattr, &args);
    }

    pub fn move_mount(&mut self, index: usize, what: &'static str, from: Arg, to: Arg, flags: u32) {
        let empty = self.path(Path::new(""));
        let flags = flags | MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
        self.call(index, what, libc::SYS_move_mount, &[from, empty, to, empty, flags.into()]);
    }

    /// Makes a detached mount the root: it is attached over its directory on the host, the old root
    /// comes to lie on top of it and is taken off (pivot_root(2), notes).
    pub fn pivot(&mut self, index: usize, fd: Arg, over: &Path) {
        let empty = self.path(Path::new(""));
        let over = self.path(over);
        let here = self.path(Path::new("."));
        let top = self.path(Path::new("/"));
        let args = [fd, empty, libc::AT_FDCWD.into(), over, MOVE_MOUNT_F_EMPTY_PATH.into()];
        self.call(index, "attach the root", libc::SYS_move_mount, &args);
        self.call(index, "enter the root", libc::SYS_fchdir, &[fd]);
        self.call(index, "make it the root", libc::SYS_pivot_root, &[here, here]);
        let args = [here, libc::MNT_DETACH.into()];
        self.call(index, "detach the old root", libc::SYS_umount2, &args);
        self.call(index, "enter the root", libc::SYS_chdir, &[top]);
    }
}
