//! Named volumes in checkpoints, in Podman's form: one archive a volume, `volumes/NAME.tar`.
//!
//! They are fixed at the same instant as everything else. As with the root file system, large files
//! are copied before the freeze, and again in it only if they have changed since.
//!
//! A restore makes the volumes anew. One that is there already belongs to somebody: it is refused,
//! unless the user says with `--ignore-volumes` that it is the one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arctern_engine::options::HookError;
use arctern_storage::unpack::Devices;
use arctern_storage::{StoreError, diff, tree};

use super::{RestoreOptions, VOLUMES};
use crate::config::ContainerConfig;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids;

/// The volumes of a container that is being captured.
pub(super) struct Capture {
    list: Vec<Captured>,
}

struct Captured {
    data: PathBuf,
    /// Its archive comes here.
    dir: PathBuf,
    early: diff::Early,
}

impl Captured {
    fn source(&self) -> diff::Source<'_> {
        diff::Source { upper: &self.data, lowers: &[], excludes: &[] }
    }
}

impl Capture {
    /// Copies files of at least `large` bytes; `dir` is the container's directory of the capture.
    pub fn begin(
        host: &Host,
        config: &ContainerConfig,
        skip: &[String],
        dir: &Path,
        large: u64,
    ) -> Result<Capture> {
        let mut list = Vec::new();
        for name in names(config, skip) {
            let data = host.images.volume_path(name).map_err(Error::storage)?;
            let dir = dir.join(VOLUMES).join(name);
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
            let mut volume = Captured { data, dir, early: diff::Early::default() };
            volume.early =
                diff::Early::begin(&volume.source(), &volume.dir, large).map_err(Error::storage)?;
            list.push(volume);
        }
        Ok(Capture { list })
    }

    /// Captures the rest, while the container is frozen.
    pub fn finish(&mut self) -> std::result::Result<(), HookError> {
        for volume in &mut self.list {
            let early = std::mem::take(&mut volume.early);
            let captured = early.finish(&volume.source(), &volume.dir)?;
            if captured.has_deleted {
                // A file that was copied early is gone, and such an archive has no list of those.
                diff::capture(&volume.source(), &volume.dir)?;
            }
        }
        Ok(())
    }
}

/// Bytes that the volumes of a container take at least.
pub(crate) fn least(host: &Host, config: &ContainerConfig) -> u64 {
    let paths =
        names(config, &[]).into_iter().filter_map(|name| host.images.volume_path(name).ok());
    paths.filter_map(|path| tree::measure(&path).ok()).map(|measured| measured.least).sum()
}

/// The volumes of a container but for some, each once: several mounts may be of one.
fn names<'a>(config: &'a ContainerConfig, skip: &[String]) -> std::collections::BTreeSet<&'a str> {
    let all = config.named_volumes.iter().map(|volume| volume.name.as_str());
    all.filter(|name| !skip.iter().any(|skipped| skipped == name)).collect()
}

/// The members of an archive, and the files that hold them now.
pub(super) fn members(
    config: &ContainerConfig,
    skip: &[String],
    dir: &Path,
) -> Vec<(String, PathBuf)> {
    let member = |name| {
        let file = dir.join(VOLUMES).join(name).join(diff::DIFF_FILE);
        (format!("{VOLUMES}/{name}.tar"), file)
    };
    names(config, skip).into_iter().map(member).collect()
}

/// Gives the anonymous volumes of a container that is restored under a new name names of their own,
/// and refuses others that are there.
pub(crate) fn check(host: &Host, config: &ContainerConfig, options: &RestoreOptions) -> Result<()> {
    let mut taken = Vec::new();
    for name in names(config, &options.skip_volumes) {
        match host.images.volume_path(name) {
            Ok(_) if !options.ignore_volumes => taken.push(name.to_owned()),
            Ok(_) | Err(StoreError::NoSuchVolume(_)) => {}
            Err(error) => return Err(Error::storage(error)),
        }
    }
    match taken.is_empty() {
        true => Ok(()),
        false => Err(Error::VolumesExist(taken)),
    }
}

/// New names for anonymous volumes, for a new container; gives the old ones.
pub(super) fn rename_anonymous(config: &mut ContainerConfig) -> Result<Renamed> {
    let mut renamed = Renamed::default();
    for volume in config.named_volumes.iter_mut().filter(|volume| volume.anonymous) {
        let new = ids::new_id().map_err(Error::system("read random bytes"))?;
        renamed.0.push((new.clone(), std::mem::replace(&mut volume.name, new)));
    }
    Ok(renamed)
}

/// New names and old ones.
#[derive(Debug, Default)]
pub(super) struct Renamed(Vec<(String, String)>);

impl Renamed {
    fn old<'a>(&'a self, name: &'a str) -> &'a str {
        self.0.iter().find(|(new, _)| new == name).map_or(name, |(_, old)| old)
    }
}

/// Makes the volumes of a container that is being restored, and fills them from the archive that was
/// unpacked into `dir`.
pub(super) fn bring_in(
    host: &Host,
    config: &ContainerConfig,
    dir: &Path,
    options: &RestoreOptions,
    renamed: &Renamed,
) -> Result<()> {
    for name in names(config, &options.skip_volumes) {
        let anonymous = config.named_volumes.iter().any(|v| v.name == *name && v.anonymous);
        match host.images.volume_create_for(name, anonymous, &config.id) {
            Ok(_) => {}
            Err(StoreError::VolumeExists(_)) if options.ignore_volumes => continue,
            Err(StoreError::VolumeExists(name)) => return Err(Error::VolumesExist(vec![name])),
            Err(error) => return Err(Error::storage(error)),
        }
        if options.ignore_volumes {
            continue;
        }
        let old = renamed.old(name);
        let path = dir.join(VOLUMES).join(format!("{old}.tar"));
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Invalid(format!(
                    "the archive has no {VOLUMES}/{old}.tar: its volume was left out"
                )));
            }
            other => other.map_err(Error::io("open", &path))?,
        };
        let data = host.images.volume_path(name).map_err(Error::storage)?;
        tree::extract(file, &data, devices(options)).map_err(Error::storage)?;
    }
    Ok(())
}

/// The device nodes that may come out of an archive.
pub(crate) fn devices(options: &RestoreOptions) -> Devices {
    if options.allowed.trust { Devices::Character } else { Devices::Ordinary }
}
