//! What fits together about one container.

use std::time::Duration;

use rustix::process::Signal;

use super::traces::{Kernel, Traces};
use super::{Audit, AuditOptions, Outcome};
use crate::config::short_id;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::state::{Record, Status};

/// How long a shim may take to end when its container is gone.
const END: Duration = Duration::from_secs(10);

fn label(record: &Record) -> String {
    format!("container {} ({})", record.name(), short_id(record.id()))
}

impl Host {
    /// A container that has a row and a directory. The caller has its lock.
    pub(super) fn judge(
        &mut self,
        record: Record,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        let object = label(&record);
        let id = record.config.id.clone();
        let shim = self.shim_of(&record).is_some();
        let init = self.init(&record).is_some();
        if shim && !init {
            // Its shim is cleaning up.
            audit.busy.push(record.config.id);
            return Ok(());
        }
        if self.is_unfinished(&record) {
            // Read again: its shim may have written the end down and ended since.
            let record = match self.store.get(&id)? {
                Some(now) if self.is_unfinished(&now) => now,
                Some(now) => return self.judge(now, options, audit),
                None => return Ok(()),
            };
            let problem = match record.status {
                Status::Restoring => "its restore was killed half-way",
                _ => "it has ended, and its shim was killed before it had cleaned up",
            };
            audit.add(options, &object, problem, "clean up and write down its end", || {
                self.settle(record).map(drop)
            });
            // What else is wrong with it can be seen now.
            return match self.store.get(&id)? {
                Some(now) if !self.is_unfinished(&now) => self.judge(now, options, audit),
                _ => Ok(()),
            };
        }
        if init && !shim {
            // Not mended: nobody can become the parent of its processes.
            audit.add_for_people(
                options,
                &object,
                "its shim was killed: it runs on, and its output goes nowhere".to_owned(),
                "`arctern stop` and `start` it, or checkpoint and restore it",
            );
        }
        let leftovers: Vec<String> = self
            .paths
            .container(&id)
            .temporary()
            .iter()
            .filter(|path| path.exists())
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        if !leftovers.is_empty() {
            let problem =
                format!("a killed command left {} in its directory", leftovers.join(", "));
            audit.add(options, &object, problem, "remove it", || self.sweep(&record));
        }
        if init {
            if record.status == Status::Checkpointed {
                audit.add(
                    options,
                    &object,
                    "its checkpoint was killed before it was stopped",
                    "say that it runs",
                    || self.settle(record).map(drop),
                );
            }
            return Ok(());
        }
        self.judge_idle(record, options, audit)
    }

    /// A container that does not run.
    fn judge_idle(
        &mut self,
        record: Record,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        if self.is_entered(&record) {
            audit.busy.push(record.config.id);
            return Ok(());
        }
        let object = label(&record);
        let id = record.config.id.clone();
        let kernel = Kernel::read(&self.paths)?;
        let traces = Traces::of(self, &id, &kernel)?;
        let there = traces.in_kernel();
        if !there.is_empty() {
            let problem = format!("it does not run and still has {}", there.join(", "));
            audit.add(options, &object, problem, "remove them", || self.teardown(&id));
        }
        self.end_helpers(&object, &id, &traces, options, audit)?;
        let images = self.paths.container(&id).checkpoint();
        if images.exists() && !self.has_checkpoint(&record) {
            audit.add(
                options,
                &object,
                "the images of its checkpoint are not complete",
                "remove them",
                || {
                    self.store.update(&id, |r| r.checkpointed_at = None)?;
                    crate::checkpoint::discard(&images)
                },
            );
        }
        if !traces.root {
            self.without_root(&record, options, audit)?;
        }
        Ok(())
    }

    /// A container whose root file system is gone: one that was never started had nothing in it.
    fn without_root(
        &mut self,
        record: &Record,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        let object = label(record);
        let id = record.id();
        if record.started_at.is_none() {
            audit.add(
                options,
                &object,
                "its root file system is gone",
                "make it anew from its image",
                || {
                    self.images
                        .create_root(id, &record.config.image_id)
                        .map(drop)
                        .map_err(Error::storage)
                },
            );
        } else if options.force {
            audit.add(options, &object, "its root file system is gone", "remove it", || {
                self.teardown(id).and_then(|()| self.remove_files(id))
            });
        } else {
            let todo = "--force removes the container";
            let problem = "its root file system is gone, with the files that it changed".to_owned();
            audit.add_for_people(options, &object, problem, todo);
        }
        Ok(())
    }

    /// A container that has a row and no directory. The caller has made one, and has its lock.
    pub(super) fn without_directory(
        &mut self,
        record: Record,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        let object = label(&record);
        let id = record.config.id.clone();
        let remedy = "finish its removal";
        audit.add(
            options,
            &object,
            "its directory is gone: its removal was killed",
            remedy,
            || self.teardown(&id).and_then(|()| self.remove_files(&id)),
        );
        if !matches!(audit.findings.last(), Some(last) if last.outcome == Outcome::Repaired) {
            let _births = self.births()?;
            self.remove_dirs(&id)?;
        }
        Ok(())
    }

    /// What is left of a container that has no row. The caller has the lock of births.
    pub(super) fn orphan(
        &mut self,
        id: &str,
        traces: &Traces,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        let object = format!("container {} (unknown)", short_id(id));
        let there: Vec<String> = traces.on_disk().into_iter().chain(traces.in_kernel()).collect();
        if !there.is_empty() {
            let problem = format!("no such container is known, but there is {}", there.join(", "));
            audit.add(options, &object, problem, "remove it", || {
                self.teardown(id)?;
                self.release_addresses(id)?;
                self.images.remove_root(id).map_err(Error::storage)?;
                self.remove_dirs(id)
            });
        }
        self.end_helpers(&object, id, traces, options, audit)
    }

    /// Shims and keepers that nobody needs, of a container that does not run. They may be about to end
    /// by themselves.
    fn end_helpers(
        &self,
        object: &str,
        id: &str,
        traces: &Traces,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        let kept = self.locks()?.values().any(|lock| lock.container == id && lock.kept);
        let keepers = traces.keepers.iter().filter(|_| !kept);
        for process in traces.shims.iter().chain(keepers) {
            let ended = process.open().is_none_or(|handle| handle.wait(Some(END)).unwrap_or(false));
            if ended {
                continue;
            }
            let problem = format!("process {} looks after it for nothing", process.pid);
            audit.add(options, object, problem, "end it", || {
                let Some(handle) = process.open() else { return Ok(()) };
                let fail = || Error::system(format!("end process {}", process.pid));
                handle.signal(Signal::KILL).map_err(fail())?;
                handle.wait(Some(END)).map(drop).map_err(fail())
            });
        }
        Ok(())
    }

    /// Takes back the addresses that a container without a row has on any network.
    fn release_addresses(&self, id: &str) -> Result<()> {
        for network in crate::network::all(&self.paths)? {
            if network.leases().map_err(Error::network)?.contains_key(id) {
                network.disconnect(id, None).map_err(Error::network)?;
            }
        }
        Ok(())
    }
}
