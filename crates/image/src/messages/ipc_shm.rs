//! CRIU's `ipc-shm.proto`: SysV shared memory (`ipcns-shm-%u.img`).

use super::IpcDescEntry;

/// CRIU's `ipc_shm_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct IpcShmEntry {
    #[prost(message, required, tag = "1")]
    pub desc: IpcDescEntry,
    #[prost(uint64, required, tag = "2")]
    pub size: u64,
    /// True: data in pagemap-shmem-`<desc.id>`.
    #[prost(bool, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_pagemaps: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_flag: Option<u32>,
}
