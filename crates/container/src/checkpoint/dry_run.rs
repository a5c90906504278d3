//! `checkpoint --dry-run`: what stands in the way of a checkpoint, while the container runs on.

use arctern_engine::options::{
    AfterCapture, CaptureOptions, Connection, HookError, NetworkLock, TcpPolicy,
};
use arctern_engine::{CaptureError, Refusal};

use super::CheckpointOptions;
use super::capture::{FREEZE_TIMEOUT, GHOST_LIMIT, externals};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::spec;

/// Stands for the lock that a checkpoint would have.
struct Promised;

impl NetworkLock for Promised {
    fn lock(&mut self, _: &[Connection]) -> std::result::Result<(), HookError> {
        Ok(())
    }

    fn unlock(&mut self) -> std::result::Result<(), HookError> {
        Ok(())
    }
}

impl Host {
    /// Every reason for which [`Host::checkpoint`] would be refused with these options. Nothing is
    /// stopped and nothing is written.
    ///
    /// # Errors
    /// The container does not run, or the kernel does not answer.
    pub fn checkpoint_dry_run(
        &mut self,
        name_or_id: &str,
        options: &CheckpointOptions,
    ) -> Result<Vec<Refusal>> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        let pid = self.check_capturable(&record, options)?;
        let spec = spec::load(&self.paths.container(record.id()).spec())?;
        let binds = spec::mounts::binds(&spec);
        let mut lock = Promised;
        let capture = CaptureOptions {
            after: if options.leave_running { AfterCapture::Resume } else { AfterCapture::Kill },
            externals: externals(&record, pid, &binds)?,
            shell_job: false,
            orphan_terminals: record.config.terminal,
            external_unix: options.external_unix,
            file_locks: options.file_locks,
            ghost_limit: GHOST_LIMIT,
            timeout: FREEZE_TIMEOUT,
            freeze_cgroup: None,
            tcp: options.tcp,
            skip_in_flight: options.skip_in_flight,
            network: (options.tcp == TcpPolicy::Established)
                .then_some(&mut lock as &mut dyn NetworkLock),
            while_frozen: None,
            before_release: None,
            hand_over: None,
        };
        match arctern_engine::check(arctern_sys::Pid(pid), &capture) {
            Err(CaptureError::NoSuchProcess(_)) => Err(Error::EndedMeanwhile(record.config.name)),
            found => found.map_err(|error| Error::Capture(Box::new(error))),
        }
    }
}
