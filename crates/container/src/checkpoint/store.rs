//! The checkpoints that are kept with containers: list, remove, and how many are kept.

use std::time::Duration;

use super::capture::tree_size;
use super::discard;
use crate::config::NetworkMode;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::state::{Record, Status};
use crate::time::Timestamp;

/// A checkpoint that is kept with a container.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The container.
    pub record: Record,
    /// Size of its images in bytes.
    pub size: u64,
    /// When it was made.
    pub created: Timestamp,
}

impl Kept {
    /// Whether the container can only go on from it.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.record.status == Status::Checkpointed
    }
}

/// Which checkpoints stay; what nobody asked for does not count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// This many of the newest.
    pub keep: Option<usize>,
    /// Those that are not older.
    pub older_than: Option<Duration>,
    /// As many of the newest as have this many bytes together.
    pub max_size: Option<u64>,
    /// Remove also those that a stopped container needs to go on.
    pub all: bool,
}

impl Retention {
    /// Which of `kept` go; `now` is the time.
    fn doomed(&self, mut kept: Vec<Kept>, now: Timestamp) -> Vec<Kept> {
        // What cannot go takes its share first.
        kept.sort_by_key(|k| (self.all || !k.is_needed(), std::cmp::Reverse(k.created.0)));
        let mut bytes = 0u64;
        let mut number = 0;
        let mut doomed = Vec::new();
        for kept in kept {
            let age = u128::try_from(now.0.saturating_sub(kept.created.0)).unwrap_or(0);
            let go = self.keep.is_some_and(|keep| number >= keep)
                || self.older_than.is_some_and(|limit| age > limit.as_nanos())
                || self.max_size.is_some_and(|limit| bytes.saturating_add(kept.size) > limit);
            if go && (self.all || !kept.is_needed()) {
                doomed.push(kept);
            } else {
                number += 1;
                bytes = bytes.saturating_add(kept.size);
            }
        }
        doomed
    }
}

impl Host {
    /// The checkpoints that are kept with containers, newest first.
    pub fn checkpoints(&mut self) -> Result<Vec<Kept>> {
        let mut all = Vec::new();
        for record in self.list()? {
            if !self.has_checkpoint(&record) {
                continue;
            }
            // One that is being replaced or used at this moment is not there.
            let Ok(size) = tree_size(&self.paths.container(record.id()).checkpoint()) else {
                continue;
            };
            let created = record.checkpointed_at.unwrap_or(record.created_at);
            all.push(Kept { record, size, created });
        }
        all.sort_by_key(|kept| std::cmp::Reverse(kept.created.0));
        Ok(all)
    }

    /// The directory of images that is kept with a container.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`].
    pub fn checkpoint_path(&mut self, name_or_id: &str) -> Result<std::path::PathBuf> {
        let record = self.find(name_or_id)?;
        match self.has_checkpoint(&record) {
            true => Ok(self.paths.container(record.id()).checkpoint()),
            false => Err(Error::NoCheckpoint(record.config.name)),
        }
    }

    /// Removes the checkpoint that is kept with a container. One that was stopped by it has ended then,
    /// and connections that waited for it are given up.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`], and that it is needed, unless by force.
    pub fn checkpoint_remove(&mut self, name_or_id: &str, force: bool) -> Result<Record> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        if !self.has_checkpoint(&record) {
            return Err(Error::NoCheckpoint(record.config.name));
        }
        if record.status == Status::Checkpointed {
            if !force {
                return Err(Error::CheckpointNeeded(record.config.name));
            }
            let waits = |lock: &arctern_net::Lock| lock.container == record.id() && lock.archived;
            if record.config.network == NetworkMode::Bridge && !self.locks()?.values().any(waits) {
                crate::network::end_lock(&self.paths, &record.config)?;
            }
        }
        // Before the images: what says that it can be restored must not outlive them.
        self.store.update(record.id(), |r| {
            r.checkpointed_at = None;
            if r.status == Status::Checkpointed {
                r.status = Status::Exited;
            }
        })?;
        discard(&self.paths.container(record.id()).checkpoint())?;
        Ok(record)
    }

    /// Removes what a retention does not keep. Gives what was removed.
    pub fn checkpoint_prune(&mut self, retention: &Retention) -> Result<Vec<Kept>> {
        let doomed = retention.doomed(self.checkpoints()?, Timestamp::now());
        for kept in &doomed {
            match self.checkpoint_remove(kept.record.id(), retention.all) {
                // Used or stopped meanwhile.
                Ok(_) | Err(Error::NoCheckpoint(_) | Error::CheckpointNeeded(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(doomed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, age: i64, size: u64, status: Status) -> Kept {
        let config = serde_json::json!({ "id": name, "name": name });
        let record = Record::new(serde_json::from_value(config).expect("config"));
        Kept { record: Record { status, ..record }, size, created: Timestamp(-age * 1_000_000_000) }
    }

    fn doomed(retention: Retention) -> Vec<String> {
        let all = vec![
            kept("new", 10, 100, Status::Running),
            kept("old", 1000, 100, Status::Exited),
            kept("needed", 500, 100, Status::Checkpointed),
        ];
        let gone = retention.doomed(all, Timestamp(0));
        gone.into_iter().map(|kept| kept.record.config.name).collect()
    }

    #[test]
    fn what_is_needed_stays_and_counts() {
        let by = Retention::default();
        assert_eq!(doomed(Retention { keep: Some(2), ..by }), ["old"]);
        assert_eq!(doomed(Retention { keep: Some(0), ..by }), ["new", "old"]);
        assert_eq!(doomed(Retention { keep: Some(1), all: true, ..by }), ["needed", "old"]);
        let hour = Some(Duration::from_secs(100));
        assert_eq!(doomed(Retention { older_than: hour, ..by }), ["old"]);
        assert_eq!(doomed(Retention { max_size: Some(250), ..by }), ["old"]);
        assert_eq!(doomed(Retention { max_size: Some(99), ..by }), ["new", "old"]);
        assert!(doomed(by).is_empty());
    }
}
