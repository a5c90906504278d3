//! Paths of a task that are no descriptors: files to map, executable, root, working directory.

use std::os::fd::AsFd;

use arctern_image::images::ImageKind;
use arctern_image::messages::FsEntry;
use arctern_sys::mount::open_how;
use arctern_tracee::stub::Stub;

use super::restore::FilesRestore;
use crate::error::{RestoreError, Subject};
use crate::restore_context::RestoreContext;

impl FilesRestore {
    /// Opens a file for mapping it, or as the task's executable: a descriptor number in the stub,
    /// which the caller closes.
    ///
    /// # Errors
    /// The images do not list it, or it cannot be opened.
    pub fn open_mapping(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        file_id: u32,
        writable_shared: bool,
    ) -> Result<i32, RestoreError> {
        self.prepare(ctx, stub)?;
        let Some(file) = self.files.get(&file_id) else {
            return Err(RestoreError::Inconsistent(format!(
                "a mapping shows file {file_id}, which files.img does not list"
            )));
        };
        if let Some(memfd) = &file.memfd {
            let mut memfd = memfd.clone();
            if writable_shared {
                // CRIU writes O_RDONLY here and opens every mapped memory for writing.
                memfd.flags = memfd.flags & !(libc::O_ACCMODE as u32) | libc::O_RDWR as u32;
            }
            let fd = self.memfds.describe(&self.images, &memfd)?;
            let at = ctx.temporary();
            ctx.inject(stub, fd.as_fd(), at)?;
            return Ok(at);
        }
        let Some(reg) = &file.reg else {
            return Err(RestoreError::Inconsistent(format!(
                "a mapping shows file {file_id}, which is neither a file nor memory"
            )));
        };
        if reg.ext()
            && let Some(fd) = self.inherited(&reg.name)
        {
            let at = ctx.temporary();
            ctx.inject(stub, fd.as_fd(), at)?;
            return Ok(at);
        }
        let mut batch = arctern_tracee::Batch::new();
        let path = batch.c_string(&self.path_of(reg));
        let access =
            if writable_shared { libc::O_RDWR } else { reg.flags as i32 & libc::O_ACCMODE };
        let flags = access | libc::O_CLOEXEC | libc::O_NOCTTY;
        let at = libc::AT_FDCWD.into();
        let call = if self.options.plain_paths {
            let how = batch.bytes(&open_how(flags, libc::RESOLVE_NO_SYMLINKS));
            batch.call(libc::SYS_openat2, &[at, path.into(), how.into(), how.len().into()])
        } else {
            batch.call(libc::SYS_openat, &[at, path.into(), flags.into()])
        };
        stub.run(&mut batch)?;
        let got = batch.result(call).map_err(|source| RestoreError::Kernel {
            subject: self.subject(file_id, &reg.name),
            what: "open it for mapping".to_owned(),
            source,
        })?;
        let got = got as i32;
        if got < ctx.base() {
            return Ok(got);
        }
        // No room below: it must not stand on a number that is given out later.
        let at = ctx.temporary();
        if got != at {
            let mut batch = arctern_tracee::Batch::new();
            batch.call(libc::SYS_dup3, &[got.into(), at.into(), libc::O_CLOEXEC.into()]);
            batch.call(libc::SYS_close, &[got.into()]);
            stub.run_all(&mut batch, "move a file out of the way")?;
        }
        Ok(at)
    }

    /// Sets root, working directory and umask of a task; tasks that share them (CLONE_FS) get the
    /// same again.
    ///
    /// # Errors
    /// An image is missing, or a directory cannot be entered.
    pub fn install_fs(
        &mut self,
        _ctx: &mut RestoreContext,
        stub: &Stub,
        task: usize,
    ) -> Result<(), RestoreError> {
        let node = &self.tasks[task];
        let fs: FsEntry = self.images.read_one(ImageKind::Fs, node.pid as u64)?;
        let directory = |id: u32| {
            let reg = self.files.get(&id).and_then(|file| file.reg.as_deref());
            reg.map(|reg| (self.path_of(reg), reg.name.clone())).ok_or_else(|| {
                RestoreError::Inconsistent(format!(
                    "a directory of process {} is file {id}, which files.img does not list",
                    node.pid
                ))
            })
        };
        let ((cwd, cwd_name), (root, root_name)) = (directory(fs.cwd_id)?, directory(fs.root_id)?);
        let mut batch = arctern_tracee::Batch::new();
        let cwd = batch.c_string(&cwd);
        let mut calls = vec![(
            batch.call(libc::SYS_chdir, &[cwd.into()]),
            "enter its working directory",
            cwd_name,
        )];
        if root != b"/" {
            // chroot keeps the working directory, wherever it is.
            let root = batch.c_string(&root);
            let call = batch.call(libc::SYS_chroot, &[root.into()]);
            calls.push((call, "set its root directory", root_name));
        }
        let umask = fs.umask.unwrap_or(0o022);
        batch.call(libc::SYS_umask, &[umask.into()]);
        stub.run(&mut batch)?;
        for (call, what, name) in calls {
            batch.result(call).map_err(|source| RestoreError::Kernel {
                subject: Subject { pid: node.pid, comm: node.comm.clone(), part: name },
                what: what.to_owned(),
                source,
            })?;
        }
        Ok(())
    }
}
