//! CRIU's `sa.proto`: signal actions (inside `core-%u.img`).

/// CRIU's `sa_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SaEntry {
    #[prost(uint64, required, tag = "1")]
    #[serde(serialize_with = "super::readable::hex")]
    pub sigaction: u64,
    #[prost(uint64, required, tag = "2")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u64,
    #[prost(uint64, required, tag = "3")]
    #[serde(serialize_with = "super::readable::hex")]
    pub restorer: u64,
    #[prost(uint64, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mask: u64,
    #[prost(bool, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compat_sigaction: Option<bool>,
    #[prost(uint64, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub mask_extended: Option<u64>,
}
