//! CRIU's `core.proto`: the core of a task or thread (`core-%u.img` and `ids-%u.img`).

use super::{
    CredsEntry, RlimitEntry, RseqEntry, SaEntry, SignalQueueEntry, TaskTimersEntry, ThreadInfoX86,
};

/// CRIU's `seccomp_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SeccompMode {
    Disabled = 0,
    Strict = 1,
    Filter = 2,
}

impl super::CriuEnum for SeccompMode {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Disabled => "disabled",
            Self::Strict => "strict",
            Self::Filter => "filter",
        })
    }
}

/// CRIU's `core_entry.march`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CoreEntryMarch {
    Unknown = 0,
    X8664 = 1,
    Arm = 2,
    Aarch64 = 3,
    Ppc64 = 4,
    S390 = 5,
    Mips = 6,
    Loongarch64 = 7,
    Riscv64 = 8,
}

impl super::CriuEnum for CoreEntryMarch {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Unknown => "UNKNOWN",
            Self::X8664 => "X86_64",
            Self::Arm => "ARM",
            Self::Aarch64 => "AARCH64",
            Self::Ppc64 => "PPC64",
            Self::S390 => "S390",
            Self::Mips => "MIPS",
            Self::Loongarch64 => "LOONGARCH64",
            Self::Riscv64 => "RISCV64",
        })
    }
}

/// CRIU's `task_core_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TaskCoreEntry {
    /// Dictionary: gen; 1 alive, 2 dead (zombie), 3 stopped, 6 zombie.
    #[prost(uint32, required, tag = "1")]
    pub task_state: u32,
    /// Raw wait status, zombies only.
    #[prost(uint32, required, tag = "2")]
    pub exit_code: u32,
    #[prost(uint32, required, tag = "3")]
    pub personality: u32,
    /// PF_* word from /proc stat.
    #[prost(uint32, required, tag = "4")]
    pub flags: u32,
    /// Low 64 signals.
    #[prost(uint64, required, tag = "5")]
    #[serde(serialize_with = "super::readable::hex")]
    pub blk_sigset: u64,
    #[prost(string, required, tag = "6")]
    pub comm: String,
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timers: Option<TaskTimersEntry>,
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimits: Option<TaskRlimitsEntry>,
    /// Old; now per thread.
    #[prost(uint32, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cg_set: Option<u32>,
    /// Process-wide pending queue.
    #[prost(message, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signals_s: Option<SignalQueueEntry>,
    #[prost(enumeration = "SeccompMode", optional, tag = "11")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<SeccompMode, _>"
    )]
    pub old_seccomp_mode: Option<i32>,
    #[prost(uint32, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_seccomp_filter: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loginuid: Option<u32>,
    #[prost(int32, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Signals 1..64 without 9 and 19, in order.
    #[prost(message, repeated, tag = "15")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sigactions: Vec<SaEntry>,
    #[prost(bool, optional, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_subreaper: Option<bool>,
    #[prost(uint64, optional, tag = "20")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub blk_sigset_extended: Option<u64>,
    #[prost(uint32, optional, tag = "21")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signo: Option<u32>,
    #[prost(uint32, optional, tag = "22")]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::readable::hex")]
    pub membarrier_registration_mask: Option<u32>,
}

/// CRIU's `task_kobj_ids_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TaskKobjIdsEntry {
    #[prost(uint32, required, tag = "1")]
    pub vm_id: u32,
    /// Names fdinfo-%u.img.
    #[prost(uint32, required, tag = "2")]
    pub files_id: u32,
    #[prost(uint32, required, tag = "3")]
    pub fs_id: u32,
    #[prost(uint32, required, tag = "4")]
    pub sighand_id: u32,
    #[prost(uint32, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uts_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mnt_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ns_id: Option<u32>,
}

/// CRIU's `thread_sas_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ThreadSasEntry {
    #[prost(uint64, required, tag = "1")]
    pub ss_sp: u64,
    #[prost(uint64, required, tag = "2")]
    pub ss_size: u64,
    #[prost(uint32, required, tag = "3")]
    pub ss_flags: u32,
}

/// CRIU's `thread_core_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ThreadCoreEntry {
    /// Robust list head address.
    #[prost(uint64, required, tag = "1")]
    pub futex_rla: u64,
    #[prost(uint32, required, tag = "2")]
    pub futex_rla_len: u32,
    #[prost(sint32, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_nice: Option<i32>,
    #[prost(uint32, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_policy: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_prio: Option<u32>,
    #[prost(uint64, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blk_sigset: Option<u64>,
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sas: Option<ThreadSasEntry>,
    #[prost(uint32, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pdeath_sig: Option<u32>,
    /// Thread pending queue.
    #[prost(message, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signals_p: Option<SignalQueueEntry>,
    #[prost(message, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<CredsEntry>,
    #[prost(enumeration = "SeccompMode", optional, tag = "11")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<SeccompMode, _>"
    )]
    pub seccomp_mode: Option<i32>,
    /// Index into seccomp.img chain.
    #[prost(uint32, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp_filter: Option<u32>,
    #[prost(string, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    #[prost(uint64, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blk_sigset_extended: Option<u64>,
    #[prost(message, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rseq_entry: Option<RseqEntry>,
    /// Id of a cg_set_entry.
    #[prost(uint32, optional, tag = "16")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cg_set: Option<u32>,
}

/// CRIU's `task_rlimits_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct TaskRlimitsEntry {
    /// Index is RLIMIT_* number.
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<RlimitEntry>,
}

/// CRIU's `core_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CoreEntry {
    #[prost(enumeration = "CoreEntryMarch", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<CoreEntryMarch, _>")]
    pub mtype: i32,
    /// X86-64 registers.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_info: Option<ThreadInfoX86>,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tc: Option<TaskCoreEntry>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<TaskKobjIdsEntry>,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_core: Option<ThreadCoreEntry>,
}
