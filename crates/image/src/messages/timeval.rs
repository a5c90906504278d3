//! CRIU's `time.proto`: a timeval (inside socket options).

/// CRIU's `timeval`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Timeval {
    #[prost(uint64, required, tag = "1")]
    pub tv_sec: u64,
    #[prost(uint64, required, tag = "2")]
    pub tv_usec: u64,
}
