//! CRIU's `ipc-sem.proto`: SysV semaphores (`ipcns-sem-%u.img`).

use super::IpcDescEntry;

/// CRIU's `ipc_sem_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct IpcSemEntry {
    #[prost(message, required, tag = "1")]
    pub desc: IpcDescEntry,
    /// U16 values follow, padded to 8.
    #[prost(uint32, required, tag = "2")]
    pub nsems: u32,
}
