//! `pull`: from a registry into the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};

use super::client::{Client, MAX_TEXT, Scope};
use super::manifest::{ACCEPTED, Description, Platform};
use super::{Access, Conf, Progress, Reference, RegistryError, Transfer, in_parallel};
use crate::image::{Image, NewImage};
use crate::layer::{Blob, Digesting, Layer, Tee, decompress, sha256_hex, sniff};
use crate::store::{AtPath, Scratch, Store, StoreError, open_dir};
use crate::unpack::Whiteouts;

/// When an image is got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Every time.
    Always,
    /// When it is not here.
    #[default]
    Missing,
    /// Never.
    Never,
    /// When the registry has another one; one that is here is used where the registry is silent.
    Newer,
}

impl std::str::FromStr for PullPolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "always" | "true" => Ok(PullPolicy::Always),
            "missing" | "ifnotpresent" | "" => Ok(PullPolicy::Missing),
            "never" | "false" => Ok(PullPolicy::Never),
            "newer" | "ifnewer" => Ok(PullPolicy::Newer),
            _ => Err("it is not always, missing, never or newer"),
        }
    }
}

/// How an image is got.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// How the registry is entered.
    pub access: Access,
    /// For another kind of machine than this.
    pub platform: Option<Platform>,
    /// The id that the image must have.
    pub expected: Option<String>,
}

/// A manifest as the registry has it.
struct Found {
    bytes: Vec<u8>,
    manifest: ImageManifest,
    /// SHA-256 of the manifest, and of the index that led to it.
    digests: Vec<String>,
}

impl Store {
    /// Gets an image by the policy.
    ///
    /// # Errors
    /// As [`Store::pull`]; [`StoreError::NoSuchImage`] when it may not be got.
    pub fn ensure(
        &self,
        name: &str,
        policy: PullPolicy,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, StoreError> {
        let here = self.resolve(name);
        match (policy, here) {
            (PullPolicy::Never | PullPolicy::Missing, Ok(image)) => Ok(image),
            (PullPolicy::Never, missing) => missing,
            (PullPolicy::Missing, Err(StoreError::NoSuchImage(..))) => {
                self.pull(name, options, progress)
            }
            (PullPolicy::Missing, other) => other,
            (PullPolicy::Always, _) => self.pull(name, options, progress),
            (PullPolicy::Newer, Err(_)) => self.pull(name, options, progress),
            (PullPolicy::Newer, Ok(image)) => self.pull(name, options, progress).or_else(|error| {
                progress.event(Transfer::Warning(&error.chain()));
                Ok(image)
            }),
        }
    }

    /// Gets an image from a registry. What is here already is not moved again; after a failure
    /// nothing of it stays.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::Registry`], those of unpacking.
    pub fn pull(
        &self,
        name: &str,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, StoreError> {
        let conf = Conf::load()?;
        let candidates = Reference::candidates(name, &conf)?;
        let mut failures = Vec::new();
        for reference in &candidates {
            progress.event(Transfer::Trying(&reference.to_string()));
            match self.pull_reference(reference, &conf, options, progress) {
                Ok(image) => return Ok(image),
                Err(error) if candidates.len() == 1 => return Err(error),
                Err(error) => failures.push((reference.to_string(), error.chain())),
            }
        }
        Err(RegistryError::Nowhere(failures).into())
    }

    /// Gets an image from the mirrors of its registry, or from the registry.
    fn pull_reference(
        &self,
        reference: &Reference,
        conf: &Conf,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, StoreError> {
        let sources = conf.sources(reference)?;
        let mut last = None;
        for source in &sources {
            if let Some(error) = last.take() {
                progress.event(Transfer::Warning(&StoreError::chain(&error)));
            }
            let client = Client::connect(source, &options.access).map_err(StoreError::from);
            match client.and_then(|c| self.pull_from(&c, reference, options, progress)) {
                Ok(image) => return Ok(image),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::Nowhere(Vec::new()).into()))
    }

    fn pull_from(
        &self,
        client: &Client,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, StoreError> {
        let found = find_manifest(client, reference, options)?;
        if let Some(wanted) = &options.expected {
            let found = hex_of(client, found.manifest.config())?;
            if found != wanted {
                let (name, found) = (reference.to_string(), found.to_owned());
                return Err(RegistryError::Moved { name, wanted: wanted.clone(), found }.into());
            }
        }
        let names: Vec<_> = reference.name().into_iter().collect();
        let digests: Vec<String> = found
            .digests
            .iter()
            .map(|hex| format!("{}@sha256:{hex}", reference.repository()))
            .collect();
        if let Some(image) = self.adopt(&found.digests[0], &names, &digests)? {
            return Ok(image);
        }
        let config = fetch_config(client, &found.manifest)?;
        let parsed: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|e| client.not_understood("the configuration", &e.to_string()))?;
        let diff_ids = parsed.rootfs().diff_ids();
        let layers = found.manifest.layers();
        if diff_ids.len() != layers.len() {
            let reason = "configuration and manifest differ in layers";
            return Err(client.not_understood("the manifest", reason).into());
        }
        if options.platform.is_none() && *parsed.architecture() != oci_spec::image::Arch::default()
        {
            let warning = format!(
                "{reference} is for {}/{}, which is not this machine",
                parsed.os(),
                parsed.architecture()
            );
            progress.event(Transfer::Warning(&warning));
        }
        let checkpoint = crate::checkpoint_image::annotations(found.manifest.annotations());
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for (descriptor, diff_id) in layers.iter().zip(diff_ids) {
            let blob = hex_of(client, descriptor)?;
            let diff = diff_id.strip_prefix("sha256:").filter(|hex| crate::names::is_sha256(hex));
            let diff = diff.ok_or_else(|| {
                client.not_understood("the configuration", "a diff id is no SHA-256")
            })?;
            let (unpack, lowest) = (checkpoint.is_empty(), jobs.is_empty());
            jobs.push(Job { descriptor, blob, diff, unpack, lowest });
        }
        // What is here must stay until it is referred to.
        let keep = self.scratch()?;
        self.pin(
            &keep,
            jobs.iter().map(|job| job.diff).collect(),
            jobs.iter().map(|job| job.blob).collect(),
        )?;
        let layers = self.fetch_layers(client, &jobs, progress)?;
        let tmp = open_dir(keep.path())?;
        rustix::fs::syncfs(&tmp).at("sync", keep.path())?;
        self.add_image(NewImage {
            config,
            manifest: Some(found.bytes),
            layers,
            created: parsed.created().clone().unwrap_or_default(),
            names,
            digests,
            checkpoint,
        })
    }

    /// Gets all layers. Some manifests name one several times: it is got once.
    fn fetch_layers(
        &self,
        client: &Client,
        jobs: &[Job<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Layer>, StoreError> {
        let mut seen = BTreeSet::new();
        let once: Vec<&Job<'_>> = jobs.iter().filter(|job| seen.insert(job.blob)).collect();
        let fetched = in_parallel(once.len(), |number, stop| {
            Fetch { store: self, client, progress, stop }.layer(once[number])
        })?;
        let sizes: BTreeMap<&str, u64> =
            once.iter().zip(&fetched).map(|(job, layer)| (job.blob, layer.size)).collect();
        let mut fetched: BTreeMap<&str, Layer> =
            once.iter().map(|job| job.blob).zip(fetched).collect();
        let layers = jobs.iter().map(|job| {
            fetched.remove(job.blob).unwrap_or_else(|| {
                let size = sizes.get(job.blob).copied().unwrap_or(0);
                Layer::in_place(job.diff, size, self.blob_in_place(job))
            })
        });
        Ok(layers.collect())
    }

    fn blob_in_place(&self, job: &Job<'_>) -> Blob {
        Blob {
            hex: job.blob.to_owned(),
            len: job.descriptor.size(),
            media: job.descriptor.media_type().clone(),
            path: self.blob(job.blob),
        }
    }
}

/// A layer that is to be here.
struct Job<'a> {
    descriptor: &'a Descriptor,
    /// SHA-256 of its archive, hexadecimal.
    blob: &'a str,
    /// SHA-256 of its plain archive, hexadecimal.
    diff: &'a str,
    /// Else only the archive is kept.
    unpack: bool,
    /// Nothing is below it.
    lowest: bool,
}

/// What the getting of one layer needs.
struct Fetch<'a> {
    store: &'a Store,
    client: &'a Client,
    progress: &'a dyn Progress,
    /// Set when another one failed.
    stop: &'a AtomicBool,
}

impl Fetch<'_> {
    fn layer(&self, job: &Job<'_>) -> Result<Layer, StoreError> {
        let store = self.store;
        let known = match job.unpack {
            true => store.layer_size(job.diff)?,
            false => Some(job.descriptor.size()),
        };
        let blob = store.blob(job.blob);
        if let Some(size) = known
            && blob.exists()
        {
            self.progress.event(Transfer::Done { key: job.blob, known: true });
            let blob = store.blob_in_place(job);
            return Ok(Layer::in_place(job.diff, size, blob));
        }
        let scratch = store.scratch()?;
        let url = self.client.url(&format!("blobs/sha256:{}", job.blob));
        let what = format!("layer sha256:{}", job.blob);
        let answer = self.client.good(self.client.get(&url, &[], Scope::Pull)?, &what)?;
        self.progress.event(Transfer::Begin { key: job.blob, length: job.descriptor.size() });
        let watched = Watched {
            // One byte more tells a longer one from one that is as long as it should be.
            stream: answer.into_body().into_reader().take(job.descriptor.size().saturating_add(1)),
            key: job.blob,
            progress: self.progress,
            stop: self.stop,
            failure: None,
        };
        let path = scratch.path().join("blob");
        let file = File::create(&path).at("make", &path)?;
        let copy = BufWriter::with_capacity(256 * 1024, file);
        let mut stream = Digesting::new(Tee { stream: watched, copy });
        let used = match (known, job.unpack) {
            (None, _) => self.unpack(&scratch, &mut stream, job.lowest),
            (Some(size), true) => Ok((job.diff.to_owned(), size, None)),
            (Some(size), false) => plain_digest(&mut stream).map(|diff| (diff, size, None)),
        };
        // What is wrong with the archive is told by its digest, when that is wrong too.
        let _ = io::copy(&mut stream, &mut io::sink());
        let (Tee { stream: watched, mut copy }, found, length) = stream.finish();
        let registry = || self.client.host().to_owned();
        if let Some(source) = watched.failure {
            return Err(RegistryError::Broken { registry: registry(), what, source }.into());
        }
        let expected = job.descriptor.size();
        if length != expected {
            let registry = registry();
            return Err(RegistryError::Length { registry, what, expected, found: length }.into());
        }
        if found != job.blob {
            let found = format!("sha256:{found}");
            return Err(RegistryError::Corrupt { registry: registry(), what, found }.into());
        }
        let (diff, size, dir) = used?;
        if diff != job.diff {
            let what = format!("unpacked layer sha256:{}", job.diff);
            let found = format!("sha256:{diff}");
            return Err(RegistryError::Corrupt { registry: registry(), what, found }.into());
        }
        copy.flush().at("write", &path)?;
        self.progress.event(Transfer::Done { key: job.blob, known: false });
        let blob = Blob { path, ..store.blob_in_place(job) };
        Ok(Layer { hex: job.diff.to_owned(), size, blob, _scratch: Some(scratch), unpacked: dir })
    }

    fn unpack(
        &self,
        scratch: &Scratch,
        stream: &mut impl Read,
        lowest: bool,
    ) -> Result<(String, u64, Option<PathBuf>), StoreError> {
        let (compression, stream) = sniff(stream)?;
        let plain = decompress(compression, stream)?;
        let whiteouts = Whiteouts::of_layer(lowest);
        let (diff, size, dir) = self.store.unpack_layer(scratch, plain, whiteouts)?;
        Ok((diff, size, Some(dir)))
    }
}

/// The digest of what is in a compressed stream.
fn plain_digest(stream: &mut impl Read) -> Result<String, StoreError> {
    let (compression, stream) = sniff(stream)?;
    let mut plain = Digesting::new(decompress(compression, stream)?);
    io::copy(&mut plain, &mut io::sink()).map_err(StoreError::ReadArchive)?;
    Ok(plain.finish().1)
}

/// A transfer that is watched, can be stopped, and remembers why it broke off.
struct Watched<'a, R> {
    stream: R,
    key: &'a str,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = match self.stop.load(Ordering::Relaxed) {
            true => Err(io::Error::other("another layer failed")),
            false => self.stream.read(buf),
        };
        match result {
            Ok(n) => {
                self.progress.event(Transfer::Moved { key: self.key, bytes: n as u64 });
                Ok(n)
            }
            Err(error) => {
                let kind = error.kind();
                // The first one is the reason.
                self.failure.get_or_insert(error);
                Err(kind.into())
            }
        }
    }
}

/// The manifest that a reference means for this machine, of which the digests were compared.
fn find_manifest(
    client: &Client,
    reference: &Reference,
    options: &PullOptions,
) -> Result<Found, StoreError> {
    let platform = options.platform.clone().unwrap_or_default();
    let (bytes, hex, media) = fetch_manifest(client, &reference.selector())?;
    let read = |bytes: &[u8], media: Option<&str>| {
        Description::parse(bytes, media)
            .map_err(|reason| client.not_understood("the manifest", &reason))
    };
    let index = match read(&bytes, media.as_deref())? {
        Description::Image(manifest) => {
            return Ok(Found { bytes, manifest: *manifest, digests: vec![hex] });
        }
        Description::Index(index) => index,
    };
    let chosen = platform.choose(&index).map_err(|offered| RegistryError::NoPlatform {
        image: reference.to_string(),
        wanted: platform.to_string(),
        offered,
    })?;
    let own = hex_of(client, chosen)?;
    let (bytes, own, media) = fetch_manifest(client, &format!("sha256:{own}"))?;
    match read(&bytes, media.as_deref())? {
        Description::Image(manifest) => {
            Ok(Found { bytes, manifest: *manifest, digests: vec![own, hex] })
        }
        Description::Index(_) => {
            Err(client.not_understood("the index", "an index is in it in place of an image").into())
        }
    }
}

/// A manifest by tag or digest, with its SHA-256 and what the registry says it is.
fn fetch_manifest(
    client: &Client,
    selector: &str,
) -> Result<(Vec<u8>, String, Option<String>), RegistryError> {
    let what = match selector.starts_with("sha256:") {
        true => format!("manifest {selector}"),
        false => format!("manifest with the tag {selector}"),
    };
    let url = client.url(&format!("manifests/{selector}"));
    let answer = client.good(client.get(&url, ACCEPTED, Scope::Pull)?, &what)?;
    let header = |name: &str| {
        let value = answer.headers().get(name)?.to_str().ok()?;
        Some(value.split(';').next().unwrap_or(value).trim().to_owned())
    };
    let (media, promised) = (header("content-type"), header("docker-content-digest"));
    let bytes = client.text(answer, &what, MAX_TEXT)?;
    let found = sha256_hex(&bytes);
    let asked = selector.strip_prefix("sha256:").map(str::to_owned);
    let promised = promised.and_then(|d| d.strip_prefix("sha256:").map(str::to_owned));
    match asked.or(promised) {
        Some(expected) if expected != found => Err(RegistryError::Corrupt {
            registry: client.host().to_owned(),
            what: format!("manifest sha256:{expected}"),
            found: format!("sha256:{found}"),
        }),
        _ => Ok((bytes, found, media)),
    }
}

fn fetch_config(client: &Client, manifest: &ImageManifest) -> Result<Vec<u8>, StoreError> {
    let hex = hex_of(client, manifest.config())?;
    let what = format!("configuration sha256:{hex}");
    let url = client.url(&format!("blobs/sha256:{hex}"));
    let answer = client.good(client.get(&url, &[], Scope::Pull)?, &what)?;
    let bytes = client.text(answer, &what, MAX_TEXT)?;
    let found = sha256_hex(&bytes);
    match found == hex {
        true => Ok(bytes),
        false => {
            let (registry, found) = (client.host().to_owned(), format!("sha256:{found}"));
            Err(RegistryError::Corrupt { registry, what, found }.into())
        }
    }
}

/// The SHA-256 of a descriptor: no other digest is used by anybody.
fn hex_of<'a>(client: &Client, descriptor: &'a Descriptor) -> Result<&'a str, RegistryError> {
    descriptor
        .as_digest_sha256()
        .filter(|hex| crate::names::is_sha256(hex))
        .ok_or_else(|| client.not_understood("the manifest", "a digest is no SHA-256"))
}
