//! Images: the index of names, content-addressed configurations and manifests, import, removal.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::PathBuf;

use oci_spec::image::{
    HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder,
};
use serde::{Deserialize, Serialize};

use crate::change::Changes;
use crate::layer::{Layer, sha256_hex};
use crate::names::ImageName;
use crate::store::{AtPath, Scratch, Store, StoreError, clear, sync_dir, write_durably};
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
struct Index {
    version: u32,
    images: Vec<Image>,
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

    fn find(&self, index: &Index, wanted: &str) -> Result<usize, StoreError> {
        let missing = || StoreError::NoSuchImage(wanted.to_owned(), self.root().to_owned());
        let named = |name: &str| {
            let has = |image: &Image| image.names.iter().any(|n| n == name);
            index.images.iter().position(has)
        };
        if let Ok(names) = ImageName::candidates(wanted) {
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

    /// Removes a name from an image, and the image with its layers when that was the last one.
    /// Given by id, an image with several names is removed only with `force`.
    ///
    /// # Errors
    /// [`StoreError::ImageInUse`] while a container root is made from it, with or without `force`;
    /// [`StoreError::SeveralNames`]; as [`Store::resolve`].
    pub fn remove_image(&self, name_or_id: &str, force: bool) -> Result<Removed, StoreError> {
        let lock = self.lock()?;
        let mut index = self.read_index()?;
        let at = self.find(&index, name_or_id)?;
        let image = index.images[at].clone();
        let by_id = image.id.starts_with(name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id));
        if !by_id && image.names.len() > 1 && !force {
            let wanted = ImageName::candidates(name_or_id)?;
            let matches = |n: &&String| {
                wanted.iter().any(|w| w.to_string() == **n)
                    || ImageName::local(n).is_ok_and(|n| n.ends_with(name_or_id))
            };
            if let Some(name) = image.names.iter().find(matches).cloned() {
                index.images[at].names.retain(|n| *n != name);
                self.write_index(&index)?;
                return Ok(Removed { untagged: vec![name], deleted: None });
            }
        }
        if by_id && image.names.len() > 1 && !force {
            return Err(StoreError::SeveralNames { image: image.id, names: image.names });
        }
        let users = self.users_of(&image.id)?;
        if !users.is_empty() {
            return Err(StoreError::ImageInUse { image: image.id, users });
        }
        index.images.remove(at);
        // The index first: a crash in between leaves files that nothing refers to, not an image
        // that lacks files.
        self.write_index(&index)?;
        let graves = self.collect_garbage()?;
        drop(lock);
        clear(graves)?;
        Ok(Removed { untagged: image.names, deleted: Some(image.id) })
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
        let NewImage { config, manifest, layers, created, names } = new;
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
        };
        for layer in layers {
            let place = self.layer_dir(&layer.hex);
            if let Some((_scratch, dir)) = &layer.unpacked
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
                let names = std::mem::take(&mut index.images[at].names);
                index.images[at] = Image { names, ..image };
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

    fn index_path(&self) -> PathBuf {
        self.root().join("images.json")
    }

    fn read_index(&self) -> Result<Index, StoreError> {
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

    fn write_index(&self, index: &Index) -> Result<(), StoreError> {
        let path = self.index_path();
        let bytes = serde_json::to_vec_pretty(index)
            .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        write_durably(&path, &bytes)
    }

    /// The layers and blobs that images and container roots refer to.
    pub(crate) fn referenced(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), StoreError> {
        let index = self.read_index()?;
        let mut layers: BTreeSet<String> = BTreeSet::new();
        let mut blobs: BTreeSet<String> = BTreeSet::new();
        for image in &index.images {
            layers.extend(image.layers.iter().cloned());
            blobs.extend([image.id.clone(), image.manifest.clone()]);
            blobs.extend(image.blobs.iter().cloned());
        }
        layers.extend(self.layers_in_use()?);
        Ok((layers, blobs))
    }

    /// Buries layers and blobs that no image and no container root refers to. The caller holds the
    /// lock: things are put in their places and referred to without letting it go.
    pub(crate) fn collect_garbage(&self) -> Result<Vec<Scratch>, StoreError> {
        let (layers, blobs) = self.referenced()?;
        let mut graves = Vec::new();
        for (dir, keep) in [("layers", &layers), ("blobs/sha256", &blobs)] {
            let dir = self.root().join(dir);
            for entry in std::fs::read_dir(&dir).at("list", &dir)? {
                let entry = entry.at("list", &dir)?;
                if !keep.contains(&*entry.file_name().to_string_lossy()) {
                    self.bury(&entry.path(), &mut graves)?;
                }
            }
        }
        Ok(graves)
    }
}

/// What [`Store::remove_image`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Id of the image, when it is gone.
    pub deleted: Option<String>,
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
}

fn take_name(index: &mut Index, name: &str) {
    for image in &mut index.images {
        image.names.retain(|n| n != name);
    }
}
