//! Checkpoints as images: one layer that is the archive of a checkpoint, and annotations of the
//! manifest that say whose it is. Podman, CRI-O and containerd write such images too, each with
//! annotations of its own.
//!
//! Of such an image the store keeps the layer's archive only. It is read as it is: a compressed tar
//! with the members of a checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Arch, Config, Descriptor, HistoryBuilder, ImageConfigurationBuilder, ImageManifestBuilder,
    MediaType, Os, RootFsBuilder, Sha256Digest,
};

use crate::image::{Image, NewImage};
use crate::layer::{Blob, Digesting, Layer, decompress, sha256_hex, sniff};
use crate::names::ImageName;
use crate::store::{AtPath, Scratch, Store, StoreError, open_dir};

/// Beginnings of the annotations by which engines know checkpoints: Podman's, CRI-O's, those of
/// checkpointctl and containerd, and ours.
const PREFIXES: &[&str] = &[
    "io.podman.annotations.checkpoint.",
    "io.kubernetes.cri-o.annotations.checkpoint.",
    "org.criu.checkpoint.",
    "io.arctern.annotations.checkpoint.",
];

/// What a manifest says of a checkpoint; empty when it is none.
pub(crate) fn annotations(all: &Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    let ours = |key: &str| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    let all = all.iter().flatten();
    all.filter(|(key, _)| ours(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A place for an archive that is to become an image.
#[derive(Debug)]
pub struct Draft {
    scratch: Scratch,
}

impl Draft {
    /// Where the archive is to be written.
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("checkpoint.tar.zst")
    }
}

impl Store {
    /// A place on the file system of the store for the archive of a checkpoint.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn draft_checkpoint(&self) -> Result<Draft, StoreError> {
        Ok(Draft { scratch: self.scratch()? })
    }

    /// Makes an image of the archive of a checkpoint that was written into a draft.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::Io`], [`StoreError::ReadArchive`].
    pub fn add_checkpoint(
        &self,
        draft: Draft,
        name: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<Image, StoreError> {
        let name = ImageName::local(name)?;
        let path = draft.path();
        let (blob, diff) = digest_archive(&path)?;
        let created = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let missing = |_| StoreError::NotAnImage("a description cannot be made");
        let history = HistoryBuilder::default()
            .created(created.clone())
            .created_by("arctern container checkpoint")
            .build()
            .map_err(missing)?;
        let rootfs = RootFsBuilder::default()
            .typ("layers")
            .diff_ids(vec![format!("sha256:{diff}")])
            .build()
            .map_err(missing)?;
        let config = ImageConfigurationBuilder::default()
            .created(created.clone())
            .architecture(Arch::default())
            .os(Os::default())
            .config(Config::default())
            .rootfs(rootfs)
            .history(vec![history])
            .build()
            .map_err(missing)?;
        let config = serde_json::to_vec(&config)
            .map_err(|_| StoreError::NotAnImage("a description cannot be made"))?;
        let descriptor = |media: MediaType, size: u64, hex: &str| {
            let digest = hex.parse::<Sha256Digest>();
            digest.map(|digest| Descriptor::new(media, size, digest)).map_err(missing)
        };
        let described =
            descriptor(MediaType::ImageConfig, config.len() as u64, &sha256_hex(&config))?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(described)
            .layers(vec![descriptor(blob.media.clone(), blob.len, &blob.hex)?])
            .annotations(annotations.clone().into_iter().collect::<HashMap<_, _>>())
            .build()
            .map_err(missing)?;
        // Through a Value, whose maps are sorted.
        let manifest = serde_json::to_value(&manifest)
            .and_then(|value| serde_json::to_vec(&value))
            .map_err(|_| StoreError::NotAnImage("a description cannot be made"))?;
        let dir = open_dir(draft.scratch.path())?;
        rustix::fs::syncfs(&dir).at("sync", draft.scratch.path())?;
        let layer = Layer {
            hex: diff,
            size: blob.len,
            blob,
            _scratch: Some(draft.scratch),
            unpacked: None,
        };
        self.add_image(NewImage {
            config,
            manifest: Some(manifest),
            layers: vec![layer],
            created,
            names: vec![name],
            digests: Vec::new(),
            checkpoint: annotations,
        })
    }

    /// The archive of an image that is a checkpoint.
    ///
    /// # Errors
    /// [`StoreError::NoCheckpoint`].
    pub fn checkpoint_archive(&self, image: &Image) -> Result<PathBuf, StoreError> {
        match (&image.blobs[..], image.checkpoint.is_empty()) {
            ([blob], false) => Ok(self.blob(blob)),
            _ => Err(StoreError::NoCheckpoint(image.names.first().unwrap_or(&image.id).clone())),
        }
    }
}

/// The archive as it is to be kept, and the SHA-256 of the tar in it.
fn digest_archive(path: &Path) -> Result<(Blob, String), StoreError> {
    let file = File::open(path).at("open", path)?;
    let mut archive = Digesting::new(file);
    let (compression, stream) = sniff(&mut archive)?;
    let mut plain = Digesting::new(decompress(compression, stream)?);
    io::copy(&mut plain, &mut io::sink()).map_err(StoreError::ReadArchive)?;
    let (_, diff, _) = plain.finish();
    io::copy(&mut archive, &mut io::sink()).map_err(StoreError::ReadArchive)?;
    let (_, hex, len) = archive.finish();
    let blob = Blob { hex, len, media: compression.layer_media(), path: path.to_owned() };
    Ok((blob, diff))
}
