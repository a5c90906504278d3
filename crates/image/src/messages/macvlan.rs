//! CRIU's `macvlan.proto`: macvlan devices (inside `netdev-%u.img`).

/// CRIU's `macvlan_link_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct MacvlanLinkEntry {
    #[prost(uint32, required, tag = "1")]
    pub mode: u32,
    #[prost(uint32, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<u32>,
}
