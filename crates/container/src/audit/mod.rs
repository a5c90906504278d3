//! `system check`: what does not fit together, and what is left of killed commands.
//!
//! Compared are the database, the directories, and what the kernel has: processes, control groups,
//! mounts, network namespaces, leases, locks, devices, rules. A container is looked at under its own
//! lock and never when somebody else has it: a command is at work then. Containers that come or go
//! have the lock of births, which is taken for what belongs to no container.

mod judge;
mod others;
mod traces;

use std::collections::BTreeSet;

use crate::error::Result;
use crate::host::Host;
use crate::lock::Lock;

use traces::Traces;

/// How a check is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditOptions {
    /// Leave out what takes long: digests of images, indexes of the database.
    pub quick: bool,
    /// Mend what is found.
    pub repair: bool,
    /// Also what takes something away that somebody may still want: containers whose files are gone,
    /// or whose image is damaged.
    pub force: bool,
}

/// What became of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was found.
    Found,
    /// It was mended.
    Repaired,
    /// It could not be mended, or needs force or a person; why.
    Stays(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about: `container web (0123456789ab)`.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What a repair does about it.
    pub remedy: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Containers that were left out, because a command is at work on them.
    pub busy: Vec<String>,
}

impl Audit {
    /// Whether nothing is wrong any more.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.outcome == Outcome::Repaired)
    }

    /// Adds what was found, after `cure` has been tried if it is to be repaired.
    fn add(
        &mut self,
        options: AuditOptions,
        object: &str,
        problem: impl Into<String>,
        remedy: &str,
        cure: impl FnOnce() -> Result<()>,
    ) {
        let outcome = match options.repair.then(cure) {
            None => Outcome::Found,
            Some(Ok(())) => Outcome::Repaired,
            Some(Err(error)) => Outcome::Stays(error.chain()),
        };
        self.findings.push(Finding {
            object: object.to_owned(),
            problem: problem.into(),
            remedy: remedy.to_owned(),
            outcome,
        });
    }

    /// Adds what no repair can mend.
    fn add_for_people(&mut self, options: AuditOptions, object: &str, problem: String, todo: &str) {
        let outcome = match options.repair {
            false => Outcome::Found,
            true => Outcome::Stays("a person has to decide".to_owned()),
        };
        self.findings.push(Finding {
            object: object.to_owned(),
            problem,
            remedy: format!("none; {todo}"),
            outcome,
        });
    }
}

impl Host {
    /// Looks at everything that belongs to this host, and mends it if that is asked for.
    pub fn audit(&mut self, options: AuditOptions) -> Result<Audit> {
        let mut audit = Audit::default();
        self.audit_database(options, &mut audit)?;
        self.audit_containers(options, &mut audit)?;
        self.audit_networks(options, &mut audit)?;
        self.audit_images(options, &mut audit)?;
        Ok(audit)
    }

    /// Containers, and what is left of some.
    pub(crate) fn audit_containers(
        &mut self,
        options: AuditOptions,
        audit: &mut Audit,
    ) -> Result<()> {
        let mut ids: BTreeSet<String> =
            self.store.list()?.into_iter().map(|record| record.config.id).collect();
        let kernel = traces::Kernel::read(&self.paths)?;
        ids.extend(traces::ids(&self.paths, &kernel)?);
        for id in ids {
            let lock = self.paths.container(&id).lock();
            let mut guard = match lock.parent().is_some_and(std::path::Path::is_dir) {
                true => match Lock::try_take(&lock) {
                    Ok(Some(lock)) => Some(lock),
                    Ok(None) => {
                        audit.busy.push(id);
                        continue;
                    }
                    // Its directory went meanwhile.
                    Err(_) => None,
                },
                false => None,
            };
            match self.store.get(&id)? {
                Some(record) if guard.is_some() => self.judge(record, options, audit)?,
                _ => {
                    // Who has the lock of births waits for no other lock but the container's own, so
                    // that one is given back.
                    guard.take();
                    let births = self.births()?;
                    let traces = Traces::of(self, &id, &kernel)?;
                    match self.store.get(&id)? {
                        // It has been made meanwhile, or its directory is gone.
                        Some(record) if traces.directory => {
                            tracing::debug!("container {} came meanwhile", record.id());
                        }
                        Some(record) => {
                            self.make_dirs(&id)?;
                            let _guard = Lock::wait(&lock)?;
                            drop(births);
                            self.without_directory(record, options, audit)?;
                        }
                        None => self.orphan(&id, &traces, options, audit)?,
                    }
                }
            }
        }
        Ok(())
    }
}
