//! CRIU's `rpc.proto`: CRIU's service protocol (its SOCK_SEQPACKET socket, unframed).

/// CRIU's `criu_cg_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CriuCgMode {
    Ignore = 0,
    CgNone = 1,
    Props = 2,
    Soft = 3,
    Full = 4,
    Strict = 5,
    Default = 6,
}

impl super::CriuEnum for CriuCgMode {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Ignore => "IGNORE",
            Self::CgNone => "CG_NONE",
            Self::Props => "PROPS",
            Self::Soft => "SOFT",
            Self::Full => "FULL",
            Self::Strict => "STRICT",
            Self::Default => "DEFAULT",
        })
    }
}

/// CRIU's `criu_network_lock_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CriuNetworkLockMethod {
    Iptables = 1,
    Nftables = 2,
    Skip = 3,
}

impl super::CriuEnum for CriuNetworkLockMethod {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Iptables => "IPTABLES",
            Self::Nftables => "NFTABLES",
            Self::Skip => "SKIP",
        })
    }
}

/// CRIU's `criu_pre_dump_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CriuPreDumpMode {
    Splice = 1,
    VmRead = 2,
}

impl super::CriuEnum for CriuPreDumpMode {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Splice => "SPLICE",
            Self::VmRead => "VM_READ",
        })
    }
}

/// CRIU's `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CriuReqType {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Check = 3,
    PreDump = 4,
    PageServer = 5,
    Notify = 6,
    CpuinfoDump = 7,
    CpuinfoCheck = 8,
    FeatureCheck = 9,
    Version = 10,
    WaitPid = 11,
    PageServerChld = 12,
    SinglePreDump = 13,
}

impl super::CriuEnum for CriuReqType {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Empty => "EMPTY",
            Self::Dump => "DUMP",
            Self::Restore => "RESTORE",
            Self::Check => "CHECK",
            Self::PreDump => "PRE_DUMP",
            Self::PageServer => "PAGE_SERVER",
            Self::Notify => "NOTIFY",
            Self::CpuinfoDump => "CPUINFO_DUMP",
            Self::CpuinfoCheck => "CPUINFO_CHECK",
            Self::FeatureCheck => "FEATURE_CHECK",
            Self::Version => "VERSION",
            Self::WaitPid => "WAIT_PID",
            Self::PageServerChld => "PAGE_SERVER_CHLD",
            Self::SinglePreDump => "SINGLE_PRE_DUMP",
        })
    }
}

/// CRIU's `criu_page_server_info`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuPageServerInfo {
    #[prost(string, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[prost(int32, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
}

/// CRIU's `criu_veth_pair`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuVethPair {
    #[prost(string, required, tag = "1")]
    pub if_in: String,
    #[prost(string, required, tag = "2")]
    pub if_out: String,
}

/// CRIU's `ext_mount_map`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ExtMountMap {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(string, required, tag = "2")]
    pub val: String,
}

/// CRIU's `join_namespace`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct JoinNamespace {
    #[prost(string, required, tag = "1")]
    pub ns: String,
    #[prost(string, required, tag = "2")]
    pub ns_file: String,
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_opt: Option<String>,
}

/// CRIU's `inherit_fd`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct InheritFd {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// CRIU's `cgroup_root`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CgroupRoot {
    #[prost(string, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctrl: Option<String>,
    #[prost(string, required, tag = "2")]
    pub path: String,
}

/// CRIU's `unix_sk`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct UnixSk {
    #[prost(uint32, required, tag = "1")]
    pub inode: u32,
}

/// CRIU's `criu_opts`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuOpts {
    /// Fd number in the client, opened via /proc.
    #[prost(int32, required, tag = "1", default = "-1")]
    pub images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext_unix_sk: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evasive_devices: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9", default = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_file: Option<String>,
    #[prost(message, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ps: Option<CriuPageServerInfo>,
    #[prost(bool, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    #[prost(string, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_img: Option<String>,
    #[prost(bool, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_mem: Option<bool>,
    #[prost(bool, optional, tag = "16")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_dedup: Option<bool>,
    /// Fd number in the client, opened via /proc.
    #[prost(int32, optional, tag = "17")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_remap: Option<bool>,
    #[prost(message, repeated, tag = "19")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub veths: Vec<CriuVethPair>,
    /// 1 fpu, 2 cpu, 4 ins, 8 image.
    #[prost(uint32, optional, tag = "20", default = "4294967295")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cap: Option<u32>,
    #[prost(bool, optional, tag = "21")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_irmap: Option<bool>,
    #[prost(string, repeated, tag = "22")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exec_cmd: Vec<String>,
    #[prost(message, repeated, tag = "23")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ext_mnt: Vec<ExtMountMap>,
    #[prost(bool, optional, tag = "24")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manage_cgroups: Option<bool>,
    #[prost(message, repeated, tag = "25")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cg_root: Vec<CgroupRoot>,
    #[prost(bool, optional, tag = "26")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inherit_fd: Vec<InheritFd>,
    #[prost(bool, optional, tag = "28")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_ext_mnt: Option<bool>,
    #[prost(bool, optional, tag = "29")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext_sharing: Option<bool>,
    #[prost(bool, optional, tag = "30")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext_masters: Option<bool>,
    #[prost(string, repeated, tag = "31")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skip_mnt: Vec<String>,
    #[prost(string, repeated, tag = "32")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub enable_fs: Vec<String>,
    #[prost(message, repeated, tag = "33")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unix_sk_ino: Vec<UnixSk>,
    #[prost(enumeration = "CriuCgMode", optional, tag = "34")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<CriuCgMode, _>"
    )]
    pub manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35", default = "1048576")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "36")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub irmap_scan_paths: Vec<String>,
    #[prost(string, repeated, tag = "37")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<String>,
    /// CLONE_NEW* mask; only CLONE_NEWNET accepted.
    #[prost(uint32, optional, tag = "38")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_ns: Option<u32>,
    #[prost(message, repeated, tag = "39")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub join_ns: Vec<JoinNamespace>,
    #[prost(string, optional, tag = "41")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_props: Option<String>,
    #[prost(string, optional, tag = "42")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_props_file: Option<String>,
    #[prost(string, repeated, tag = "43")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroup_dump_controller: Vec<String>,
    #[prost(string, optional, tag = "44")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_cgroup: Option<String>,
    #[prost(uint32, optional, tag = "45")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    #[prost(bool, optional, tag = "46")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_skip_in_flight: Option<bool>,
    #[prost(bool, optional, tag = "47")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weak_sysctls: Option<bool>,
    #[prost(bool, optional, tag = "48")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_pages: Option<bool>,
    /// Fd number in the client, reopened via /proc.
    #[prost(int32, optional, tag = "49")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_fd: Option<i32>,
    #[prost(bool, optional, tag = "50")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orphan_pts_master: Option<bool>,
    #[prost(string, optional, tag = "51")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
    #[prost(bool, optional, tag = "52")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_close: Option<bool>,
    #[prost(string, optional, tag = "53")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsm_profile: Option<String>,
    #[prost(string, optional, tag = "54")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cacert: Option<String>,
    #[prost(string, optional, tag = "55")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cacrl: Option<String>,
    #[prost(string, optional, tag = "56")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<String>,
    #[prost(string, optional, tag = "57")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
    #[prost(bool, optional, tag = "58")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    #[prost(bool, optional, tag = "59")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_no_cn_verify: Option<bool>,
    #[prost(string, optional, tag = "60")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_yard: Option<String>,
    #[prost(enumeration = "CriuPreDumpMode", optional, tag = "61", default = "Splice")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<CriuPreDumpMode, _>"
    )]
    pub pre_dump_mode: Option<i32>,
    #[prost(int32, optional, tag = "62")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pidfd_store_sk: Option<i32>,
    #[prost(string, optional, tag = "63")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsm_mount_context: Option<String>,
    #[prost(enumeration = "CriuNetworkLockMethod", optional, tag = "64", default = "Iptables")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<CriuNetworkLockMethod, _>"
    )]
    pub network_lock: Option<i32>,
    #[prost(bool, optional, tag = "65")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mntns_compat_mode: Option<bool>,
    #[prost(bool, optional, tag = "66")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_file_rwx_check: Option<bool>,
    #[prost(bool, optional, tag = "67")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unprivileged: Option<bool>,
    #[prost(string, optional, tag = "68")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_dir: Option<String>,
    #[prost(bool, optional, tag = "69")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_stopped: Option<bool>,
    #[prost(bool, optional, tag = "70")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_stats: Option<bool>,
    #[prost(bool, optional, tag = "71")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_to_stderr: Option<bool>,
}

/// CRIU's `criu_dump_resp`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuDumpResp {
    #[prost(bool, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<bool>,
}

/// CRIU's `criu_restore_resp`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuRestoreResp {
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// CRIU's `criu_notify`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuNotify {
    #[prost(string, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

/// CRIU's `criu_features`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuFeatures {
    #[prost(bool, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_track: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_pages: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pidfd_store: Option<bool>,
}

/// CRIU's `criu_req`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuReq {
    #[prost(enumeration = "CriuReqType", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<CriuReqType, _>")]
    pub r#type: i32,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opts: Option<CriuOpts>,
    #[prost(bool, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify_success: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_open: Option<bool>,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<CriuFeatures>,
    #[prost(uint32, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// CRIU's `criu_resp`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuResp {
    #[prost(enumeration = "CriuReqType", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<CriuReqType, _>")]
    pub r#type: i32,
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<CriuDumpResp>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<CriuRestoreResp>,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<CriuNotify>,
    #[prost(message, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ps: Option<CriuPageServerInfo>,
    #[prost(int32, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cr_errno: Option<i32>,
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<CriuFeatures>,
    #[prost(string, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cr_errmsg: Option<String>,
    #[prost(message, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<CriuVersion>,
    #[prost(int32, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
}

/// CRIU's `criu_version`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CriuVersion {
    #[prost(int32, required, tag = "1")]
    pub major_number: i32,
    #[prost(int32, required, tag = "2")]
    pub minor_number: i32,
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gitid: Option<String>,
    #[prost(int32, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sublevel: Option<i32>,
    #[prost(int32, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<i32>,
    #[prost(string, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
