//! CRIU's `pagemap.proto`: which pages are stored (`pagemap-%lu.img` and `pagemap-shmem-%lu.img`).

/// CRIU's `pagemap_head`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PagemapHead {
    /// Names pages-%u.img.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// CRIU's `pagemap_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PagemapEntry {
    /// Virtual address, or byte offset for shmem.
    #[prost(uint64, required, tag = "1")]
    #[serde(serialize_with = "super::readable::hex")]
    pub vaddr: u64,
    /// Old writers; new ones write 0.
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    /// Old writers; same as PE_PARENT.
    #[prost(bool, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_parent: Option<bool>,
    /// Flag set: pmap.flags; 1 parent, 2 lazy, 4 present.
    #[prost(uint32, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<u32>,
    /// Wins over compat_nr_pages.
    #[prost(uint64, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_pages: Option<u64>,
}
