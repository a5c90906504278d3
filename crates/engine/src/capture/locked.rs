//! The lock of the network, for as long as a capture needs it.

use arctern_sys::Pid;

use crate::error::CaptureError;
use crate::options::NetworkLock;
use crate::state::files::{ClosedWindows, FileCollector};

/// The lock of the network; dropped, it is unlocked, before the tasks go on.
#[derive(Default)]
pub(super) struct Locked<'l, 'n> {
    network: Option<&'l mut (dyn NetworkLock + 'n)>,
    /// Opened after the lock.
    windows: Option<ClosedWindows>,
}

impl<'l, 'n> Locked<'l, 'n> {
    /// Locks it; `root` is a task of the tree's network namespace.
    pub fn lock(
        &mut self,
        network: Option<&'l mut (dyn NetworkLock + 'n)>,
        files: &FileCollector,
        root: Pid,
    ) -> Result<(), CaptureError> {
        let Some(network) = network else { return Ok(()) };
        // Also after an error: it may have been half done.
        let network = self.network.insert(network);
        let drops = network.drops();
        if drops {
            // What is on its way now arrives, and is confirmed together with the window as it is.
            self.windows = Some(files.close_windows(root));
        }
        network.lock(&files.connections()).map_err(CaptureError::Hook)?;
        if drops && let Some(first) = self.windows.replace(files.close_windows(root)) {
            first.keep();
        }
        Ok(())
    }

    /// What is locked.
    pub fn network(&mut self) -> Option<&mut (dyn NetworkLock + 'n)> {
        self.network.as_deref_mut()
    }

    /// Leaves the network locked.
    pub fn keep(&mut self) {
        self.network = None;
        if let Some(windows) = self.windows.take() {
            windows.keep();
        }
    }
}

impl Drop for Locked<'_, '_> {
    fn drop(&mut self) {
        if let Some(network) = &mut self.network
            && let Err(e) = network.unlock()
        {
            tracing::error!("the network stays locked: {e}");
        }
    }
}
