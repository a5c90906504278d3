//! What the processor says of itself (CPUID).

/// Size and offset of an XSAVE component in the standard format, None if the processor lacks it
/// (CPUID leaf 0xd, Intel SDM volume 1, 13.2).
pub fn xsave_component(bit: u32) -> Option<(usize, usize)> {
    if !(2..63).contains(&bit) {
        return None;
    }
    let leaf = std::arch::x86_64::__cpuid_count(0xd, bit);
    (leaf.eax != 0).then_some((leaf.eax as usize, leaf.ebx as usize))
}
