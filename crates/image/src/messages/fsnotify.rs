//! CRIU's `fsnotify.proto`: inotify and fanotify (`files.img`).

use super::{FhEntry, FownEntry};

/// CRIU's `mark_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MarkType {
    Inode = 1,
    Mount = 2,
}

impl super::CriuEnum for MarkType {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Inode => "INODE",
            Self::Mount => "MOUNT",
        })
    }
}

/// CRIU's `inotify_wd_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct InotifyWdEntry {
    /// 0 when nested in files.img.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint64, required, tag = "2")]
    pub i_ino: u64,
    #[prost(uint32, required, tag = "3")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mask: u32,
    #[prost(uint32, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub ignored_mask: u32,
    /// Device major:minor (new kernel encoding).
    #[prost(uint32, required, tag = "5")]
    pub s_dev: u32,
    #[prost(uint32, required, tag = "6")]
    pub wd: u32,
    #[prost(message, required, tag = "7")]
    pub f_handle: FhEntry,
}

/// CRIU's `inotify_file_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct InotifyFileEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(message, required, tag = "4")]
    pub fown: FownEntry,
    #[prost(message, repeated, tag = "5")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wd: Vec<InotifyWdEntry>,
}

/// CRIU's `fanotify_inode_mark_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FanotifyInodeMarkEntry {
    #[prost(uint64, required, tag = "1")]
    pub i_ino: u64,
    #[prost(message, required, tag = "2")]
    pub f_handle: FhEntry,
}

/// CRIU's `fanotify_mount_mark_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FanotifyMountMarkEntry {
    #[prost(uint32, required, tag = "1")]
    pub mnt_id: u32,
    #[prost(string, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// CRIU's `fanotify_mark_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FanotifyMarkEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(enumeration = "MarkType", required, tag = "2")]
    #[serde(serialize_with = "super::readable::name::<MarkType, _>")]
    pub r#type: i32,
    #[prost(uint32, required, tag = "3")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mflags: u32,
    #[prost(uint32, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mask: u32,
    #[prost(uint32, required, tag = "5")]
    #[serde(serialize_with = "super::readable::hex")]
    pub ignored_mask: u32,
    /// Device major:minor (new kernel encoding).
    #[prost(uint32, required, tag = "6")]
    pub s_dev: u32,
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ie: Option<FanotifyInodeMarkEntry>,
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub me: Option<FanotifyMountMarkEntry>,
}

/// CRIU's `fanotify_file_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FanotifyFileEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(message, required, tag = "3")]
    pub fown: FownEntry,
    #[prost(uint32, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub faflags: u32,
    #[prost(uint32, required, tag = "5")]
    #[serde(serialize_with = "super::readable::hex")]
    pub evflags: u32,
    #[prost(message, repeated, tag = "6")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mark: Vec<FanotifyMarkEntry>,
}
