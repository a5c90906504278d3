//! CRIU's `sit.proto`: SIT tunnel devices (inside `netdev-%u.img`).

/// CRIU's `sit_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SitEntry {
    #[prost(uint32, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<u32>,
    /// IPv4/IPv6 address words (network order).
    #[prost(uint32, repeated, packed = "false", tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<u32>,
    /// IPv4/IPv6 address words (network order).
    #[prost(uint32, repeated, packed = "false", tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remote: Vec<u32>,
    #[prost(uint32, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<u32>,
    #[prost(bool, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmtudisc: Option<bool>,
    #[prost(uint32, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap_type: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap_flags: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap_sport: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap_dport: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rd_prefixlen: Option<u32>,
    /// IPv4/IPv6 address words (network order).
    #[prost(uint32, repeated, packed = "false", tag = "14")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rd_prefix: Vec<u32>,
    #[prost(uint32, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_prefixlen: Option<u32>,
    /// IPv4/IPv6 address words (network order).
    #[prost(uint32, repeated, packed = "false", tag = "16")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relay_prefix: Vec<u32>,
}
