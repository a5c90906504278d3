//! CRIU's `netdev.proto`: network namespaces and devices (`netns-%u.img` and `netdev-%u.img`).

use super::{MacvlanLinkEntry, SitEntry, SysctlEntry, TunLinkEntry};

/// CRIU's `nd_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NdType {
    Loopback = 1,
    Veth = 2,
    Tun = 3,
    Extlink = 4,
    Venet = 5,
    Bridge = 6,
    Macvlan = 7,
    Sit = 8,
}

impl super::CriuEnum for NdType {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Loopback => "LOOPBACK",
            Self::Veth => "VETH",
            Self::Tun => "TUN",
            Self::Extlink => "EXTLINK",
            Self::Venet => "VENET",
            Self::Bridge => "BRIDGE",
            Self::Macvlan => "MACVLAN",
            Self::Sit => "SIT",
        })
    }
}

/// CRIU's `net_device_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct NetDeviceEntry {
    #[prost(enumeration = "NdType", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<NdType, _>")]
    pub r#type: i32,
    #[prost(uint32, required, tag = "2")]
    pub ifindex: u32,
    #[prost(uint32, required, tag = "3")]
    pub mtu: u32,
    #[prost(uint32, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(string, required, tag = "5")]
    pub name: String,
    #[prost(message, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tun: Option<TunLinkEntry>,
    /// Link-layer address.
    #[prost(bytes = "vec", optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub address: Option<Vec<u8>>,
    #[prost(int32, repeated, packed = "false", tag = "8")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conf: Vec<i32>,
    #[prost(message, repeated, tag = "9")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conf4: Vec<SysctlEntry>,
    #[prost(message, repeated, tag = "10")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conf6: Vec<SysctlEntry>,
    #[prost(message, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macvlan: Option<MacvlanLinkEntry>,
    #[prost(uint32, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_ifindex: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_nsid: Option<u32>,
    #[prost(uint32, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<u32>,
    #[prost(message, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sit: Option<SitEntry>,
}

/// CRIU's `netns_id`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct NetnsId {
    #[prost(uint32, required, tag = "1")]
    pub target_ns_id: u32,
    #[prost(int32, required, tag = "2")]
    pub netnsid_value: i32,
}

/// CRIU's `netns_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct NetnsEntry {
    #[prost(int32, repeated, packed = "false", tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub def_conf: Vec<i32>,
    #[prost(int32, repeated, packed = "false", tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub all_conf: Vec<i32>,
    #[prost(message, repeated, tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub def_conf4: Vec<SysctlEntry>,
    #[prost(message, repeated, tag = "4")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub all_conf4: Vec<SysctlEntry>,
    #[prost(message, repeated, tag = "5")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub def_conf6: Vec<SysctlEntry>,
    #[prost(message, repeated, tag = "6")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub all_conf6: Vec<SysctlEntry>,
    #[prost(message, repeated, tag = "7")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nsids: Vec<NetnsId>,
    #[prost(string, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext_key: Option<String>,
    #[prost(message, repeated, tag = "9")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unix_conf: Vec<SysctlEntry>,
    #[prost(message, repeated, tag = "10")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipv4_sysctl: Vec<SysctlEntry>,
}
