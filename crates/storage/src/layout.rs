//! Loading images from files: OCI image layouts in a tar stream, and the archives of Docker's form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Sha256Digest,
};
use serde::Deserialize;
use tar::EntryType;

use crate::image::{Image, NewImage};
use crate::layer::{Blob, Compression, Digesting, Layer, decompress, sha256_hex, sniff};
use crate::names::ImageName;
use crate::store::{AtPath, Scratch, Store, StoreError};
use crate::tarstream::TarStream;
use crate::unpack::Whiteouts;

/// The most that is read of a description (index, manifest, configuration) into memory.
const MAX_DESCRIPTION: u64 = 16 << 20;
/// Annotation of an index entry that carries the image's name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same as containerd and Docker write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// `manifest.json` of the older archives.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Reads a description among the files of an archive, or says what is missing.
type ReadFile<'a> = dyn Fn(&str, &'static str) -> Result<Vec<u8>, StoreError> + 'a;

/// A file of an archive that is being loaded.
#[derive(Clone, Debug)]
struct Loaded {
    path: PathBuf,
    hex: String,
    len: u64,
}

impl Loaded {
    /// As the archive of a layer, and what is in it.
    fn open(&self, store: &Store) -> Result<(Blob, Compression, impl Read), StoreError> {
        // Another image of the archive may have it, too: then it has its place already.
        let place = store.blob(&self.hex);
        let path = if self.path.exists() { &self.path } else { &place };
        let (compression, stream) = sniff(File::open(path).at("open", path)?)?;
        let blob = Blob {
            hex: self.hex.clone(),
            len: self.len,
            media: compression.layer_media(),
            path: path.clone(),
        };
        Ok((blob, compression, stream))
    }
}

impl Store {
    /// Takes the images from an archive that [`Store::export_image`], `podman save`, `docker save`
    /// or `skopeo` wrote, compressed or not. Every digest is checked.
    ///
    /// # Errors
    /// [`StoreError::NotAnImage`], [`StoreError::DigestMismatch`], [`StoreError::Unpack`].
    pub fn load(&self, archive: impl Read) -> Result<Vec<Image>, StoreError> {
        self.load_wanted(archive, None, false)
    }

    /// As [`Store::load`]: layers that are not in the archive may be here.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn load_beside(&self, archive: impl Read) -> Result<Vec<Image>, StoreError> {
        self.load_wanted(archive, None, true)
    }

    /// Takes one image from an archive, by its id, and gives it no name. None if it is not in it.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn load_only(&self, archive: impl Read, id: &str) -> Result<Option<Image>, StoreError> {
        Ok(self.load_wanted(archive, Some(id), false)?.into_iter().next())
    }

    fn load_wanted(
        &self,
        archive: impl Read,
        wanted: Option<&str>,
        beside: bool,
    ) -> Result<Vec<Image>, StoreError> {
        let scratch = self.scratch()?;
        let files = spool(&scratch, archive)?;
        let read = |name: &str, what: &'static str| -> Result<Vec<u8>, StoreError> {
            let file = files.get(name).ok_or(StoreError::NotAnImage(what))?;
            if file.len > MAX_DESCRIPTION {
                return Err(StoreError::NotAnImage("a description in it is too long"));
            }
            std::fs::read(&file.path).at("read", &file.path)
        };
        let unreadable = |_| StoreError::NotAnImage("a description in it is damaged");
        if files.contains_key("index.json") {
            let index = read("index.json", "index.json is missing")?;
            let index: ImageIndex = serde_json::from_slice(&index).map_err(unreadable)?;
            return self.load_layout(&scratch, &index, &files, &read, (wanted, beside));
        }
        let saved = read("manifest.json", "it has neither index.json nor manifest.json")?;
        let saved: Vec<SavedImage> = serde_json::from_slice(&saved).map_err(unreadable)?;
        let mut images = Vec::new();
        for image in saved {
            let config = read(&image.config, "a configuration is missing")?;
            if !is_wanted(&config, wanted) {
                continue;
            }
            let layers: Result<Vec<_>, _> = image
                .layers
                .iter()
                .map(|l| files.get(l).ok_or(StoreError::NotAnImage("a layer is missing")))
                .collect();
            let names = image.repo_tags.filter(|_| wanted.is_none()).unwrap_or_default();
            images.push(self.load_image(&scratch, config, None, &layers?, &names)?);
        }
        Ok(images)
    }

    fn load_layout(
        &self,
        scratch: &Scratch,
        index: &ImageIndex,
        files: &BTreeMap<String, Loaded>,
        read: &ReadFile<'_>,
        (wanted, beside): (Option<&str>, bool),
    ) -> Result<Vec<Image>, StoreError> {
        let unreadable = |_| StoreError::NotAnImage("a description in it is damaged");
        let blob_name = |descriptor: &Descriptor| match descriptor.as_digest_sha256() {
            Some(hex) => Ok(format!("blobs/sha256/{hex}")),
            None => Err(StoreError::NotAnImage("a digest is not SHA-256")),
        };
        for (name, file) in files {
            // What a name promises must be so before anything is believed.
            if let Some(hex) = name.strip_prefix("blobs/sha256/")
                && hex != file.hex
            {
                return Err(StoreError::DigestMismatch {
                    what: name.clone(),
                    found: file.hex.clone(),
                });
            }
        }
        let mut by_manifest: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut order = Vec::new();
        for entry in index.manifests() {
            let blob = blob_name(entry)?;
            let annotations = entry.annotations().clone().unwrap_or_default();
            let name = annotations.get(CONTAINERD_NAME).or(annotations.get(REF_NAME));
            if !by_manifest.contains_key(&blob) {
                order.push(blob.clone());
            }
            by_manifest.entry(blob).or_default().extend(name.cloned());
        }
        let mut images = Vec::new();
        for blob in order {
            let bytes = read(&blob, "a manifest is missing")?;
            let manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(unreadable)?;
            let config = read(&blob_name(manifest.config())?, "a configuration is missing")?;
            if !is_wanted(&config, wanted) {
                continue;
            }
            let mut layers = Vec::new();
            for layer in manifest.layers() {
                let file = match files.get(&blob_name(layer)?) {
                    None if beside => self.kept(layer),
                    file => file.cloned(),
                };
                layers.push(file.ok_or(StoreError::NotAnImage("a layer is missing"))?);
            }
            let layers: Vec<&Loaded> = layers.iter().collect();
            let names = by_manifest.get(&blob).filter(|_| wanted.is_none());
            let names = names.cloned().unwrap_or_default();
            images.push(self.load_image(scratch, config, Some(bytes), &layers, &names)?);
        }
        Ok(images)
    }

    /// A layer that is here already.
    fn kept(&self, layer: &Descriptor) -> Option<Loaded> {
        let hex = layer.as_digest_sha256()?.to_owned();
        let path = self.blob(&hex);
        let len = std::fs::metadata(&path).ok()?.len();
        Some(Loaded { path, hex, len })
    }

    fn load_image(
        &self,
        scratch: &Scratch,
        config: Vec<u8>,
        manifest: Option<Vec<u8>>,
        files: &[&Loaded],
        names: &[String],
    ) -> Result<Image, StoreError> {
        let parsed: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|_| StoreError::NotAnImage("its configuration is damaged"))?;
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() != files.len() {
            return Err(StoreError::NotAnImage("configuration and manifest differ in layers"));
        }
        let described = manifest.as_deref().map(serde_json::from_slice::<ImageManifest>);
        let described = described.transpose().map_err(|_| StoreError::NotAnImage("manifest"))?;
        let checkpoint = described
            .map(|manifest| crate::checkpoint_image::annotations(manifest.annotations()))
            .unwrap_or_default();
        // What is here must stay until it is referred to.
        let diffs = diff_ids.iter().map(|id| id.strip_prefix("sha256:").unwrap_or(id)).collect();
        self.pin(scratch, diffs, files.iter().map(|file| file.hex.as_str()).collect())?;
        let mut layers = Vec::new();
        for (number, (file, diff_id)) in files.iter().zip(diff_ids).enumerate() {
            let expected = diff_id.strip_prefix("sha256:").unwrap_or(diff_id);
            layers.push(match checkpoint.is_empty() {
                true => self.load_layer(file, expected, number == 0)?,
                false => self.load_archive(file, expected)?,
            });
        }
        // Names that we could not write are no reason to refuse the image.
        let names = names.iter().filter_map(|n| ImageName::local(n).ok()).collect();
        let created = parsed.created().clone().unwrap_or_default();
        let digests = Vec::new();
        let image = NewImage { config, manifest, layers, created, names, digests, checkpoint };
        let added = self.add_image(image);
        // The scratch directory holds the blobs until they are in their places.
        tracing::trace!(scratch = %scratch.path().display(), "loaded");
        added
    }

    /// The layer of an image that is a checkpoint: its archive is kept and not unpacked.
    fn load_archive(&self, file: &Loaded, diff: &str) -> Result<Layer, StoreError> {
        let (blob, compression, stream) = file.open(self)?;
        let mut plain = Digesting::new(decompress(compression, stream)?);
        io::copy(&mut plain, &mut io::sink()).map_err(StoreError::ReadArchive)?;
        let (_, found, _) = plain.finish();
        match found == diff {
            true => Ok(Layer::in_place(diff, file.len, blob)),
            false => Err(StoreError::DigestMismatch { what: format!("layer {diff}"), found }),
        }
    }

    fn load_layer(&self, file: &Loaded, diff: &str, lowest: bool) -> Result<Layer, StoreError> {
        let (blob, compression, stream) = file.open(self)?;
        if let Some(size) = self.layer_size(diff)? {
            return Ok(Layer::in_place(diff, size, blob));
        }
        let whiteouts = Whiteouts::of_layer(lowest);
        let scratch = self.scratch()?;
        let plain = decompress(compression, stream)?;
        let (found, size, dir) = self.unpack_layer(&scratch, plain, whiteouts)?;
        if found != diff {
            return Err(StoreError::DigestMismatch { what: format!("layer {diff}"), found });
        }
        let fd = crate::store::open_dir(&dir)?;
        rustix::fs::syncfs(&fd).at("sync", &dir)?;
        Ok(Layer { hex: found, size, blob, _scratch: Some(scratch), unpacked: Some(dir) })
    }
}

/// Whether an image's configuration has the id that is looked for.
fn is_wanted(config: &[u8], wanted: Option<&str>) -> bool {
    wanted.is_none_or(|id| sha256_hex(config) == id)
}

/// Writes the files of an archive into a scratch directory, under numbers, with their digests.
fn spool(scratch: &Scratch, archive: impl Read) -> Result<BTreeMap<String, Loaded>, StoreError> {
    /// More members than any image has.
    const MAX_FILES: usize = 10_000;
    let (compression, stream) = sniff(archive)?;
    let mut tar = TarStream::new(decompress(compression, stream)?);
    let mut files: BTreeMap<String, Loaded> = BTreeMap::new();
    let mut links: Vec<(String, String)> = Vec::new();
    while let Some(member) = tar.next_member().map_err(StoreError::ReadArchive)? {
        let name = String::from_utf8_lossy(&member.path).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        if files.len() + links.len() >= MAX_FILES {
            return Err(StoreError::NotAnImage("it has too many members"));
        }
        match member.kind {
            EntryType::Regular => {
                let path = scratch.path().join(format!("file{}", files.len()));
                let file = File::create(&path).at("make", &path)?;
                let mut sink = Digesting::new(file);
                io::copy(&mut tar, &mut sink).map_err(StoreError::ReadArchive)?;
                let (_, hex, len) = sink.finish();
                files.insert(name, Loaded { path, hex, len });
            }
            EntryType::Symlink | EntryType::Link => {
                // `docker save` links layers that occur several times: `../HEX/layer.tar`.
                let target = String::from_utf8_lossy(member.link.as_deref().unwrap_or_default())
                    .trim_start_matches("../")
                    .to_owned();
                links.push((name, target));
            }
            _ => {}
        }
    }
    for (name, target) in links {
        if let Some(file) = files.get(&target).cloned() {
            files.insert(name, file);
        }
    }
    Ok(files)
}

/// The manifest of an image that came without one.
pub(crate) fn manifest(config: &[u8], layers: &[Layer]) -> Result<Vec<u8>, StoreError> {
    use oci_spec::image::ImageManifestBuilder;
    let wrong = |_| StoreError::NotAnImage("digest");
    let descriptor = |media: MediaType, size: u64, hex: &str| {
        hex.parse::<Sha256Digest>().map(|digest| Descriptor::new(media, size, digest))
    };
    let id = sha256_hex(config);
    let config = descriptor(MediaType::ImageConfig, config.len() as u64, &id).map_err(wrong)?;
    let layers: Result<Vec<_>, _> =
        layers.iter().map(|l| descriptor(l.blob.media.clone(), l.blob.len, &l.blob.hex)).collect();
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers.map_err(wrong)?)
        .build()
        .map_err(wrong)?;
    serde_json::to_vec(&manifest).map_err(|_| StoreError::NotAnImage("manifest"))
}
