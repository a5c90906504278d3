//! CRIU's `userns.proto`: id mappings of a user namespace (`userns-%u.img`).

/// CRIU's `uid_gid_extent`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct UidGidExtent {
    #[prost(uint32, required, tag = "1")]
    pub first: u32,
    #[prost(uint32, required, tag = "2")]
    pub lower_first: u32,
    #[prost(uint32, required, tag = "3")]
    pub count: u32,
}

/// CRIU's `userns_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct UsernsEntry {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_map: Vec<UidGidExtent>,
    #[prost(message, repeated, tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_map: Vec<UidGidExtent>,
}
