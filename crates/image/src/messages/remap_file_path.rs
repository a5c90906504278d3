//! CRIU's `remap-file-path.proto`: paths that need help before they can be opened (`remap-fpath.img`).

/// CRIU's `remap_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RemapType {
    Linked = 0,
    Ghost = 1,
    Procfs = 2,
}

impl super::CriuEnum for RemapType {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Linked => "LINKED",
            Self::Ghost => "GHOST",
            Self::Procfs => "PROCFS",
        })
    }
}

/// CRIU's `remap_file_path_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct RemapFilePathEntry {
    /// Reg file id.
    #[prost(uint32, required, tag = "1")]
    pub orig_id: u32,
    /// Ghost id / linked file id / pid.
    #[prost(uint32, required, tag = "2")]
    pub remap_id: u32,
    #[prost(enumeration = "RemapType", optional, tag = "3")]
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "super::readable::optional_name::<RemapType, _>"
    )]
    pub remap_type: Option<i32>,
}
