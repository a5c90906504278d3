//! CRIU's `file-lock.proto`: file locks and leases (`filelocks.img`).

/// CRIU's `file_lock_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FileLockEntry {
    /// 1 posix, 2 flock, 4 ofd, 8 lease.
    #[prost(uint32, required, tag = "1")]
    pub flag: u32,
    /// 0 read, 1 write, 2 unlock (mandatory bits added).
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    #[prost(int32, required, tag = "3")]
    pub pid: i32,
    #[prost(int32, required, tag = "4")]
    pub fd: i32,
    #[prost(int64, required, tag = "5")]
    pub start: i64,
    #[prost(int64, required, tag = "6")]
    pub len: i64,
}
