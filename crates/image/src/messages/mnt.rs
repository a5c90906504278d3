//! CRIU's `mnt.proto`: a mount (`mountpoints-%u.img`).

/// CRIU's `fstype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Fstype {
    Unsupported = 0,
    Proc = 1,
    Sysfs = 2,
    Devtmpfs = 3,
    BinfmtMisc = 4,
    Tmpfs = 5,
    Devpts = 6,
    Simfs = 7,
    Pstore = 8,
    Securityfs = 9,
    Fusectl = 10,
    Debugfs = 11,
    Cgroup = 12,
    Aufs = 13,
    Mqueue = 14,
    Fuse = 15,
    Auto = 16,
    Overlayfs = 17,
    Autofs = 18,
    Tracefs = 19,
    Cgroup2 = 23,
}

impl super::CriuEnum for Fstype {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Unsupported => "UNSUPPORTED",
            Self::Proc => "PROC",
            Self::Sysfs => "SYSFS",
            Self::Devtmpfs => "DEVTMPFS",
            Self::BinfmtMisc => "BINFMT_MISC",
            Self::Tmpfs => "TMPFS",
            Self::Devpts => "DEVPTS",
            Self::Simfs => "SIMFS",
            Self::Pstore => "PSTORE",
            Self::Securityfs => "SECURITYFS",
            Self::Fusectl => "FUSECTL",
            Self::Debugfs => "DEBUGFS",
            Self::Cgroup => "CGROUP",
            Self::Aufs => "AUFS",
            Self::Mqueue => "MQUEUE",
            Self::Fuse => "FUSE",
            Self::Auto => "AUTO",
            Self::Overlayfs => "OVERLAYFS",
            Self::Autofs => "AUTOFS",
            Self::Tracefs => "TRACEFS",
            Self::Cgroup2 => "CGROUP2",
        })
    }
}

/// CRIU's `mnt_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct MntEntry {
    #[prost(uint32, required, tag = "1")]
    pub fstype: u32,
    #[prost(uint32, required, tag = "2")]
    pub mnt_id: u32,
    /// Device major:minor (new kernel encoding).
    #[prost(uint32, required, tag = "3")]
    pub root_dev: u32,
    #[prost(uint32, required, tag = "4")]
    pub parent_mnt_id: u32,
    #[prost(uint32, required, tag = "5")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(string, required, tag = "6")]
    pub root: String,
    #[prost(string, required, tag = "7")]
    pub mountpoint: String,
    #[prost(string, required, tag = "8")]
    pub source: String,
    #[prost(string, required, tag = "9")]
    pub options: String,
    #[prost(uint32, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_id: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_id: Option<u32>,
    #[prost(bool, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_plugin: Option<bool>,
    #[prost(bool, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext_mount: Option<bool>,
    #[prost(string, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fsname: Option<String>,
    #[prost(bool, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_sharing: Option<bool>,
    #[prost(bool, optional, tag = "16")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<bool>,
    #[prost(uint32, optional, tag = "17")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub sb_flags: Option<u32>,
    #[prost(string, optional, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext_key: Option<String>,
}
