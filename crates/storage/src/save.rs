//! Saving images to files: OCI image layouts in a tar stream, which every engine reads, and archives
//! of Docker's form with plain layers. Both are streams of known length: nothing is spooled.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType, Sha256Digest};
use serde_json::{Value, json};
use tar::EntryType;

use crate::image::Image;
use crate::layer::{Compression, Digesting, decompress, sha256_hex, sniff};
use crate::layout::REF_NAME;
use crate::registry::manifest::{Format, convert, format_of};
use crate::store::{AtPath, Store, StoreError};

/// An image as a tar stream of known length.
pub struct ImageArchive {
    members: std::vec::IntoIter<(String, Content)>,
    current: Option<Box<dyn Read + Send>>,
    size: u64,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    /// A file as it is.
    File(File, u64),
    /// What is in a compressed file, and its length.
    Plain(File, Compression, u64),
}

impl std::fmt::Debug for ImageArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageArchive").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, len) | Content::Plain(_, _, len) => *len,
        }
    }
}

impl ImageArchive {
    /// Length of the whole stream in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn new(members: Vec<(String, Content)>) -> Self {
        let padded = |len: u64| len.next_multiple_of(512) + 512;
        let size = members.iter().map(|(_, c)| padded(c.len())).sum::<u64>() + 1024;
        ImageArchive { members: members.into_iter(), current: None, size }
    }

    /// The stream of the next member with header and padding; the end mark after the last.
    fn advance(&mut self) -> io::Result<Option<Box<dyn Read + Send>>> {
        let Some((name, content)) = self.members.next() else {
            return Ok(None);
        };
        let mut header = tar::Header::new_ustar();
        header.set_path(&name)?;
        header.set_mode(0o644);
        header.set_size(content.len());
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        let padding = content.len().next_multiple_of(512) - content.len();
        let head = io::Cursor::new(header.as_bytes().to_vec());
        let body: Box<dyn Read + Send> = match content {
            Content::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
            Content::File(file, len) => Box::new(file.take(len)),
            Content::Plain(file, compression, len) => {
                Box::new(decompress(compression, file).map_err(io::Error::other)?.take(len))
            }
        };
        let end = if self.members.len() == 0 { 1024 } else { 0 };
        Ok(Some(Box::new(head.chain(body).chain(io::repeat(0).take(padding + end)))))
    }
}

impl Read for ImageArchive {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(current) = &mut self.current {
                let n = current.read(buf)?;
                if n > 0 || buf.is_empty() {
                    return Ok(n);
                }
            }
            self.current = self.advance()?;
            if self.current.is_none() {
                return Ok(0);
            }
        }
    }
}

/// A layer of an image as it is kept, compressed or not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerBlob {
    /// Its digest, 64 hexadecimal digits.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

/// Forms of archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFormat {
    /// An OCI image layout.
    Oci,
    /// What `docker save` writes.
    Docker,
}

impl Store {
    /// An image as an OCI image layout, with all its names.
    ///
    /// # Errors
    /// As [`Store::resolve`]; [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn export_image(&self, name_or_id: &str) -> Result<ImageArchive, StoreError> {
        let _lock = self.lock()?;
        let image = self.resolve(name_or_id)?;
        let names = image.names.clone();
        self.layout(&[(image, names)], &[])
    }

    /// As [`Store::export_image`], with no other layers than these: for [`Store::load_beside`].
    ///
    /// # Errors
    /// As [`Store::export_image`].
    pub fn export_layers(
        &self,
        name_or_id: &str,
        wanted: &[LayerBlob],
    ) -> Result<ImageArchive, StoreError> {
        let others = self.layer_blobs(name_or_id)?.into_iter().filter(|l| !wanted.contains(l));
        let others: Vec<String> = others.map(|layer| layer.sha256).collect();
        let _lock = self.lock()?;
        let image = self.resolve(name_or_id)?;
        let names = image.names.clone();
        self.layout(&[(image, names)], &others)
    }

    /// The layers of an image as they are kept.
    ///
    /// # Errors
    /// As [`Store::export_image`].
    pub fn layer_blobs(&self, name_or_id: &str) -> Result<Vec<LayerBlob>, StoreError> {
        let (_, manifest) = self.manifest_of(&self.resolve(name_or_id)?)?;
        let blob = |layer: &Descriptor| {
            let sha256 = layer.as_digest_sha256()?.to_owned();
            Some(LayerBlob { sha256, bytes: layer.size() })
        };
        Ok(manifest.layers().iter().filter_map(blob).collect())
    }

    /// Those that are not here.
    #[must_use]
    pub fn missing_layers(&self, layers: &[LayerBlob]) -> Vec<LayerBlob> {
        let is_digest =
            |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let here =
            |layer: &&LayerBlob| is_digest(&layer.sha256) && self.blob(&layer.sha256).exists();
        layers.iter().filter(|layer| !here(layer)).cloned().collect()
    }

    /// Images as an archive, each with the name by which it was asked for.
    ///
    /// # Errors
    /// As [`Store::export_image`]; [`StoreError::NotAnImage`] for checkpoints in Docker's form, which
    /// has no place for their annotations.
    pub fn save(&self, names: &[String], format: SaveFormat) -> Result<ImageArchive, StoreError> {
        // Everything is opened before something can be removed.
        let _lock = self.lock()?;
        let mut images: Vec<(Image, Vec<String>)> = Vec::new();
        for name in names {
            let image = self.resolve(name)?;
            let meant = image.name_meant(name);
            match images.iter_mut().find(|(known, _)| known.id == image.id) {
                Some((_, names)) => names.extend(meant),
                None => images.push((image, meant.into_iter().collect())),
            }
        }
        match format {
            SaveFormat::Oci => self.layout(&images, &[]),
            SaveFormat::Docker => self.docker(&images),
        }
    }

    fn layout(
        &self,
        images: &[(Image, Vec<String>)],
        without: &[String],
    ) -> Result<ImageArchive, StoreError> {
        let wrong = |_| StoreError::NotAnImage("a description cannot be made");
        let mut entries = Vec::new();
        let mut blobs = Vec::new();
        let mut seen = BTreeSet::new();
        for (image, names) in images {
            let (bytes, manifest) = self.manifest_of(image)?;
            // Docker's manifests have no place in a layout.
            let bytes = match format_of(&bytes) {
                Format::Oci => bytes,
                Format::Docker => {
                    convert(&bytes, Format::Oci).map_err(|_| StoreError::NotAnImage("manifest"))?
                }
            };
            let hex = sha256_hex(&bytes);
            let digest = hex.parse::<Sha256Digest>().map_err(wrong)?;
            let entry = |name: Option<&String>| {
                let length = bytes.len() as u64;
                let mut entry = Descriptor::new(MediaType::ImageManifest, length, digest.clone());
                if let Some(name) = name {
                    entry.set_annotations(Some([(REF_NAME.to_owned(), name.clone())].into()));
                }
                entry
            };
            match names.is_empty() {
                true => entries.push(entry(None)),
                false => entries.extend(names.iter().map(|name| entry(Some(name)))),
            }
            let layers = manifest.layers().iter().filter_map(Descriptor::as_digest_sha256);
            let layers = layers.filter(|hex| !without.iter().any(|other| other == hex));
            for hex in std::iter::once(image.id.as_str()).chain(layers) {
                if seen.insert(hex.to_owned()) {
                    blobs.push((format!("blobs/sha256/{hex}"), self.open_blob(hex)?));
                }
            }
            if seen.insert(hex.clone()) {
                blobs.push((format!("blobs/sha256/{hex}"), Content::Bytes(bytes.clone())));
            }
        }
        let mut index = ImageIndex::default();
        index.set_schema_version(2).set_media_type(Some(MediaType::ImageIndex));
        index.set_manifests(entries);
        let index = serde_json::to_vec(&index).map_err(|_| StoreError::NotAnImage("the index"))?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        let mut members = vec![
            ("oci-layout".to_owned(), Content::Bytes(layout)),
            ("index.json".to_owned(), Content::Bytes(index)),
        ];
        members.extend(blobs);
        Ok(ImageArchive::new(members))
    }

    fn docker(&self, images: &[(Image, Vec<String>)]) -> Result<ImageArchive, StoreError> {
        let mut members = Vec::new();
        let mut saved: Vec<Value> = Vec::new();
        let mut seen = BTreeSet::new();
        for (image, names) in images {
            if !image.checkpoint.is_empty() {
                return Err(StoreError::NotAnImage(
                    "a checkpoint needs the OCI form (--format oci-archive)",
                ));
            }
            let config = format!("{}.json", image.id);
            if seen.insert(config.clone()) {
                members.push((config.clone(), self.open_blob(&image.id)?));
            }
            let (_, manifest) = self.manifest_of(image)?;
            let blobs = manifest.layers().iter().filter_map(Descriptor::as_digest_sha256);
            for (diff, blob) in image.layers.iter().zip(blobs) {
                let name = format!("{diff}.tar");
                if seen.insert(name.clone()) {
                    members.push((name, self.open_plain(blob, diff)?));
                }
            }
            let layers: Vec<String> = image.layers.iter().map(|hex| format!("{hex}.tar")).collect();
            saved.push(json!({ "Config": config, "RepoTags": names, "Layers": layers }));
        }
        let manifest =
            serde_json::to_vec(&saved).map_err(|_| StoreError::NotAnImage("manifest"))?;
        members.push(("manifest.json".to_owned(), Content::Bytes(manifest)));
        Ok(ImageArchive::new(members))
    }

    fn manifest_of(&self, image: &Image) -> Result<(Vec<u8>, ImageManifest), StoreError> {
        let path = self.blob(&image.manifest);
        let bytes = std::fs::read(&path).at("read", &path)?;
        match serde_json::from_slice(&bytes) {
            Ok(manifest) => Ok((bytes, manifest)),
            Err(source) => Err(StoreError::Damaged { path, source }),
        }
    }

    fn open_blob(&self, hex: &str) -> Result<Content, StoreError> {
        let path = self.blob(hex);
        let file = File::open(&path).at("open", &path)?;
        let length = file.metadata().at("inspect", &path)?.len();
        Ok(Content::File(file, length))
    }

    /// A layer without its compression. It is read once before, for its length, which its header
    /// needs; and its digest is compared on that occasion.
    fn open_plain(&self, blob: &str, diff: &str) -> Result<Content, StoreError> {
        let path = self.blob(blob);
        let open = || File::open(&path).at("open", &path);
        let (compression, stream) = sniff(open()?)?;
        let mut plain = Digesting::new(decompress(compression, stream)?);
        io::copy(&mut plain, &mut io::sink()).map_err(StoreError::ReadArchive)?;
        let (_, found, length) = plain.finish();
        if found != diff {
            return Err(StoreError::DigestMismatch { what: format!("layer {diff}"), found });
        }
        Ok(Content::Plain(open()?, compression, length))
    }
}
