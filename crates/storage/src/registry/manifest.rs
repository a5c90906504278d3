//! Descriptions of images: OCI's and Docker's manifests and indexes, and which of an index fits a
//! machine.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use serde_json::Value;

/// Docker's names of things that OCI has too.
const DOCKER_TO_OCI: &[(&str, &str)] = &[
    (DOCKER_MANIFEST, OCI_MANIFEST),
    (DOCKER_LIST, OCI_INDEX),
    ("application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json"),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ),
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
];

/// OCI's manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What we ask for.
pub const ACCEPTED: &[&str] = &[OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Whose names a manifest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OCI's.
    Oci,
    /// Docker's.
    Docker,
}

impl Format {
    /// Media type of a manifest.
    pub fn manifest(self) -> &'static str {
        match self {
            Format::Oci => OCI_MANIFEST,
            Format::Docker => DOCKER_MANIFEST,
        }
    }
}

/// A description that was read.
#[derive(Debug)]
pub enum Description {
    /// Of one image.
    Image(Box<ImageManifest>),
    /// Of several, by platform.
    Index(Box<ImageIndex>),
}

impl Description {
    /// Reads a description. `media` is what the registry says it is; what it says of itself counts.
    pub fn parse(bytes: &[u8], media: Option<&str>) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if value.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
            return Err("it has Docker's first schema, which has no digests of contents".to_owned());
        }
        let own = value.get("mediaType").and_then(Value::as_str);
        let index = match own.or(media) {
            Some(OCI_INDEX | DOCKER_LIST) => true,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => false,
            _ => value.get("manifests").is_some(),
        };
        match index {
            true => serde_json::from_value(value)
                .map(|index| Description::Index(Box::new(index)))
                .map_err(|e| e.to_string()),
            false => serde_json::from_value(value)
                .map(|manifest| Description::Image(Box::new(manifest)))
                .map_err(|e| e.to_string()),
        }
    }
}

/// The format of a manifest.
pub fn format_of(manifest: &[u8]) -> Format {
    let value: Value = serde_json::from_slice(manifest).unwrap_or_default();
    match value.get("mediaType").and_then(Value::as_str) {
        Some(DOCKER_MANIFEST) => Format::Docker,
        _ => Format::Oci,
    }
}

/// A manifest in another format: the same blobs under other names.
pub fn convert(manifest: &[u8], to: Format) -> Result<Vec<u8>, String> {
    let mut value: Value = serde_json::from_slice(manifest).map_err(|e| e.to_string())?;
    let rename = |media: &str| -> Option<String> {
        let pair = DOCKER_TO_OCI.iter().find_map(|(docker, oci)| match to {
            Format::Oci => (media == *docker).then_some(*oci),
            Format::Docker => (media == *oci).then_some(*docker),
        });
        pair.map(str::to_owned)
    };
    if !value.is_object() {
        return Err("a manifest is an object".to_owned());
    }
    value["mediaType"] = to.manifest().into();
    if to == Format::Docker && value.get("annotations").is_some() {
        return Err("Docker's manifests have no annotations, and this one has".to_owned());
    }
    let layers = value.get_mut("layers").and_then(Value::as_array_mut).map(|l| l.iter_mut());
    let mut descriptors: Vec<&mut Value> = layers.into_iter().flatten().collect();
    for descriptor in descriptors.iter_mut() {
        if let Some(new) = descriptor["mediaType"].as_str().and_then(rename) {
            descriptor["mediaType"] = new.into();
        }
    }
    if let Some(new) = value["config"]["mediaType"].as_str().and_then(rename) {
        value["config"]["mediaType"] = new.into();
    }
    serde_json::to_vec(&value).map_err(|e| e.to_string())
}

/// A kind of machine: `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Default for Platform {
    /// This machine.
    fn default() -> Self {
        Platform {
            os: Os::default().to_string(),
            architecture: Arch::default().to_string(),
            variant: None,
        }
    }
}

impl std::str::FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() =>
            {
                Ok(Platform { os, architecture, variant })
            }
            _ => Err("it is not OS/ARCH or OS/ARCH/VARIANT"),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl Platform {
    /// Of an entry of an index; none where it says none, and for entries that are no images.
    fn of(descriptor: &Descriptor) -> Option<Platform> {
        let platform = descriptor.platform().as_ref()?;
        let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
        let known = os != "unknown" && architecture != "unknown";
        known.then(|| Platform { os, architecture, variant: platform.variant().clone() })
    }

    /// The entry of an index for this platform; else the platforms that it has.
    pub fn choose<'a>(&self, index: &'a ImageIndex) -> Result<&'a Descriptor, Vec<String>> {
        let image = |d: &&Descriptor| {
            let media = d.media_type().to_string();
            *d.media_type() == MediaType::ImageManifest || media == DOCKER_MANIFEST
        };
        let entries: Vec<_> = index.manifests().iter().filter(image).collect();
        let fits = |descriptor: &&&Descriptor| match Platform::of(descriptor) {
            Some(found) => {
                found.os == self.os
                    && found.architecture == self.architecture
                    && (self.variant.is_none() || found.variant == self.variant)
            }
            None => false,
        };
        // Without a wish the plain one is taken before its variants.
        let mut fitting: Vec<_> = entries.iter().filter(fits).collect();
        fitting.sort_by_key(|d| Platform::of(d).and_then(|p| p.variant));
        match (fitting.first(), &entries[..]) {
            (Some(found), _) => Ok(found),
            // An index of one image that says nothing about machines.
            (None, [only]) if only.platform().is_none() => Ok(only),
            _ => {
                Err(entries.iter().filter_map(|d| Platform::of(d)).map(|p| p.to_string()).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(media: &str, platform: Value) -> Value {
        let digest = format!("sha256:{}", "1".repeat(64));
        let mut value = json!({ "mediaType": media, "digest": digest, "size": 5 });
        if !platform.is_null() {
            value["platform"] = platform;
        }
        value
    }

    #[test]
    fn the_platform_is_chosen() {
        let entry = |arch: &str, variant: Value| {
            descriptor(
                DOCKER_MANIFEST,
                json!({"os": "linux", "architecture": arch, "variant": variant}),
            )
        };
        let list = json!({
            "schemaVersion": 2, "mediaType": DOCKER_LIST,
            "manifests": [
                entry("arm", json!("v7")), entry("arm", json!("v6")), entry("amd64", Value::Null),
                descriptor(OCI_MANIFEST, json!({"os": "unknown", "architecture": "unknown"})),
            ],
        });
        let bytes = serde_json::to_vec(&list).expect("json");
        let Ok(Description::Index(index)) = Description::parse(&bytes, None) else {
            panic!("no index")
        };
        let choose = |text: &str| {
            let platform: Platform = text.parse().expect("platform");
            let found = platform.choose(&index)?;
            Ok(Platform::of(found).expect("platform").to_string())
        };
        assert_eq!(choose("linux/amd64").as_deref(), Ok("linux/amd64"));
        assert_eq!(choose("linux/arm").as_deref(), Ok("linux/arm/v6"));
        assert_eq!(choose("linux/arm/v7").as_deref(), Ok("linux/arm/v7"));
        let offered: Vec<String> = choose("linux/s390x").expect_err("no such");
        assert_eq!(offered, ["linux/arm/v7", "linux/arm/v6", "linux/amd64"]);
    }

    #[test]
    fn formats_are_converted_there_and_back() {
        let docker = json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": descriptor("application/vnd.docker.container.image.v1+json", Value::Null),
            "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", Value::Null)],
        });
        let bytes = serde_json::to_vec(&docker).expect("json");
        assert_eq!(format_of(&bytes), Format::Docker);
        let oci = convert(&bytes, Format::Oci).expect("converted");
        assert_eq!(format_of(&oci), Format::Oci);
        let text = String::from_utf8(oci.clone()).expect("text");
        assert!(!text.contains("docker"), "{text}");
        assert_eq!(convert(&oci, Format::Docker).expect("converted"), bytes);
        let mut annotated: Value = serde_json::from_slice(&oci).expect("json");
        annotated["annotations"] = json!({"a": "b"});
        let bytes = serde_json::to_vec(&annotated).expect("json");
        assert!(convert(&bytes, Format::Docker).is_err());
        assert!(convert(b"2", Format::Oci).is_err());
    }

    #[test]
    fn the_first_schema_is_refused() {
        let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(Description::parse(old, None).is_err());
        assert!(Description::parse(b"<html>", None).is_err());
    }
}
