//! What the processor says of itself (CPUID).

use std::sync::OnceLock;

/// Size and offset of an XSAVE component in the standard format, None if the processor lacks it
/// (CPUID leaf 0xd, Intel SDM volume 1, 13.2).
pub fn xsave_component(bit: u32) -> Option<(usize, usize)> {
    // CPUID is slow under a hypervisor, which it traps into.
    static COMPONENTS: OnceLock<[Option<(usize, usize)>; 63]> = OnceLock::new();
    let components = COMPONENTS.get_or_init(|| {
        std::array::from_fn(|bit| {
            let leaf = std::arch::x86_64::__cpuid_count(0xd, bit as u32);
            (bit >= 2 && leaf.eax != 0).then_some((leaf.eax as usize, leaf.ebx as usize))
        })
    });
    components.get(bit as usize).copied().flatten()
}
