//! CRIU's `ipc-msg.proto`: SysV message queues (`ipcns-msg-%u.img`).

use super::IpcDescEntry;

/// CRIU's `ipc_msg`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct IpcMsg {
    #[prost(uint64, required, tag = "1")]
    pub mtype: u64,
    /// Payload bytes, padded to 8.
    #[prost(uint32, required, tag = "2")]
    pub msize: u32,
}

/// CRIU's `ipc_msg_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct IpcMsgEntry {
    #[prost(message, required, tag = "1")]
    pub desc: IpcDescEntry,
    #[prost(uint32, required, tag = "2")]
    pub qbytes: u32,
    /// Number of ipc_msg records following.
    #[prost(uint32, required, tag = "3")]
    pub qnum: u32,
}
