//! CRIU's `vma.proto`: one mapping (inside `mm-%u.img`).

/// CRIU's `vma_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct VmaEntry {
    #[prost(uint64, required, tag = "1")]
    #[serde(serialize_with = "super::readable::hex")]
    pub start: u64,
    #[prost(uint64, required, tag = "2")]
    #[serde(serialize_with = "super::readable::hex")]
    pub end: u64,
    /// Bytes, not pages.
    #[prost(uint64, required, tag = "3")]
    pub pgoff: u64,
    /// File id / shmem inode / sysv id, by status.
    #[prost(uint64, required, tag = "4")]
    pub shmid: u64,
    /// Flag set: mmap.prot.
    #[prost(uint32, required, tag = "5")]
    pub prot: u32,
    /// Flag set: mmap.flags.
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    /// Flag set: mmap.status.
    #[prost(uint32, required, tag = "7")]
    pub status: u32,
    /// Always -1.
    #[prost(sint64, required, tag = "8")]
    pub fd: i64,
    /// Bit N set = MADV_ value N.
    #[prost(uint64, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub madv: Option<u64>,
    /// Open flags for the backing file.
    #[prost(uint32, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub fdflags: Option<u32>,
}
