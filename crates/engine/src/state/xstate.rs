//! Extended registers: the XSAVE area that ptrace gives, and CRIU's messages.
//!
//! Layout: Intel SDM volume 1, chapter 13. The legacy area (x87, SSE) is fixed; the offsets of the
//! other components come from CPUID leaf 0xd, as the kernel uses them for its standard format.

use arctern_image::messages::{UserX86FpregsEntry, UserX86XsaveEntry};

/// An XSAVE component beyond the legacy area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Component {
    bit: u32,
    offset: usize,
    size: usize,
}

/// Numbers of the components that CRIU's message has room for.
const AVX: u32 = 2;
const BNDREGS: u32 = 3;
const BNDCSR: u32 = 4;
const OPMASK: u32 = 5;
const ZMM_UPPER: u32 = 6;
const HI16_ZMM: u32 = 7;
const PKRU: u32 = 9;
const CARRIED: [u32; 7] = [AVX, BNDREGS, BNDCSR, OPMASK, ZMM_UPPER, HI16_ZMM, PKRU];

fn component(bit: u32) -> Option<Component> {
    let (size, offset) = arctern_sys::cpu::xsave_component(bit)?;
    Some(Component { bit, offset, size })
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("four bytes"))).collect()
}

fn u64s(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes"))).collect()
}

/// The components that are in use and that the message cannot hold: their numbers.
pub fn not_carried(state: &[u8]) -> Vec<u32> {
    let Some(features) = header(state) else { return Vec::new() };
    (2..63).filter(|bit| features & (1 << bit) != 0 && !CARRIED.contains(bit)).collect()
}

fn header(state: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(state.get(512..520)?.try_into().expect("eight bytes")))
}

/// Translates an XSAVE area.
pub fn to_message(state: &[u8]) -> UserX86FpregsEntry {
    let legacy = |at: usize, len: usize| state.get(at..at + len).unwrap_or_default();
    let half = |at: usize| u32::from(state[at]) | u32::from(state[at + 1]) << 8;
    let word = |at: usize| u32::from_le_bytes(state[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(state[at..at + 8].try_into().expect("eight bytes"));
    let mut entry = UserX86FpregsEntry {
        cwd: half(0),
        swd: half(2),
        twd: half(4),
        fop: half(6),
        rip: long(8),
        rdp: long(16),
        mxcsr: word(24),
        mxcsr_mask: word(28),
        st_space: u32s(legacy(32, 128)),
        xmm_space: u32s(legacy(160, 256)),
        // Reserved bytes and the kernel's own notes: no state.
        padding: Vec::new(),
        xsave: None,
    };
    if let Some(features) = header(state) {
        let part = |bit: u32| -> &[u8] {
            match component(bit) {
                Some(c) if features & (1 << bit) != 0 => {
                    state.get(c.offset..c.offset + c.size).unwrap_or_default()
                }
                _ => &[],
            }
        };
        entry.xsave = Some(UserX86XsaveEntry {
            xstate_bv: features,
            ymmh_space: u32s(part(AVX)),
            bndreg_state: u64s(part(BNDREGS)),
            bndcsr_state: u64s(part(BNDCSR)),
            opmask_reg: u64s(part(OPMASK)),
            zmm_upper: u64s(part(ZMM_UPPER)),
            hi16_zmm: u64s(part(HI16_ZMM)),
            pkru: u32s(part(PKRU)),
            cet: None,
        });
    }
    entry
}

/// Builds the XSAVE area of this machine's size from a message. Err names what does not fit: a
/// component in use that this machine does not have, or a part of a wrong size.
pub fn from_message(entry: &UserX86FpregsEntry, size: usize) -> Result<Vec<u8>, String> {
    let mut state = vec![0u8; size];
    if size < 512 {
        return Err("this machine's register area is too small".to_owned());
    }
    let mut put = |at: usize, bytes: &[u8]| -> Result<(), String> {
        let room = state.get_mut(at..at + bytes.len());
        room.ok_or("a register area is too large")?.copy_from_slice(bytes);
        Ok(())
    };
    put(0, &(entry.cwd as u16).to_le_bytes())?;
    put(2, &(entry.swd as u16).to_le_bytes())?;
    put(4, &(entry.twd as u16).to_le_bytes())?;
    put(6, &(entry.fop as u16).to_le_bytes())?;
    put(8, &entry.rip.to_le_bytes())?;
    put(16, &entry.rdp.to_le_bytes())?;
    put(24, &entry.mxcsr.to_le_bytes())?;
    put(28, &entry.mxcsr_mask.to_le_bytes())?;
    let bytes32 = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let bytes64 = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    for (at, room, words) in [(32, 32, &entry.st_space), (160, 64, &entry.xmm_space)] {
        if words.len() > room {
            return Err("a legacy register area is too large".to_owned());
        }
        put(at, &bytes32(words))?;
    }
    let Some(xsave) = &entry.xsave else { return Ok(state) };
    let mut features = xsave.xstate_bv;
    for (bit, bytes) in [
        (AVX, bytes32(&xsave.ymmh_space)),
        (BNDREGS, bytes64(&xsave.bndreg_state)),
        (BNDCSR, bytes64(&xsave.bndcsr_state)),
        (OPMASK, bytes64(&xsave.opmask_reg)),
        (ZMM_UPPER, bytes64(&xsave.zmm_upper)),
        (HI16_ZMM, bytes64(&xsave.hi16_zmm)),
        (PKRU, bytes32(&xsave.pkru)),
    ] {
        if features & (1 << bit) == 0 {
            continue;
        }
        let zero = bytes.iter().all(|b| *b == 0);
        match component(bit) {
            Some(c) if bytes.len() <= c.size && c.offset + c.size <= size => put(c.offset, &bytes)?,
            // An unused component may be absent here.
            _ if zero => features &= !(1 << bit),
            _ => {
                return Err(format!(
                    "the processor lacks register component {bit}, which is in use"
                ));
            }
        }
    }
    let unknown = features & !0x3 & !CARRIED.iter().fold(0u64, |m, b| m | 1 << b);
    if size >= 576 {
        state[512..520].copy_from_slice(&(features & !unknown).to_le_bytes());
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_survives_the_round_trip() {
        let avx = component(AVX);
        let mut state = vec![0u8; 2696.max(avx.map_or(0, |c| c.offset + c.size))];
        for (i, b) in state[..416].iter_mut().enumerate() {
            *b = i as u8;
        }
        state[5] = 0;
        state[512] = 3;
        if let Some(c) = avx {
            state[512] |= 4;
            state[c.offset..c.offset + c.size].fill(0xa5);
        }
        let entry = to_message(&state);
        assert_eq!(from_message(&entry, state.len()).unwrap(), state);
    }

    #[test]
    fn oversized_parts_are_refused() {
        let mut entry = to_message(&[0; 576]);
        entry.xmm_space = vec![0; 65];
        assert!(from_message(&entry, 2696).is_err());
        let mut entry = to_message(&[0; 576]);
        entry.xsave.as_mut().unwrap().xstate_bv = 4;
        entry.xsave.as_mut().unwrap().ymmh_space = vec![1; 6000];
        assert!(from_message(&entry, 2696).is_err());
    }
}
