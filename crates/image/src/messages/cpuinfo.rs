//! CRIU's `cpuinfo.proto`: processor capabilities (`cpuinfo.img`).

/// CRIU's `cpuinfo_x86_entry.vendor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CpuinfoX86EntryVendor {
    Unknown = 0,
    Intel = 1,
    Amd = 2,
}

impl super::CriuEnum for CpuinfoX86EntryVendor {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Unknown => "UNKNOWN",
            Self::Intel => "INTEL",
            Self::Amd => "AMD",
        })
    }
}

/// CRIU's `cpuinfo_ppc64_entry.endianness`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CpuinfoPpc64EntryEndianness {
    Bigendian = 0,
    Littleendian = 1,
}

impl super::CriuEnum for CpuinfoPpc64EntryEndianness {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Bigendian => "BIGENDIAN",
            Self::Littleendian => "LITTLEENDIAN",
        })
    }
}

/// CRIU's `cpuinfo_x86_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CpuinfoX86Entry {
    #[prost(enumeration = "CpuinfoX86EntryVendor", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<CpuinfoX86EntryVendor, _>")]
    pub vendor_id: i32,
    #[prost(uint32, required, tag = "2")]
    pub cpu_family: u32,
    #[prost(uint32, required, tag = "3")]
    pub model: u32,
    #[prost(uint32, required, tag = "4")]
    pub stepping: u32,
    #[prost(uint32, required, tag = "5")]
    pub capability_ver: u32,
    #[prost(uint32, repeated, packed = "false", tag = "6")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capability: Vec<u32>,
    #[prost(string, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    #[prost(uint64, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xfeatures_mask: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xsave_size: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xsave_size_max: Option<u32>,
}

/// CRIU's `cpuinfo_ppc64_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CpuinfoPpc64Entry {
    #[prost(enumeration = "CpuinfoPpc64EntryEndianness", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<CpuinfoPpc64EntryEndianness, _>")]
    pub endian: i32,
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hwcap: Vec<u64>,
}

/// CRIU's `cpuinfo_s390_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CpuinfoS390Entry {
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hwcap: Vec<u64>,
}

/// CRIU's `cpuinfo_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct CpuinfoEntry {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub x86_entry: Vec<CpuinfoX86Entry>,
    #[prost(message, repeated, tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ppc64_entry: Vec<CpuinfoPpc64Entry>,
    #[prost(message, repeated, tag = "3")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub s390_entry: Vec<CpuinfoS390Entry>,
}
