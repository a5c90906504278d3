//! CRIU's `inventory.proto`: the first file to be read (`inventory.img`).

use super::TaskKobjIdsEntry;

/// CRIU's `lsmtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Lsmtype {
    NoLsm = 0,
    Selinux = 1,
    Apparmor = 2,
}

impl super::CriuEnum for Lsmtype {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::NoLsm => "NO_LSM",
            Self::Selinux => "SELINUX",
            Self::Apparmor => "APPARMOR",
        })
    }
}

/// CRIU's `plugins_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PluginsEntry {
    #[prost(string, repeated, tag = "12")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
}

/// CRIU's `inventory_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct InventoryEntry {
    /// 1 = V1, 2 = V1.1.
    #[prost(uint32, required, tag = "1")]
    pub img_version: u32,
    #[prost(bool, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdinfo_per_id: Option<bool>,
    /// Ids of the dumper itself (host namespaces).
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_ids: Option<TaskKobjIdsEntry>,
    #[prost(bool, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_per_id: Option<bool>,
    /// Cgroup set of the dumper; nonzero.
    #[prost(uint32, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_cg_set: Option<u32>,
    #[prost(enumeration = "Lsmtype", optional, tag = "6")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<Lsmtype, _>"
    )]
    pub lsmtype: Option<i32>,
    /// Microseconds, only with memory tracking.
    #[prost(uint64, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump_uptime: Option<u64>,
    /// 1 splice, 2 read; written by pre-dump only.
    #[prost(uint32, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_dump_mode: Option<u32>,
    #[prost(bool, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_close: Option<bool>,
    /// 0 iptables, 1 nftables, 2 skip (not the RPC enum).
    #[prost(uint32, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_lock_method: Option<u32>,
    /// Absent = all plugins allowed.
    #[prost(message, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugins_entry: Option<PluginsEntry>,
    #[prost(string, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump_criu_run_id: Option<String>,
    #[prost(bool, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_uprobes: Option<bool>,
}
