//! CRIU's `sk-inet.proto`: IPv4 and IPv6 sockets (`files.img`).

use super::{FownEntry, SkOptsEntry, SkShutdown, TcpOptsEntry};

/// CRIU's `ip_opts_raw_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct IpOptsRawEntry {
    #[prost(bool, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hdrincl: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodefrag: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<bool>,
    #[prost(uint32, repeated, packed = "false", tag = "4")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub icmpv_filter: Vec<u32>,
}

/// CRIU's `ip_opts_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct IpOptsEntry {
    #[prost(bool, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freebind: Option<bool>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<IpOptsRawEntry>,
    #[prost(bool, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pktinfo: Option<bool>,
    #[prost(uint32, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
}

/// CRIU's `inet_sk_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct InetSkEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Names tcp-stream-%x.img.
    #[prost(uint32, required, tag = "2")]
    pub ino: u32,
    /// Dictionary: sk.
    #[prost(uint32, required, tag = "3")]
    pub family: u32,
    /// Dictionary: sk.
    #[prost(uint32, required, tag = "4")]
    pub r#type: u32,
    /// Dictionary: sk.
    #[prost(uint32, required, tag = "5")]
    pub proto: u32,
    /// Dictionary: sk.
    #[prost(uint32, required, tag = "6")]
    pub state: u32,
    /// Host order.
    #[prost(uint32, required, tag = "7")]
    pub src_port: u32,
    /// Host order.
    #[prost(uint32, required, tag = "8")]
    pub dst_port: u32,
    #[prost(uint32, required, tag = "9")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(uint32, required, tag = "10")]
    pub backlog: u32,
    /// IPv4/IPv6 address words (network order).
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub src_addr: Vec<u32>,
    /// IPv4/IPv6 address words (network order).
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dst_addr: Vec<u32>,
    #[prost(message, required, tag = "13")]
    pub fown: FownEntry,
    #[prost(message, required, tag = "14")]
    pub opts: SkOptsEntry,
    #[prost(bool, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6only: Option<bool>,
    #[prost(message, optional, tag = "16")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_opts: Option<IpOptsEntry>,
    #[prost(string, optional, tag = "17")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    #[prost(uint32, optional, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_id: Option<u32>,
    #[prost(enumeration = "SkShutdown", optional, tag = "19")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<SkShutdown, _>"
    )]
    pub shutdown: Option<i32>,
    #[prost(message, optional, tag = "20")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_opts: Option<TcpOptsEntry>,
    /// Arctern's own, passed over by CRIU: options that differ from those of a new socket.
    #[prost(message, repeated, tag = "4096")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more_opts: Vec<SocketOption>,
    /// Arctern's own, passed over by CRIU: name of the congestion control of a TCP socket.
    #[prost(string, optional, tag = "4097")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<String>,
}

/// A socket option whose value is an int (Arctern's own message).
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SocketOption {
    /// Level of setsockopt(2).
    #[prost(int32, required, tag = "1")]
    pub level: i32,
    /// Name of the option.
    #[prost(int32, required, tag = "2")]
    pub name: i32,
    /// Its value.
    #[prost(int32, required, tag = "3")]
    pub value: i32,
}
