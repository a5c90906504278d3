//! CRIU's `pidns.proto`: external pid namespaces (`pidns-%u.img`).

/// CRIU's `pidns_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PidnsEntry {
    #[prost(string, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext_key: Option<String>,
}
