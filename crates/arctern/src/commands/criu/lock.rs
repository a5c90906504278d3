//! The lock of a tree's connections: rules in the network namespace of the tree, under the name that
//! CRIU gives its own, so that either program ends the lock that the other made.

use std::cell::{OnceCell, RefCell};
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use arctern_engine::options::{Connection, HookError, NetworkLock};
use arctern_net::{ConnectionLock, PassingLock};

/// Letters of a run's id in the name of its table: as many as CRIU has room for.
const ID_LENGTH: usize = 21;

/// Locks single connections. The network namespace becomes known when the tree is there.
///
/// The lock of a dump goes with the program until [`TreeLock::keep`]: if it is killed before, the tasks
/// go on, and so do their connections.
pub struct TreeLock<'a> {
    run_id: String,
    root: &'a OnceCell<i32>,
    /// The tree's network namespace, held: its tasks may have ended when it is needed.
    namespace: OnceCell<File>,
    /// The program ends before the lock does.
    lasting: bool,
    passing: RefCell<Option<PassingLock>>,
    locked: RefCell<Vec<(SocketAddr, SocketAddr)>>,
}

impl<'a> TreeLock<'a> {
    /// A new lock, for a dump.
    pub fn new(root: &'a OnceCell<i32>) -> std::io::Result<Self> {
        // The kernel's own: a random UUID.
        let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        Ok(TreeLock { lasting: false, ..TreeLock::of(id.trim(), root) })
    }

    /// The lock that a dump made, by the run id of its images.
    pub fn of(run_id: &str, root: &'a OnceCell<i32>) -> Self {
        TreeLock {
            run_id: run_id.to_owned(),
            root,
            namespace: OnceCell::new(),
            lasting: true,
            passing: RefCell::default(),
            locked: RefCell::default(),
        }
    }

    /// The connections stay locked when the program ends.
    pub fn keep(&self) -> Result<(), HookError> {
        let locked = self.locked.borrow();
        if !locked.is_empty() {
            self.rules()?.lock(&locked)?;
        }
        Ok(())
    }

    /// Holds the tree's network namespace, while its tasks are certainly there.
    pub fn hold_namespace(&self) -> Result<(), HookError> {
        if let Some(pid) = self.root.get() {
            let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
            self.namespace.get_or_init(|| namespace);
        }
        Ok(())
    }

    fn rules(&self) -> Result<ConnectionLock, HookError> {
        let namespace = match (self.namespace.get(), self.root.get()) {
            (Some(held), _) => Some(OwnedFd::from(held.try_clone()?)),
            (None, Some(pid)) => Some(OwnedFd::from(File::open(format!("/proc/{pid}/ns/net"))?)),
            (None, None) => None,
        };
        Ok(ConnectionLock::new(namespace, &table(&self.run_id)))
    }
}

/// The name of a run's table. The id comes from images: it is used only as far as it is one.
fn table(run_id: &str) -> String {
    let id = run_id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-');
    format!("CRIU-{}", id.take(ID_LENGTH).collect::<String>())
}

impl NetworkLock for &TreeLock<'_> {
    fn lock(&mut self, connections: &[Connection]) -> Result<(), HookError> {
        if connections.is_empty() {
            return Ok(());
        }
        let ends: Vec<_> = connections.iter().map(|c| (c.local, c.peer)).collect();
        let rules = self.rules()?;
        if self.lasting {
            rules.lock(&ends)?;
        } else {
            *self.passing.borrow_mut() = Some(rules.lock_for_now(&ends)?);
        }
        *self.locked.borrow_mut() = ends;
        Ok(())
    }

    fn unlock(&mut self) -> Result<(), HookError> {
        self.rules()?.unlock()?;
        *self.passing.borrow_mut() = None;
        Ok(())
    }

    fn abandon(&mut self) {
        if let Err(e) = self.unlock() {
            tracing::error!("the connections stay locked: {e}");
        }
    }

    fn drops(&self) -> bool {
        true
    }

    fn run_id(&self) -> Option<String> {
        Some(self.run_id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_name_that_criu_gives_it() {
        assert_eq!(table("35b6f821-eb1e-448c-9506-8a815a0410c1"), "CRIU-35b6f821-eb1e-448c-95");
        assert_eq!(table("../x y{}"), "CRIU-xy");
    }
}
