//! `push`: from the store to a registry. What the registry has already is not moved.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use oci_spec::image::{Descriptor, ImageManifest};

use super::client::{Client, Scope};
use super::manifest::{Format, convert, format_of};
use super::{Access, Conf, Progress, Reference, RegistryError, Transfer, in_parallel};
use crate::layer::sha256_hex;
use crate::names::ImageName;
use crate::store::{AtPath, Store, StoreError};

/// How an image is pushed.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// How the registry is entered.
    pub access: Access,
    /// Format of the manifest; None leaves it as it is.
    pub format: Option<Format>,
}

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Where to.
    pub name: String,
    /// SHA-256 of the manifest, hexadecimal.
    pub digest: String,
}

/// A blob that the registry is to have, opened: whoever removes the image meanwhile does no harm.
struct Job {
    hex: String,
    length: u64,
    file: File,
}

impl Store {
    /// Pushes an image to its own name, or to another one.
    ///
    /// # Errors
    /// As [`Store::resolve`]; [`StoreError::BadName`], [`StoreError::Registry`].
    pub fn push(
        &self,
        image: &str,
        destination: Option<&str>,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Pushed, StoreError> {
        let conf = Conf::load()?;
        let (id, bytes, jobs) = self.open_blobs(image)?;
        let name = destination.unwrap_or(image);
        let name = ImageName::local(name.strip_prefix("docker://").unwrap_or(name))?;
        let reference = Reference::of(&name);
        let manifest = match options.format {
            Some(format) if format != format_of(&bytes) => {
                convert(&bytes, format).map_err(|reason| RegistryError::NotAnImage {
                    registry: reference.registry().to_owned(),
                    what: format!("a copy of {image}"),
                    reason,
                })?
            }
            _ => bytes.clone(),
        };
        progress.event(Transfer::Trying(&reference.to_string()));
        let client = Client::connect(&conf.destination(&reference)?, &options.access)?;
        in_parallel(jobs.len(), |number, stop| {
            let job = &jobs[number];
            push_blob(&client, job, progress, stop)
        })?;
        let url = client.url(&format!("manifests/{}", name.tag()));
        let media = format_of(&manifest).manifest();
        let what = format!("the manifest of {reference}");
        let length = manifest.len() as u64;
        let answer = client.put(&url, media, &mut manifest.as_slice(), length)?;
        client.good(answer, &what)?;
        let digest = sha256_hex(&manifest);
        if manifest == bytes {
            self.note_digest(&id, format!("{}@sha256:{digest}", reference.repository()))?;
        }
        Ok(Pushed { name: reference.to_string(), digest })
    }

    /// The manifest of an image, and its blobs: layers and configuration.
    fn open_blobs(&self, image: &str) -> Result<(String, Vec<u8>, Vec<Job>), StoreError> {
        // Nothing is removed between the look into the index and the opening.
        let _lock = self.lock()?;
        let image = self.resolve(image)?;
        let path = self.blob(&image.manifest);
        let bytes = std::fs::read(&path).at("read", &path)?;
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        let mut seen = BTreeSet::new();
        let mut jobs = Vec::new();
        let descriptors: Vec<&Descriptor> =
            manifest.layers().iter().chain([manifest.config()]).collect();
        for hex in descriptors.into_iter().filter_map(Descriptor::as_digest_sha256) {
            if seen.insert(hex.to_owned()) {
                let path = self.blob(hex);
                let file = File::open(&path).at("open", &path)?;
                let length = file.metadata().at("inspect", &path)?.len();
                jobs.push(Job { hex: hex.to_owned(), length, file });
            }
        }
        Ok((image.id, bytes, jobs))
    }
}

fn push_blob(
    client: &Client,
    job: &Job,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<(), StoreError> {
    let what = format!("blob sha256:{}", job.hex);
    if client.has(&client.url(&format!("blobs/sha256:{}", job.hex)), Scope::Push)? {
        progress.event(Transfer::Done { key: &job.hex, known: true });
        return Ok(());
    }
    progress.event(Transfer::Begin { key: &job.hex, length: job.length });
    let begun = client.good(client.post(&client.url("blobs/uploads/"))?, &what)?;
    let location = begun.headers().get("location").and_then(|l| l.to_str().ok());
    let location = location
        .ok_or_else(|| client.not_understood(&what, "the registry names no place for it"))?;
    let url = client.absolute(location);
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}digest=sha256:{}", job.hex);
    let mut stream = Counted { file: &job.file, key: &job.hex, progress, stop };
    let answer = client.put(&url, "application/octet-stream", &mut stream, job.length)?;
    client.good(answer, &what)?;
    progress.event(Transfer::Done { key: &job.hex, known: false });
    Ok(())
}

/// A file that tells how far it was read, and ends when another blob failed.
struct Counted<'a> {
    file: &'a File,
    key: &'a str,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another blob failed"));
        }
        let n = self.file.read(buf)?;
        self.progress.event(Transfer::Moved { key: self.key, bytes: n as u64 });
        Ok(n)
    }
}
