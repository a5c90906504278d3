//! CRIU's `apparmor.proto`: AppArmor policy namespaces (`apparmor.img`).

/// CRIU's `aa_policy`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct AaPolicy {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", required, tag = "2")]
    #[serde(serialize_with = "super::readable::hex")]
    pub blob: Vec<u8>,
}

/// CRIU's `aa_namespace`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct AaNamespace {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<AaPolicy>,
    #[prost(message, repeated, tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<AaNamespace>,
}

/// CRIU's `apparmor_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ApparmorEntry {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<AaNamespace>,
}
