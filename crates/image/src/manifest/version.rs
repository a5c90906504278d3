//! Who can read whose archives.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Version of the layout of an archive, apart from the program's version.
///
/// The minor number grows when something is added that an older reader may ignore; the major number
/// when it may not. A reader takes every archive of its own major version, whatever the minor, and of
/// every major version before it. There is one row a version in docs/format.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FormatVersion {
    /// Grows when an older reader must not try.
    pub major: u16,
    /// Grows when an older reader may ignore what is new.
    pub minor: u16,
}

/// An archive is of a version that this program does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the archive has format {found}, this version of Arctern reads up to {}.x: use the version that \
     wrote it, or a newer one",
    FormatVersion::CURRENT.major
)]
pub struct VersionRefused {
    /// The archive's version.
    pub found: FormatVersion,
}

impl FormatVersion {
    /// The version that is written.
    pub const CURRENT: Self = Self { major: 1, minor: 0 };

    /// The oldest major version that is read.
    const OLDEST_MAJOR: u16 = 1;

    /// Refuses versions that cannot be read.
    pub fn check_readable(self) -> Result<(), VersionRefused> {
        if (Self::OLDEST_MAJOR..=Self::CURRENT.major).contains(&self.major) {
            Ok(())
        } else {
            Err(VersionRefused { found: self })
        }
    }
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<FormatVersion> for String {
    fn from(version: FormatVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for FormatVersion {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (major, minor) = text.split_once('.').ok_or("a version is MAJOR.MINOR")?;
        match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => Ok(Self { major, minor }),
            _ => Err("a version is MAJOR.MINOR"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_decides() {
        let version = |major, minor| FormatVersion { major, minor };
        assert!(version(1, 0).check_readable().is_ok());
        assert!(version(1, 99).check_readable().is_ok());
        assert!(version(0, 9).check_readable().is_err());
        let refused = version(2, 0).check_readable().unwrap_err();
        assert!(refused.to_string().contains("format 2.0"), "{refused}");
    }
}
