//! CRIU's `tun.proto`: TUN/TAP devices and their files (`files.img` and `netdev-%u.img`).

/// CRIU's `tunfile_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TunfileEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(string, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netdev: Option<String>,
    #[prost(bool, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detached: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_id: Option<u32>,
}

/// CRIU's `tun_link_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TunLinkEntry {
    #[prost(uint32, required, tag = "1")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(int32, required, tag = "2")]
    pub owner: i32,
    #[prost(int32, required, tag = "3")]
    pub group: i32,
    #[prost(uint32, required, tag = "4")]
    pub vnethdr: u32,
    #[prost(uint32, required, tag = "5")]
    pub sndbuf: u32,
}
