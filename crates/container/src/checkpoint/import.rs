//! `restore`: from an archive, or from the images that are kept with a container, to a shim that
//! brings it to life.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use arctern_engine::options::{Event, Events, RestoreReport};
use arctern_image::archive::{Limits, Provenance, extract, peek_within, verify};
use arctern_image::manifest::{HostFacts, Manifest};
use arctern_image::seal::Unseal;
use arctern_storage::unpack::Devices;

use super::capture::micros;
use super::{
    CONFIG, IMAGES, LOG, NETWORK, RestoreOptions, Restored, SPEC, discard, foreign, policy, source,
    volumes,
};
use crate::config::{ContainerConfig, short_id};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids;
use crate::lifecycle::Started;
use crate::lock::Lock;
use crate::shim::{Action, RestoreRequest, Trust};
use crate::state::{Record, Status};
use crate::time::Timestamp;

/// Members by which it is decided whether an archive is restored, as they were then.
type Dump = Vec<(String, Vec<u8>)>;

/// Largest config.dump that is read.
const MAX_CONFIG: u64 = 4 << 20;

/// An archive that is being read.
pub(crate) struct Incoming<R> {
    stream: R,
    /// What it is called, for messages.
    name: String,
    /// Its length in bytes, if it is known.
    length: u64,
    renamed: volumes::Renamed,
    /// What of it was read before.
    dump: Dump,
}

impl Incoming<File> {
    fn open(file: &Path, renamed: volumes::Renamed, dump: Dump) -> Result<Incoming<File>> {
        let stream = source::open(file)?;
        let length = stream.metadata().map_err(Error::io("inspect", file))?.len();
        Ok(Incoming { stream, name: file.display().to_string(), length, renamed, dump })
    }
}

impl<R: Read> Incoming<R> {
    /// One that comes from another host as it is made there.
    pub fn from_host(stream: R) -> Incoming<R> {
        let name = "what the other host sent".to_owned();
        Incoming { stream, name, length: 0, renamed: Default::default(), dump: Dump::new() }
    }
}

impl Host {
    /// Restores a container from the checkpoint that is kept with it. After a failure it is as it
    /// was, with its checkpoint.
    pub fn restore(&mut self, name_or_id: &str, options: &RestoreOptions) -> Result<Restored> {
        let begin = Instant::now();
        let (record, lock) = self.find_locked(name_or_id)?;
        if record.status == Status::Running {
            return Err(Error::WrongState {
                name: record.config.name,
                status: record.status,
                needed: "stopped",
            });
        }
        if !self.has_checkpoint(&record) {
            return Err(Error::NoCheckpoint(record.config.name));
        }
        let started = self.revive(&record, lock, options, Trust::Own)?;
        Ok(restored(record, started, begin))
    }

    /// Restores a container from an archive. After a failure nothing of it is left.
    pub fn restore_archive(
        &mut self,
        file: &Path,
        options: &RestoreOptions,
        events: &mut dyn Events,
    ) -> Result<Restored> {
        let begin = Instant::now();
        self.room_for_archive(file, options)?;
        let (config, renamed, dump) = read_config(file, options, source::limits(self)?)?;
        volumes::check(self, &config, options)?;
        self.find_image(file, &config, &options.unseal)?;
        let record = Record {
            status: Status::Restoring,
            created_at: Timestamp::parse_rfc3339(&config.created).unwrap_or_else(Timestamp::now),
            ..Record::new(config)
        };
        let (record, lock) = self.create_from(record)?;
        let trust = if options.allowed.trust { Trust::Foreign } else { Trust::None };
        let brought = Incoming::open(file, renamed, dump)
            .and_then(|incoming| self.bring_in(incoming, &record, options, events))
            .and_then(|()| {
                options.cancel.check()?;
                events.event(Event::Phase("restore"));
                self.revive(&record, lock, options, trust)
            });
        match brought {
            Ok(started) => Ok(restored(record, started, begin)),
            Err(error) => {
                let cleaned =
                    self.teardown(record.id()).and_then(|()| self.forget_restore(record.id()));
                if let Err(cleanup) = cleaned {
                    tracing::error!("while cleaning up {}: {}", record.id(), cleanup.chain());
                }
                Err(error)
            }
        }
    }

    fn revive(
        &mut self,
        record: &Record,
        lock: Lock,
        options: &RestoreOptions,
        trust: Trust,
    ) -> Result<Started> {
        self.room_for_restore(record)?;
        let request = RestoreRequest { trust, ..RestoreRequest::of(options) };
        self.request_restore(record.id(), &request)?;
        self.spawn_shim(record, lock, Action::Restore, false)
    }

    /// Writes down what the next shim of a container is to restore.
    pub(crate) fn request_restore(&self, id: &str, request: &RestoreRequest) -> Result<()> {
        let path = self.make_dirs(id)?.run.join("restore");
        let json = serde_json::to_vec(request).map_err(Error::json("a restore request"))?;
        fs::write(&path, json).map_err(Error::io("write", &path))
    }

    /// The image must be here, or in the archive.
    pub(super) fn find_image(
        &self,
        file: &Path,
        config: &ContainerConfig,
        unseal: &Unseal,
    ) -> Result<()> {
        let missing = match self.images.resolve(&config.image_id) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if self.load_image(file, &config.image_id, unseal)? {
            return self.images.resolve(&config.image_id).map(drop).map_err(Error::storage);
        }
        Err(Error::ImageMissing {
            name: config.image_name.clone(),
            id: short_id(&config.image_id).to_owned(),
            source: Box::new(missing),
        })
    }

    /// Unpacks the archive beside a new container, compares digests and host facts, and puts
    /// everything in its place.
    pub(crate) fn bring_in(
        &mut self,
        incoming: Incoming<impl Read>,
        record: &Record,
        options: &RestoreOptions,
        events: &mut dyn Events,
    ) -> Result<()> {
        let id = record.id();
        let paths = self.paths.container(id);
        let dir = paths.import_dir();
        // Images come and go in thousands; not every file system can be told.
        let _ = dir.parent().map(arctern_sys::directory::spread_subdirectories);
        fs::create_dir(&dir).map_err(Error::io("create", &dir))?;
        events.event(Event::Phase("unpack"));
        // How much is in it is known at its end only; it is not less than it is long, by and large.
        let mut progress = |done: u64| {
            events.event(Event::Progress { done, total: incoming.length.max(done) });
        };
        let extracted =
            extract(incoming.stream, &dir, Limits::default(), &options.unseal, &mut progress)
                .map_err(Error::archive)?;
        events.event(Event::Phase("examine"));
        if let Provenance::Arctern(manifest) = &extracted.provenance {
            check_facts(manifest)?;
        }
        // What was decided by is what the digests are of.
        for (name, bytes) in &incoming.dump {
            let path = dir.join(name);
            if fs::read(&path).map_err(Error::io("read", &path))? != *bytes {
                let changed = format!("{} was changed while it was read", incoming.name);
                return Err(Error::Invalid(changed));
            }
        }
        events.event(Event::Phase("arrange"));
        let images = dir.join(IMAGES);
        if !images.join("inventory.img").is_file() {
            return Err(Error::Invalid(format!("{} holds no checkpoint", incoming.name)));
        }
        let rename =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(Error::io("rename", from));
        foreign::bring_mounts(&images, &dir)?;
        rename(&images, &paths.checkpoint())?;
        let log = dir.join(LOG);
        if log.is_file() {
            rename(&log, &paths.log())?;
        }
        events.event(Event::Phase("files"));
        if !options.ignore_rootfs {
            self.apply_diff(id, &dir, volumes::devices(options))?;
        }
        events.event(Event::Phase("volumes"));
        volumes::bring_in(self, &record.config, &dir, options, &incoming.renamed)?;
        events.event(Event::Phase("settle"));
        if let Ok(text) = fs::read_to_string(dir.join(NETWORK)) {
            let new_mac = options.ignore_static_mac.then(|| new_mac(id));
            let status = crate::network::from_archive(&text, options.ignore_static_ip, new_mac)?;
            self.store.update(id, |r| r.network = status)?;
        }
        discard(&dir)
    }

    /// Brings a new root file system to where the checkpoint's was.
    fn apply_diff(&self, id: &str, dir: &Path, devices: Devices) -> Result<()> {
        use arctern_storage::diff;
        let path = dir.join(diff::DIFF_FILE);
        let mut tar = match File::open(&path) {
            Ok(file) => Some(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("open", &path)(e)),
        };
        let deleted = match fs::read(dir.join(diff::DELETED_FILE)) {
            Ok(json) => diff::parse_deleted(&json).map_err(Error::json(diff::DELETED_FILE))?,
            Err(_) => Vec::new(),
        };
        if tar.is_none() && deleted.is_empty() {
            return Ok(());
        }
        let root = self.images.mount_root(id, false).map_err(Error::storage)?;
        let tar = tar.as_mut().map(|file| file as &mut dyn std::io::Read);
        diff::apply(tar, &deleted, &root, devices).map(drop).map_err(Error::storage)
    }
}

fn restored(record: Record, started: Started, begin: Instant) -> Restored {
    Restored {
        record,
        report: started
            .restore
            .unwrap_or_else(|| RestoreReport { pid: started.pid, ..RestoreReport::default() }),
        warnings: started.warnings,
        total_us: micros(begin.elapsed()),
    }
}

/// The configuration of the container in an archive, with the user's changes, and what it was read
/// from. It asks for nothing that is not allowed. Where a signature is required, the whole archive was
/// compared with it.
pub(super) fn read_config(
    file: &Path,
    options: &RestoreOptions,
    limits: Limits,
) -> Result<(ContainerConfig, volumes::Renamed, Dump)> {
    if options.unseal.signers.is_some() {
        verify(source::open(file)?, limits, &options.unseal).map_err(Error::archive)?;
    }
    let source = source::open(file)?;
    let names = [CONFIG, SPEC];
    let mut found =
        peek_within(source, &names, MAX_CONFIG, limits, &options.unseal).map_err(Error::archive)?;
    let dump: Dump = found.iter().map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
    let Some(json) = found.remove(CONFIG) else {
        return Err(Error::Invalid(format!(
            "{} holds no container: there is no {CONFIG} in it",
            file.display()
        )));
    };
    let json: serde_json::Value = serde_json::from_slice(&json).map_err(Error::json(CONFIG))?;
    let mut config: ContainerConfig = match foreign::is_ours(&json) {
        true => serde_json::from_value(json).map_err(Error::json(CONFIG))?,
        false => {
            let Some(spec) = found.remove(SPEC) else {
                let file = file.display();
                return Err(Error::Invalid(format!("there is no {SPEC} in {file}")));
            };
            foreign::adopt(json, &spec)?
        }
    };
    if !ids::is_id(&config.id) || !ids::is_valid_name(&config.name) {
        return Err(Error::Invalid(format!(
            "{CONFIG} of {} has no valid id and name",
            file.display()
        )));
    }
    // A name would be whatever has that name here.
    if !ids::is_id(&config.image_id) {
        return Err(Error::Invalid(format!(
            "{CONFIG} of {} names its image by something else than its digest",
            file.display()
        )));
    }
    let mut renamed = volumes::Renamed::default();
    if let Some(name) = &options.name {
        if !ids::is_valid_name(name) {
            return Err(Error::InvalidName(name.clone()));
        }
        config.name.clone_from(name);
        // A new container gets the old address if it is free, and another one if it is not.
        config.forget_statics(true, true);
        renamed = volumes::rename_anonymous(&mut config)?;
        config.id = ids::new_id().map_err(Error::system("read random bytes"))?;
    }
    config.forget_statics(options.ignore_static_ip, options.ignore_static_mac);
    if !options.publish.is_empty() {
        config.ports.clone_from(&options.publish);
    }
    policy::settle(&mut config, &options.allowed)?;
    Ok((config, renamed, dump))
}

/// A hardware address that the container has not had: its id with the time make another one.
fn new_mac(id: &str) -> arctern_net::Mac {
    let now = Timestamp::now().0;
    arctern_net::Mac::of_container(&format!("{id} {now}"), std::net::Ipv4Addr::UNSPECIFIED)
}

/// Refuses what cannot run here.
fn check_facts(manifest: &Manifest) -> Result<()> {
    let here = HostFacts::gather().map_err(Error::system("read the facts of this machine"))?;
    let there = &manifest.host;
    if there.architecture != here.architecture || there.page_size != here.page_size {
        return Err(Error::Invalid(format!(
            "the checkpoint is of a {} machine with pages of {} bytes, this is {} with {}",
            there.architecture, there.page_size, here.architecture, here.page_size
        )));
    }
    let missing = there.features_missing_on(&here);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::CpuFeatures { missing: missing.join(", ") })
    }
}
