//! Images: the index of names, content-addressed configurations and manifests, import, removal.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;

use oci_spec::image::{
    HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder,
};
use serde::{Deserialize, Serialize};

use crate::change::Changes;
use crate::layer::{Layer, sha256_hex};
use crate::names::{ImageName, Parts, is_end_of};
use crate::registry::Conf;
use crate::store::{AtPath, Store, StoreError, sync_dir, write_durably};
use crate::unpack::Whiteouts;

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Id: the SHA-256 of its configuration, 64 hexadecimal digits.
    pub id: String,
    /// Its names, as `REGISTRY/PATH:TAG`. Without any it is dangling.
    pub names: Vec<String>,
    /// SHA-256 of its OCI manifest, hexadecimal.
    pub manifest: String,
    /// Its layers from the lowest to the topmost: SHA-256 of the uncompressed archive, hexadecimal.
    pub layers: Vec<String>,
    /// Bytes of file contents of each layer.
    #[serde(default)]
    pub layer_sizes: Vec<u64>,
    /// The layers' archives: SHA-256 of each as it is kept, compressed.
    #[serde(default)]
    pub blobs: Vec<String>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Bytes of file contents in all layers.
    pub size: u64,
    /// Where registries have it: `REGISTRY/PATH@sha256:HEX`, of the manifest or of an index with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<String>,
    /// What is said of the checkpoint that the image is; empty for images that can be run. Only the
    /// archive of its layer is kept, not unpacked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checkpoint: BTreeMap<String, String>,
}

impl Image {
    /// Which of its names is meant by a short or complete one; none when it was meant by its id.
    pub fn name_meant(&self, text: &str) -> Option<String> {
        let wanted = ImageName::candidates(text).ok()?;
        let exact = |n: &&String| wanted.iter().any(|w| w.to_string() == **n);
        let ends = |n: &&String| ImageName::local(n).is_ok_and(|n| n.ends_with(text));
        let names = || self.names.iter();
        names().find(exact).or_else(|| names().find(ends)).cloned()
    }
}

/// What [`Store::import`] is to make of an archive.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name of the image, short or complete.
    pub name: Option<String>,
    /// Instructions (`podman import --change`).
    pub changes: Vec<String>,
    /// Comment in the image's history.
    pub message: Option<String>,
}

/// The index file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    pub images: Vec<Image>,
}

impl Store {
    /// Makes an image of one layer from a tar archive of a root file system: plain, or compressed
    /// with gzip or zstd (recognised by its first bytes).
    ///
    /// # Errors
    /// [`StoreError::BadChange`] and [`StoreError::BadName`] before anything is read;
    /// [`StoreError::Unpack`] for damaged and hostile archives. Nothing stays behind then.
    pub fn import(&self, archive: impl Read, options: &ImportOptions) -> Result<Image, StoreError> {
        let changes = Changes::parse(&options.changes)?;
        let name = options.name.as_deref().map(ImageName::local).transpose()?;
        let layer = self.add_layer(archive, Whiteouts::Dropped)?;
        let created = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let comment =
            options.message.clone().unwrap_or_else(|| "Imported from a tarball".to_owned());
        let history = HistoryBuilder::default()
            .created(created.clone())
            .created_by("arctern import")
            .comment(comment)
            .build();
        let rootfs = RootFsBuilder::default()
            .typ("layers")
            .diff_ids(vec![format!("sha256:{}", layer.hex)])
            .build();
        let config = ImageConfigurationBuilder::default()
            .created(created.clone())
            .architecture(oci_spec::image::Arch::default())
            .os(oci_spec::image::Os::default())
            .config(changes.into_config())
            .rootfs(rootfs.map_err(|_| StoreError::NotAnImage("layer list"))?)
            .history(vec![history.map_err(|_| StoreError::NotAnImage("history"))?])
            .build()
            .map_err(|_| StoreError::NotAnImage("configuration"))?;
        // Through a Value, whose maps are sorted: the same content gets the same id.
        let config = serde_json::to_value(&config)
            .and_then(|v| serde_json::to_vec(&v))
            .map_err(|_| StoreError::NotAnImage("configuration"))?;
        self.add_image(NewImage {
            config,
            manifest: None,
            layers: vec![layer],
            created,
            names: name.into_iter().collect(),
            digests: Vec::new(),
            checkpoint: BTreeMap::new(),
        })
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let mut images = self.read_index()?.images;
        images.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
        Ok(images)
    }

    /// Finds an image by name (short names as Podman completes them), id or beginning of an id.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], [`StoreError::AmbiguousImage`].
    pub fn resolve(&self, name_or_id: &str) -> Result<Image, StoreError> {
        let index = self.read_index()?;
        self.find(&index, name_or_id).map(|at| index.images[at].clone())
    }

    pub(crate) fn find(&self, index: &Index, wanted: &str) -> Result<usize, StoreError> {
        let missing = || StoreError::NoSuchImage(wanted.to_owned(), self.root().to_owned());
        let named = |name: &str| {
            let has = |image: &Image| image.names.iter().any(|n| n == name);
            index.images.iter().position(has)
        };
        if wanted.contains('@') {
            let wanted = Parts::of(wanted)?;
            let fits =
                |image: &Image| image.digests.iter().any(|digest| is_pinned(&wanted, digest));
            return index.images.iter().position(fits).ok_or_else(missing);
        }
        if let Ok(names) = ImageName::candidates(wanted) {
            let alias =
                Conf::load()?.alias(wanted.split(':').next().unwrap_or(wanted)).map(|alias| {
                    let tag = wanted.split_once(':').map_or("latest", |(_, tag)| tag);
                    format!("{alias}:{tag}")
                });
            if let Some(at) = alias.and_then(|alias| named(&alias)) {
                return Ok(at);
            }
            let mut found = names.iter().filter_map(|name| named(&name.to_string()));
            if let Some(at) = found.next() {
                return Ok(at);
            }
            let by_suffix = index.images.iter().position(|image| {
                let complete = image.names.iter().filter_map(|n| ImageName::local(n).ok());
                complete.into_iter().any(|n| n.ends_with(wanted))
            });
            if let Some(at) = by_suffix {
                return Ok(at);
            }
        }
        let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let fits: Vec<usize> =
            (0..index.images.len()).filter(|&i| index.images[i].id.starts_with(digits)).collect();
        match fits[..] {
            [] => Err(missing()),
            [one] => Ok(one),
            _ => Err(StoreError::AmbiguousImage {
                prefix: wanted.to_owned(),
                ids: fits.iter().map(|&i| index.images[i].id[..12].to_owned()).collect(),
            }),
        }
    }

    /// Gives an image one more name, taking it from the image that had it.
    ///
    /// # Errors
    /// As [`Store::resolve`]; [`StoreError::BadName`].
    pub fn tag(&self, name_or_id: &str, name: &str) -> Result<Image, StoreError> {
        let name = ImageName::local(name)?.to_string();
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let at = self.find(&index, name_or_id)?;
        take_name(&mut index, &name);
        index.images[at].names.push(name);
        self.write_index(&index)?;
        Ok(index.images[at].clone())
    }

    /// The configuration of an image.
    ///
    /// # Errors
    /// As [`Store::resolve`]; [`StoreError::Damaged`].
    pub fn config(&self, name_or_id: &str) -> Result<ImageConfiguration, StoreError> {
        let image = self.resolve(name_or_id)?;
        let path = self.blob(&image.id);
        let bytes = std::fs::read(&path).at("read", &path)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Damaged { path, source })
    }

    /// The directories of an image's layers, the topmost first, as overlayfs wants them.
    pub(crate) fn lower_dirs(&self, image: &Image) -> Vec<PathBuf> {
        let dirs = image.layers.iter().rev();
        dirs.map(|hex| self.layer_dir(hex).join("diff")).collect()
    }

    /// Bytes of file contents of a layer that is in its place.
    pub(crate) fn layer_size(&self, hex: &str) -> Result<Option<u64>, StoreError> {
        let known = self.read_index()?.images;
        let noted = known.iter().flat_map(|i| i.layers.iter().zip(&i.layer_sizes));
        let size = noted.into_iter().find(|(h, _)| *h == hex).map(|(_, size)| *size);
        Ok(size.filter(|_| self.layer_dir(hex).exists()))
    }

    /// Records an image whose layers were unpacked.
    pub(crate) fn add_image(&self, new: NewImage) -> Result<Image, StoreError> {
        let NewImage { config, manifest, layers, created, names, digests, checkpoint } = new;
        let _lock = self.lock()?;
        let id = sha256_hex(&config);
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => crate::layout::manifest(&config, &layers)?,
        };
        let image = Image {
            id: id.clone(),
            names: Vec::new(),
            manifest: sha256_hex(&manifest),
            layers: layers.iter().map(|l| l.hex.clone()).collect(),
            layer_sizes: layers.iter().map(|l| l.size).collect(),
            blobs: layers.iter().map(|l| l.blob.hex.clone()).collect(),
            created,
            size: layers.iter().map(|l| l.size).sum(),
            digests,
            checkpoint,
        };
        for layer in layers {
            let place = self.layer_dir(&layer.hex);
            if let Some(dir) = &layer.unpacked
                && !place.exists()
            {
                std::fs::rename(dir, &place).at("rename into place", &place)?;
            }
            let place = self.blob(&layer.blob.hex);
            if !place.exists() {
                std::fs::rename(&layer.blob.path, &place).at("rename into place", &place)?;
            }
        }
        sync_dir(&self.root().join("layers"))?;
        write_durably(&self.blob(&id), &config)?;
        write_durably(&self.blob(&image.manifest), &manifest)?;
        let mut index = self.read_index()?;
        let at = match index.images.iter().position(|i| i.id == image.id) {
            // The same image in other clothes (compression): the newer ones are kept.
            Some(at) => {
                let old = &mut index.images[at];
                let mut image = Image { names: std::mem::take(&mut old.names), ..image };
                let known = std::mem::replace(&mut old.digests, image.digests);
                image.digests = known;
                let new = std::mem::replace(old, image).digests;
                note(&mut index.images[at].digests, &new);
                at
            }
            None => {
                index.images.push(image);
                index.images.len() - 1
            }
        };
        for name in names {
            let name = name.to_string();
            take_name(&mut index, &name);
            index.images[at].names.push(name);
        }
        let image = index.images[at].clone();
        self.write_index(&index)?;
        Ok(image)
    }

    /// Gives an image that is here whole more names and digests. None when it is not here.
    pub(crate) fn adopt(
        &self,
        manifest: &str,
        names: &[ImageName],
        digests: &[String],
    ) -> Result<Option<Image>, StoreError> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let Some(at) = index.images.iter().position(|image| image.manifest == manifest) else {
            return Ok(None);
        };
        for name in names.iter().map(ToString::to_string) {
            if !index.images[at].names.contains(&name) {
                take_name(&mut index, &name);
                index.images[at].names.push(name);
            }
        }
        note(&mut index.images[at].digests, digests);
        self.write_index(&index)?;
        Ok(Some(index.images[at].clone()))
    }

    /// Notes where registries have an image.
    pub(crate) fn note_digest(&self, id: &str, digest: String) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        if let Some(image) = index.images.iter_mut().find(|image| image.id == id) {
            note(&mut image.digests, &[digest]);
            self.write_index(&index)?;
        }
        Ok(())
    }

    fn index_path(&self) -> PathBuf {
        self.root().join("images.json")
    }

    pub(crate) fn read_index(&self) -> Result<Index, StoreError> {
        let path = self.index_path();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| StoreError::Damaged { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Ok(Index { version: 1, images: Vec::new() })
            }
            Err(e) => Err(e).at("read", &path),
        }
    }

    pub(crate) fn write_index(&self, index: &Index) -> Result<(), StoreError> {
        let path = self.index_path();
        let bytes = serde_json::to_vec_pretty(index)
            .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        write_durably(&path, &bytes)
    }
}

/// An image that is about to be recorded.
#[derive(Debug)]
pub(crate) struct NewImage {
    /// Its configuration as it is to be kept.
    pub config: Vec<u8>,
    /// Its manifest, if it came with one.
    pub manifest: Option<Vec<u8>>,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// RFC 3339.
    pub created: String,
    /// Its names, which are taken from the images that have them.
    pub names: Vec<ImageName>,
    /// Where registries have it.
    pub digests: Vec<String>,
    /// What is said of the checkpoint that it is.
    pub checkpoint: BTreeMap<String, String>,
}

/// Adds what is not there yet.
fn note(list: &mut Vec<String>, more: &[String]) {
    for entry in more {
        if !list.contains(entry) {
            list.push(entry.clone());
        }
    }
}

/// Whether `digest`, as an image has it, is what a name with a digest means. Short names fit at the
/// end of the repository.
fn is_pinned(wanted: &Parts<'_>, digest: &str) -> bool {
    let Some((repository, hex)) = digest.split_once("@sha256:") else { return false };
    wanted.digest == Some(hex) && is_end_of(wanted.repository, repository)
}

pub(crate) fn take_name(index: &mut Index, name: &str) {
    for image in &mut index.images {
        image.names.retain(|n| n != name);
    }
}
