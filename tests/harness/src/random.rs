//! Numbers that look random and come again with the same seed.

/// A sequence of numbers (splitmix64).
pub struct Random(u64);

impl Random {
    /// From `ARCTERN_SEED`, or from a fixed seed.
    pub fn seeded() -> Self {
        let seed = std::env::var("ARCTERN_SEED").ok().and_then(|seed| seed.parse().ok());
        Self(seed.unwrap_or(0x5eed))
    }

    /// As [`Random::seeded`], a sequence of its own for each number.
    pub fn seeded_for(number: u64) -> Self {
        let mut random = Self::seeded();
        random.0 = random.0.wrapping_add(number.wrapping_mul(0xd1b5_4a32_d192_ed03));
        random
    }

    /// A number below `limit` (which must not be 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// How many rounds: `few` in an ordinary run, `many` in a soak (`ARCTERN_SOAK=1`).
pub fn rounds(few: usize, many: usize) -> usize {
    if soak() { many } else { few }
}

/// Whether this is a soak.
pub fn soak() -> bool {
    std::env::var_os("ARCTERN_SOAK").is_some()
}
