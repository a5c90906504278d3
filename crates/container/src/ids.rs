//! Container ids and generated names.

use rustix::io::Errno;

/// Adjectives of generated names.
const ADJECTIVES: &[&str] = &[
    "amber", "brave", "bright", "calm", "clever", "cosy", "crisp", "daring", "eager", "early",
    "fair", "fleet", "fresh", "gentle", "glad", "golden", "grand", "happy", "hardy", "honest",
    "humble", "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry", "mighty", "modest",
    "neat", "nimble", "noble", "patient", "polite", "proud", "quick", "quiet", "rapid", "ready",
    "rosy", "serene", "sharp", "silent", "silver", "smart", "snug", "steady", "sturdy", "sunny",
    "swift", "tidy", "tranquil", "trusty", "upbeat", "vivid", "warm", "wise", "witty", "zesty",
];

/// Nouns of generated names: the arctic tern, its company, and what it flies over.
const NOUNS: &[&str] = &[
    "albatross",
    "auk",
    "aurora",
    "bay",
    "beacon",
    "breeze",
    "cape",
    "cliff",
    "coast",
    "cormorant",
    "crane",
    "current",
    "curlew",
    "delta",
    "dune",
    "eider",
    "estuary",
    "falcon",
    "fjord",
    "floe",
    "fulmar",
    "gale",
    "gannet",
    "glacier",
    "gull",
    "harbour",
    "heron",
    "horizon",
    "iceberg",
    "inlet",
    "island",
    "kelp",
    "kestrel",
    "kittiwake",
    "lagoon",
    "lantern",
    "lighthouse",
    "loon",
    "meridian",
    "moss",
    "narwhal",
    "osprey",
    "otter",
    "petrel",
    "plover",
    "puffin",
    "reef",
    "sandpiper",
    "seal",
    "shore",
    "skua",
    "snowfield",
    "sound",
    "strait",
    "summit",
    "swallow",
    "tern",
    "tide",
    "tundra",
    "wave",
];

/// Random bytes from the kernel.
fn random<const N: usize>() -> Result<[u8; N], Errno> {
    let mut buf = [0u8; N];
    let mut have = 0;
    while have < N {
        have += rustix::rand::getrandom(&mut buf[have..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(buf)
}

/// A new container id: 64 hexadecimal digits.
pub fn new_id() -> Result<String, Errno> {
    let bytes = random::<32>()?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A generated name, `adjective_noun`.
pub fn new_name() -> Result<String, Errno> {
    let [a, b, c, d] = random::<4>()?;
    let adjective = ADJECTIVES[usize::from(u16::from_le_bytes([a, b])) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(u16::from_le_bytes([c, d])) % NOUNS.len()];
    Ok(format!("{adjective}_{noun}"))
}

/// Whether this is the form of an id: 64 hexadecimal digits.
pub fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a container may be called so: as Podman, a letter or digit first, then letters, digits,
/// `_`, `.` and `-`.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && name.len() <= 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_hex_digits_and_differ() {
        let a = new_id().expect("random");
        let b = new_id().expect("random");
        assert_eq!(a.len(), 64);
        assert!(a.bytes().all(|c| c.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }

    #[test]
    fn generated_names_are_valid() {
        for _ in 0..100 {
            let name = new_name().expect("random");
            assert!(is_valid_name(&name), "{name}");
        }
    }

    #[test]
    fn names_that_escape_a_directory_are_refused() {
        for bad in ["", "-x", "../x", "a/b", "a b", ".hidden", "ä"] {
            assert!(!is_valid_name(bad), "{bad}");
        }
        for good in ["a", "my-nginx", "web.1", "0_x"] {
            assert!(is_valid_name(good), "{good}");
        }
    }
}
