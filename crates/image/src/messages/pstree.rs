//! CRIU's `pstree.proto`: the process tree (`pstree.img`).

/// CRIU's `pstree_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PstreeEntry {
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    /// 0 for the root task.
    #[prost(uint32, required, tag = "2")]
    pub ppid: u32,
    #[prost(uint32, required, tag = "3")]
    pub pgid: u32,
    #[prost(uint32, required, tag = "4")]
    pub sid: u32,
    /// Tids, leader first; `[0]` for a zombie.
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<u32>,
}
