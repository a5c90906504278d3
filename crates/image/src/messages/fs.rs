//! CRIU's `fs.proto`: root, working directory and umask of a task (`fs-%u.img`).

/// CRIU's `fs_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FsEntry {
    /// Reg file id.
    #[prost(uint32, required, tag = "1")]
    pub cwd_id: u32,
    /// Reg file id.
    #[prost(uint32, required, tag = "2")]
    pub root_id: u32,
    #[prost(uint32, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
}
