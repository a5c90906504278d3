//! CRIU's `sysctl.proto`: one sysctl value (inside network and IPC entries).

/// CRIU's `SysctlType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SysctlType {
    CtlStr = 5,
    Ctl32 = 6,
}

impl super::CriuEnum for SysctlType {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::CtlStr => "CTL_STR",
            Self::Ctl32 => "CTL_32",
        })
    }
}

/// CRIU's `sysctl_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SysctlEntry {
    #[prost(enumeration = "SysctlType", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<SysctlType, _>")]
    pub r#type: i32,
    #[prost(int32, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iarg: Option<i32>,
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sarg: Option<String>,
}
