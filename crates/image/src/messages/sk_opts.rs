//! CRIU's `sk-opts.proto`: socket options (inside socket entries).

/// CRIU's `sk_shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SkShutdown {
    None = 0,
    Read = 1,
    Write = 2,
    Both = 3,
}

impl super::CriuEnum for SkShutdown {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::None => "NONE",
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Both => "BOTH",
        })
    }
}

/// CRIU's `sk_opts_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SkOptsEntry {
    #[prost(uint32, required, tag = "1")]
    pub so_sndbuf: u32,
    #[prost(uint32, required, tag = "2")]
    pub so_rcvbuf: u32,
    #[prost(uint64, required, tag = "3")]
    pub so_snd_tmo_sec: u64,
    #[prost(uint64, required, tag = "4")]
    pub so_snd_tmo_usec: u64,
    #[prost(uint64, required, tag = "5")]
    pub so_rcv_tmo_sec: u64,
    #[prost(uint64, required, tag = "6")]
    pub so_rcv_tmo_usec: u64,
    #[prost(bool, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuseaddr: Option<bool>,
    #[prost(uint32, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_priority: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_rcvlowat: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_mark: Option<u32>,
    #[prost(bool, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_passcred: Option<bool>,
    #[prost(bool, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_passsec: Option<bool>,
    #[prost(bool, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_dontroute: Option<bool>,
    #[prost(bool, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_no_check: Option<bool>,
    #[prost(string, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_bound_dev: Option<String>,
    /// Classic BPF instructions, 64 bits each.
    #[prost(fixed64, repeated, packed = "false", tag = "16")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub so_filter: Vec<u64>,
    #[prost(bool, optional, tag = "17")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_reuseport: Option<bool>,
    #[prost(bool, optional, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_broadcast: Option<bool>,
    #[prost(bool, optional, tag = "19")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_keepalive: Option<bool>,
    #[prost(uint32, optional, tag = "20")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepcnt: Option<u32>,
    #[prost(uint32, optional, tag = "21")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepidle: Option<u32>,
    #[prost(uint32, optional, tag = "22")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepintvl: Option<u32>,
    #[prost(uint32, optional, tag = "23")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_oobinline: Option<u32>,
    #[prost(uint32, optional, tag = "24")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_linger: Option<u32>,
    #[prost(uint32, optional, tag = "25")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub so_buf_lock: Option<u32>,
}
