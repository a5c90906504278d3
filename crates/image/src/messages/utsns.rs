//! CRIU's `utsns.proto`: host and domain name (`utsns-%u.img`).

/// CRIU's `utsns_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct UtsnsEntry {
    #[prost(string, required, tag = "1")]
    pub nodename: String,
    #[prost(string, required, tag = "2")]
    pub domainname: String,
}
