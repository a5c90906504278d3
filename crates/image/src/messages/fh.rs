//! CRIU's `fh.proto`: file handles and the inode-to-path cache (inside watch entries, and `irmap-cache`).

/// CRIU's `fh_entry_sizes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FhEntrySizes {
    MinEntries = 16,
}

impl super::CriuEnum for FhEntrySizes {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::MinEntries => "min_entries",
        })
    }
}

/// CRIU's `fh_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FhEntry {
    #[prost(uint32, required, tag = "1")]
    pub bytes: u32,
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub handle: Vec<u64>,
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[prost(uint32, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mnt_id: Option<u32>,
}

/// CRIU's `irmap_cache_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct IrmapCacheEntry {
    /// Device major:minor (new kernel encoding); device major:minor (old/compat encoding).
    #[prost(uint32, required, tag = "1")]
    pub dev: u32,
    #[prost(uint64, required, tag = "2")]
    pub inode: u64,
    #[prost(string, required, tag = "3")]
    pub path: String,
}
