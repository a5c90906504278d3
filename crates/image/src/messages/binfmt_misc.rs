//! CRIU's `binfmt-misc.proto`: binfmt_misc registrations (`binfmt-misc.img`).

/// CRIU's `binfmt_misc_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct BinfmtMiscEntry {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(bool, required, tag = "2")]
    pub enabled: bool,
    #[prost(string, required, tag = "3")]
    pub interpreter: String,
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    #[prost(string, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
    #[prost(string, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub magic: Option<String>,
    #[prost(string, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    #[prost(int32, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i32>,
}
