//! CRIU's `creds.proto`: credentials and capabilities (inside `core-%u.img`).

/// CRIU's `creds_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CredsEntry {
    #[prost(uint32, required, tag = "1")]
    pub uid: u32,
    #[prost(uint32, required, tag = "2")]
    pub gid: u32,
    #[prost(uint32, required, tag = "3")]
    pub euid: u32,
    #[prost(uint32, required, tag = "4")]
    pub egid: u32,
    #[prost(uint32, required, tag = "5")]
    pub suid: u32,
    #[prost(uint32, required, tag = "6")]
    pub sgid: u32,
    #[prost(uint32, required, tag = "7")]
    pub fsuid: u32,
    #[prost(uint32, required, tag = "8")]
    pub fsgid: u32,
    /// 32-bit words, low first.
    #[prost(uint32, repeated, packed = "false", tag = "9")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_inh: Vec<u32>,
    /// 32-bit words, low first.
    #[prost(uint32, repeated, packed = "false", tag = "10")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_prm: Vec<u32>,
    /// 32-bit words, low first.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_eff: Vec<u32>,
    /// 32-bit words, low first.
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_bnd: Vec<u32>,
    #[prost(uint32, required, tag = "13")]
    pub secbits: u32,
    #[prost(uint32, repeated, packed = "false", tag = "14")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
    #[prost(string, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsm_profile: Option<String>,
    #[prost(string, optional, tag = "16")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsm_sockcreate: Option<String>,
    #[prost(bytes = "vec", optional, tag = "17")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub apparmor_data: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_new_privs: Option<u32>,
    /// 32-bit words, low first.
    #[prost(uint32, repeated, packed = "false", tag = "19")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_amb: Vec<u32>,
}
