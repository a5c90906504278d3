//! CRIU's `rlimit.proto`: resource limits (inside `core-%u.img`).

/// CRIU's `rlimit_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct RlimitEntry {
    /// All ones = infinity.
    #[prost(uint64, required, tag = "1")]
    pub cur: u64,
    /// All ones = infinity.
    #[prost(uint64, required, tag = "2")]
    pub max: u64,
}
