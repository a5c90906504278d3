//! Names of members.

/// The one symbolic link that an archive may hold: Podman's pre-checkpoint archives have it.
pub const LINK_NAME: &str = "checkpoint/parent";

/// Where that link must lead.
pub const LINK_TARGET: &str = "../pre-checkpoint";

/// The longest name, in bytes (Linux's PATH_MAX).
const MAX_NAME: usize = 4096;

/// The longest component, in bytes (Linux's NAME_MAX).
const MAX_COMPONENT: usize = 255;

/// Turns a name from a tar header into a relative path without `.` components, empty for the root.
///
/// # Errors
/// The reason why a name is refused.
pub fn normalise(raw: &[u8]) -> Result<String, &'static str> {
    if raw.len() > MAX_NAME {
        return Err("its name is too long");
    }
    let text = std::str::from_utf8(raw).map_err(|_| "its name is not UTF-8")?;
    if text.is_empty() {
        return Err("it has no name");
    }
    if text.contains('\0') {
        return Err("its name contains a zero byte");
    }
    if text.starts_with('/') {
        return Err("its name is absolute");
    }
    let mut name = String::with_capacity(text.len());
    for component in text.split('/') {
        match component {
            "" | "." => continue,
            ".." => return Err("its name leads out of the archive"),
            _ if component.len() > MAX_COMPONENT => return Err("its name is too long"),
            _ => {}
        }
        if !name.is_empty() {
            name.push('/');
        }
        name.push_str(component);
    }
    Ok(name)
}

/// A raw name for an error message.
pub fn printable(raw: &[u8]) -> String {
    let end = raw.len().min(200);
    format!("`{}`", String::from_utf8_lossy(&raw[..end]).escape_debug())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a/..", "a\0b", ".."] {
            assert!(normalise(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for (raw, name) in [
            ("./config.dump", "config.dump"),
            ("checkpoint/", "checkpoint"),
            ("./", ""),
            ("a//b/./c", "a/b/c"),
            ("..a/b..", "..a/b.."),
        ] {
            assert_eq!(normalise(raw.as_bytes()).as_deref(), Ok(name));
        }
        assert!(normalise(&[0xff]).is_err());
        assert!(normalise("x".repeat(256).as_bytes()).is_err());
        assert!(normalise("x/".repeat(3000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn normalised_names_are_stable_and_harmless(raw in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(name) = normalise(&raw) {
                prop_assert!(!name.split('/').any(|part| part == ".."));
                prop_assert!(!name.starts_with('/'));
                if !name.is_empty() {
                    prop_assert_eq!(normalise(name.as_bytes()).unwrap(), name);
                }
            }
        }
    }
}
