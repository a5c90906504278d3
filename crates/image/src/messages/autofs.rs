//! CRIU's `autofs.proto`: autofs mounts (`autofs-%u.img`).

/// CRIU's `autofs_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct AutofsEntry {
    #[prost(int32, required, tag = "1")]
    pub fd: i32,
    #[prost(int32, required, tag = "2")]
    pub pgrp: i32,
    #[prost(int32, required, tag = "3")]
    pub timeout: i32,
    #[prost(int32, required, tag = "4")]
    pub minproto: i32,
    #[prost(int32, required, tag = "5")]
    pub maxproto: i32,
    #[prost(int32, required, tag = "6")]
    pub mode: i32,
    #[prost(int32, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<i32>,
    #[prost(int32, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<i32>,
    #[prost(int32, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_fd: Option<i32>,
}
