//! CRIU's `seccomp.proto`: seccomp filters (`seccomp.img`).

/// CRIU's `seccomp_filter`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SeccompFilter {
    /// Sock_filter array.
    #[prost(bytes = "vec", required, tag = "1")]
    #[serde(serialize_with = "super::readable::hex")]
    pub filter: Vec<u8>,
    /// Index of the parent filter.
    #[prost(uint32, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<u32>,
}

/// CRIU's `seccomp_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SeccompEntry {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seccomp_filters: Vec<SeccompFilter>,
}
