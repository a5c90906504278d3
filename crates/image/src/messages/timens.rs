//! CRIU's `timens.proto`: clock offsets of a time namespace (`timens-%u.img`).

/// CRIU's `timespec`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Timespec {
    #[prost(uint64, required, tag = "1")]
    pub tv_sec: u64,
    #[prost(uint64, required, tag = "2")]
    pub tv_nsec: u64,
}

/// CRIU's `timens_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TimensEntry {
    #[prost(message, required, tag = "1")]
    pub monotonic: Timespec,
    #[prost(message, required, tag = "2")]
    pub boottime: Timespec,
}
