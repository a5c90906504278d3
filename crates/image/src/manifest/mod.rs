//! `arctern.json`: what a checkpoint archive says about itself.
//!
//! It is the last member of the archive, since it lists the digest of every other one. The digests
//! show damage; they prove nothing about who made the archive. Fields that a reader does not know are
//! ignored; what that allows is governed by [`FormatVersion`].

mod host;
mod version;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use host::HostFacts;
pub use version::{FormatVersion, VersionRefused};

/// The name of the manifest in an archive.
pub const MANIFEST_NAME: &str = "arctern.json";

/// The largest manifest that is read, in bytes: some 400,000 members.
pub const MAX_MANIFEST: u64 = 64 << 20;

/// The manifest of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the archive's layout.
    pub version: FormatVersion,
    /// The program that wrote it, with its version, for people.
    pub written_by: String,
    /// When it was begun, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// The machine that it was written on.
    pub host: HostFacts,
    /// The container in it; None for a bare process tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerFacts>,
    /// Every other member, in the order of the archive.
    pub members: Vec<Member>,
}

/// What the manifest says about the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image that it was made from, as the user named it.
    #[serde(default)]
    pub image: String,
    /// The id of that image: the digest of its configuration.
    #[serde(default)]
    pub image_id: String,
}

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, relative to the archive's root.
    pub name: String,
    /// Bytes of content; 0 for a link.
    pub size: u64,
    /// Digest of the content; for a link, of its target.
    pub sha256: Digest,
    /// The target of a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// A manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that belongs there.
    #[error("{MANIFEST_NAME} is damaged")]
    Json(#[source] serde_json::Error),
    /// Larger than any that is written.
    #[error("{MANIFEST_NAME} has {size} bytes, more than {MAX_MANIFEST}")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// Written in a layout that this version does not read.
    #[error(transparent)]
    Version(VersionRefused),
}

impl Manifest {
    /// A manifest of the current version without members.
    pub fn new(created: u64, host: HostFacts, container: Option<ContainerFacts>) -> Self {
        Self {
            version: FormatVersion::CURRENT,
            written_by: concat!("arctern ", env!("CARGO_PKG_VERSION")).to_owned(),
            created,
            host,
            container,
            members: Vec::new(),
        }
    }

    /// Reads a manifest. The version is looked at before anything else, so that a newer layout is
    /// refused by its version and not by whatever field it changed.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            version: FormatVersion,
        }
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(ManifestError::TooLarge { size: bytes.len() as u64 });
        }
        let head: VersionOnly = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        head.version.check_readable().map_err(ManifestError::Version)?;
        serde_json::from_slice(bytes).map_err(ManifestError::Json)
    }

    /// The manifest as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and lists of them: there is nothing that JSON cannot hold.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn sample() -> Manifest {
        let host = HostFacts {
            architecture: "x86_64".into(),
            kernel: "6.18.0".into(),
            page_size: 4096,
            cpu_features: vec!["avx".into(), "sse2".into()],
            boot_id: "8f4c".into(),
            distribution: "Debian GNU/Linux 12 (bookworm)".into(),
        };
        let mut manifest = Manifest::new(1_700_000_000, host, None);
        manifest.members.push(Member {
            name: "config.dump".into(),
            size: 3,
            sha256: Digest::of(b"abc"),
            link: None,
        });
        manifest
    }

    #[test]
    fn a_manifest_comes_back() {
        let manifest = sample();
        assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let mut value: serde_json::Value = serde_json::from_slice(&sample().to_json()).unwrap();
        value["later"] = 1.into();
        value["host"]["later"] = true.into();
        assert_eq!(Manifest::from_json(value.to_string().as_bytes()).unwrap(), sample());
    }

    #[test]
    fn a_newer_layout_is_refused_by_its_version_only() {
        let json = br#"{"version":"9.0","members":{"no":"list"}}"#;
        let error = Manifest::from_json(json).unwrap_err();
        assert!(matches!(error, ManifestError::Version(_)), "{error:?}");
    }
}
