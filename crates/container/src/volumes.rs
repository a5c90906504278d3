//! What `-v` and `--mount` ask for, and the named volumes of containers: made when the container is
//! created, filled from its image when it is first started, removed by `rm -v` if nobody named them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use arctern_storage::{StoreError, Volume as Stored};
use serde::{Deserialize, Serialize};

use crate::config::{ContainerConfig, InvalidOption, Tmpfs, Volume};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids;

/// A volume of the store in a container, as Podman writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedVolume {
    /// Its name.
    #[serde(rename = "volumeName")]
    pub name: String,
    /// Path in the container.
    #[serde(rename = "dest")]
    pub destination: PathBuf,
    /// Mount options (`ro`, `noexec`, `nocopy`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
    /// Nobody gave it a name: it goes with its container.
    #[serde(rename = "setAnonymous", default, skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
}

type Parsed<T> = std::result::Result<T, InvalidOption>;

/// What is mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountRequest {
    /// A file or directory of the host.
    Bind(Volume),
    /// A volume; without a name it gets a new one.
    Volume(NamedVolume),
    /// An empty file system in memory.
    Tmpfs(Tmpfs),
}

const VOLUME_FORM: &str = "[/HOST/PATH:|NAME:]/CONTAINER/PATH[:OPTION,…]";
const MOUNT_FORM: &str = "type=bind|volume|tmpfs,source=PATH or NAME,target=/PATH[,ro][,OPTION,…]";

/// Options of `-v` and `--mount`. `z` and `Z` (SELinux labels) and `copy` change nothing here.
const OPTIONS: &[&str] = &[
    "ro", "rw", "z", "Z", "noexec", "exec", "nosuid", "suid", "nodev", "dev", "bind", "rbind",
    "private", "rprivate", "slave", "rslave", "shared", "rshared", "copy", "nocopy",
];

/// Options for volumes only.
const OF_VOLUMES: &[&str] = &["copy", "nocopy"];

impl MountRequest {
    /// Reads the value of `-v`: a bind mount if the source is a path, else a named volume, and a new
    /// volume if there is no source.
    ///
    /// # Errors
    /// [`InvalidOption`] when it is not of that form.
    pub fn volume(text: &str) -> Parsed<MountRequest> {
        let bad = || InvalidOption::new("volume", text, VOLUME_FORM);
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, options) = match parts[..] {
            [destination] => ("", destination, ""),
            [source, destination] => (source, destination, ""),
            [source, destination, options] => (source, destination, options),
            _ => return Err(bad()),
        };
        let options: Vec<String> =
            options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
        // `/a:/b` is a bind mount and `:/b` nothing.
        if parts.len() > 1 && source.is_empty() {
            return Err(bad());
        }
        place(source, destination, options).ok_or_else(bad)
    }

    /// Reads the value of `--mount`.
    ///
    /// # Errors
    /// [`InvalidOption`] when it is not of that form.
    pub fn mount(text: &str) -> Parsed<MountRequest> {
        let bad = || InvalidOption::new("mount", text, MOUNT_FORM);
        let (mut kind, mut source, mut target) = ("volume", "", "");
        let mut options = Vec::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (key, value) {
                ("type", value) => kind = value,
                ("source" | "src", value) => source = value,
                ("target" | "destination" | "dst", value) => target = value,
                ("ro" | "readonly", "" | "true") => options.push("ro".to_owned()),
                ("ro" | "readonly", "false") | ("rw", "" | "true") => options.push("rw".to_owned()),
                ("bind-propagation", value) if !value.is_empty() => options.push(value.to_owned()),
                ("tmpfs-size", value) => options.push(format!("size={value}")),
                ("tmpfs-mode", value) => options.push(format!("mode={value}")),
                (option, "") => options.push(option.to_owned()),
                _ => return Err(bad()),
            }
        }
        let is_path = source.starts_with('/');
        match kind {
            "tmpfs" if source.is_empty() && is_inside(target) => {
                Ok(MountRequest::Tmpfs(Tmpfs { destination: target.into(), options }))
            }
            "bind" if is_path => place(source, target, options).ok_or_else(bad),
            "volume" if !is_path => place(source, target, options).ok_or_else(bad),
            _ => Err(bad()),
        }
    }

    /// Where it is in the container.
    #[must_use]
    pub fn destination(&self) -> &Path {
        match self {
            MountRequest::Bind(volume) => &volume.destination,
            MountRequest::Volume(volume) => &volume.destination,
            MountRequest::Tmpfs(tmpfs) => &tmpfs.destination,
        }
    }
}

/// A bind mount or a volume, if everything of it can be.
fn place(source: &str, destination: &str, options: Vec<String>) -> Option<MountRequest> {
    let bind = source.starts_with('/');
    let known = |option: &String| {
        let option = option.as_str();
        OPTIONS.contains(&option) && !(bind && OF_VOLUMES.contains(&option))
    };
    if !is_inside(destination) || !options.iter().all(known) {
        return None;
    }
    let destination = PathBuf::from(destination);
    if bind {
        return Some(MountRequest::Bind(Volume { source: source.into(), destination, options }));
    }
    let anonymous = source.is_empty();
    (anonymous || ids::is_valid_name(source)).then(|| {
        let options = Some(options).filter(|options| !options.is_empty());
        MountRequest::Volume(NamedVolume {
            name: source.to_owned(),
            destination,
            options,
            anonymous,
        })
    })
}

fn is_inside(destination: &str) -> bool {
    destination.starts_with('/') && !destination.trim_matches('/').is_empty()
}

impl NamedVolume {
    /// Whether what the image has at its place is left out of it.
    fn starts_empty(&self) -> bool {
        self.options.iter().flatten().any(|option| option == "nocopy")
    }

    /// The bind mount that it is, with its files at `source`.
    pub(crate) fn at(&self, source: PathBuf) -> Volume {
        let mut options: Vec<String> = ["nosuid", "nodev"].map(str::to_owned).into();
        for option in self.options.iter().flatten().filter(|o| !OF_VOLUMES.contains(&o.as_str())) {
            options.retain(|own| own.strip_prefix("no") != Some(option) && own != option);
            options.push(option.clone());
        }
        Volume { source, destination: self.destination.clone(), options }
    }
}

/// The host paths of bind mounts that are not there, as a list for people.
pub(crate) fn missing_sources(requests: &[MountRequest]) -> String {
    let missing = requests.iter().filter_map(|request| match request {
        MountRequest::Bind(volume) if !volume.source.exists() => {
            Some(volume.source.display().to_string())
        }
        _ => None,
    });
    missing.collect::<Vec<_>>().join(", ")
}

/// Sorts what is mounted by kind, and adds the volumes that the image asks for. Two at one place are
/// refused, all of them at once; the image's gives way.
pub(crate) fn sort(
    requests: Vec<MountRequest>,
    of_image: &[String],
    config: &mut ContainerConfig,
) -> Result<()> {
    let mut places: BTreeSet<PathBuf> = BTreeSet::new();
    let mut twice = Vec::new();
    let mut claim = |path: &Path| {
        let clean: PathBuf = path.components().collect();
        let free = places.insert(clean);
        if !free {
            twice.push(path.display().to_string());
        }
    };
    config.tmpfs.iter().for_each(|tmpfs| claim(&tmpfs.destination));
    for request in requests {
        claim(request.destination());
        match request {
            MountRequest::Bind(volume) => config.volumes.push(volume),
            MountRequest::Volume(volume) => config.named_volumes.push(volume),
            MountRequest::Tmpfs(tmpfs) => config.tmpfs.push(tmpfs),
        }
    }
    if !twice.is_empty() {
        return Err(Error::Invalid(format!("more than one mount at {}", twice.join(", "))));
    }
    for path in of_image {
        let clean: PathBuf = Path::new(path).components().collect();
        if is_inside(path) && places.insert(clean.clone()) {
            config.named_volumes.push(NamedVolume {
                name: String::new(),
                destination: clean,
                options: None,
                anonymous: true,
            });
        }
    }
    for volume in config.named_volumes.iter_mut().filter(|volume| volume.name.is_empty()) {
        volume.name = ids::new_id().map_err(Error::system("read random bytes"))?;
    }
    Ok(())
}

/// A volume with the containers that use it.
#[derive(Clone, Debug)]
pub struct VolumeInfo {
    /// As the store has it.
    pub volume: Stored,
    /// Where its files are.
    pub mountpoint: PathBuf,
    /// Names of the containers that have it.
    pub containers: Vec<String>,
}

impl Host {
    /// Makes the volumes of a new container that are not there.
    pub(crate) fn make_volumes(&self, config: &ContainerConfig) -> Result<()> {
        for volume in &config.named_volumes {
            match self.images.volume_create(&volume.name, volume.anonymous, BTreeMap::new()) {
                Ok(_) | Err(StoreError::VolumeExists(_)) => {}
                Err(error) => return Err(Error::storage(error)),
            }
        }
        Ok(())
    }

    /// The volumes of a container as bind mounts. Those that are new are filled first with what the
    /// container's root file system, mounted at `rootfs`, has at their place.
    pub(crate) fn mount_volumes(
        &self,
        config: &ContainerConfig,
        rootfs: &Path,
    ) -> Result<Vec<Volume>> {
        let mut binds = Vec::new();
        for volume in &config.named_volumes {
            if !volume.starts_empty() {
                self.images
                    .volume_populate(&volume.name, rootfs, &volume.destination)
                    .map_err(Error::storage)?;
            }
            let data = self.images.volume_path(&volume.name).map_err(Error::storage)?;
            binds.push(volume.at(data));
        }
        Ok(binds)
    }

    /// Makes a volume; an empty name gets a generated one.
    ///
    /// # Errors
    /// The name is taken, unless `ignore` is set, or is none.
    pub fn volume_create(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        ignore: bool,
    ) -> Result<String> {
        let name = match name {
            "" => ids::new_id().map_err(Error::system("read random bytes"))?,
            name if ids::is_valid_name(name) => name.to_owned(),
            name => return Err(Error::InvalidName(name.to_owned())),
        };
        match self.images.volume_create(&name, false, labels) {
            Err(StoreError::VolumeExists(_)) if ignore => Ok(name),
            other => other.map(|volume| volume.name).map_err(Error::storage),
        }
    }

    /// All volumes, by name, with their users.
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        let records = self.store.list()?;
        let volumes = self.images.volumes().map_err(Error::storage)?;
        let infos = volumes.into_iter().filter_map(|volume| {
            let uses = |config: &ContainerConfig| {
                config.named_volumes.iter().any(|v| v.name == volume.name)
            };
            let containers: Vec<String> = records
                .iter()
                .filter(|record| uses(&record.config))
                .map(|record| record.config.name.clone())
                .collect();
            let mountpoint = self.images.volume_path(&volume.name).ok()?;
            Some(VolumeInfo { volume, mountpoint, containers })
        });
        Ok(infos.collect())
    }

    /// One volume, by name.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> {
        let found = self.volumes()?.into_iter().find(|info| info.volume.name == name);
        found.ok_or_else(|| Error::storage(StoreError::NoSuchVolume(name.to_owned())))
    }

    /// Removes a volume. One that containers have goes only by force, together with them.
    pub fn volume_remove(&mut self, name: &str, force: bool) -> Result<()> {
        let info = self.volume(name)?;
        if !force && !info.containers.is_empty() {
            return Err(Error::VolumeInUse { name: name.to_owned(), containers: info.containers });
        }
        for container in info.containers {
            self.remove(&container, true)?;
        }
        match self.images.volume_remove(name) {
            // It was anonymous, and went with its container.
            Err(StoreError::NoSuchVolume(_)) => Ok(()),
            other => other.map_err(Error::storage),
        }
    }

    /// Removes the volumes that no container has, of those that are meant. Gives their names.
    pub fn volume_prune(&mut self, meant: impl Fn(&VolumeInfo) -> bool) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for info in self.volumes()? {
            if !info.containers.is_empty() || !meant(&info) {
                continue;
            }
            match self.images.volume_remove(&info.volume.name) {
                // Somebody else has removed it meanwhile.
                Err(StoreError::NoSuchVolume(_)) => {}
                other => {
                    other.map_err(Error::storage)?;
                    removed.push(info.volume.name);
                }
            }
        }
        Ok(removed)
    }

    /// Removes the anonymous volumes of a container that was removed, but those that others have.
    pub fn remove_anonymous(&mut self, config: &ContainerConfig) -> Result<()> {
        for volume in config.named_volumes.iter().filter(|volume| volume.anonymous) {
            match self.volume_remove(&volume.name, false) {
                Ok(()) | Err(Error::VolumeInUse { .. }) => {}
                Err(Error::Storage(inner))
                    if matches!(inner.downcast_ref(), Some(StoreError::NoSuchVolume(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, destination: &str, options: &[&str]) -> MountRequest {
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        MountRequest::Volume(NamedVolume {
            name: name.to_owned(),
            destination: destination.into(),
            options: Some(options).filter(|o| !o.is_empty()),
            anonymous: name.is_empty(),
        })
    }

    #[test]
    fn a_source_says_what_is_mounted() {
        assert_eq!(MountRequest::volume("data:/d:ro"), Ok(named("data", "/d", &["ro"])));
        assert_eq!(MountRequest::volume("/d"), Ok(named("", "/d", &[])));
        assert!(matches!(MountRequest::volume("/a:/b"), Ok(MountRequest::Bind(_))));
        for bad in ["", "d", ":/d", "data:/", "da ta:/d", "data:d", "/a:/b:nocopy", "/a:/b:c:d"] {
            assert!(MountRequest::volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts_say_it_by_type() {
        let same = [
            ("type=volume,source=data,target=/d,ro", "data:/d:ro"),
            ("target=/d", "/d"),
            ("type=bind,src=/a,dst=/b,readonly=true,bind-propagation=rslave", "/a:/b:ro,rslave"),
        ];
        for (mount, volume) in same {
            assert_eq!(MountRequest::mount(mount), MountRequest::volume(volume), "{mount}");
        }
        let tmpfs = MountRequest::mount("type=tmpfs,target=/t,tmpfs-size=1m,noexec");
        let Ok(MountRequest::Tmpfs(tmpfs)) = tmpfs else { panic!("{tmpfs:?}") };
        assert_eq!(tmpfs.options, ["size=1m", "noexec"]);
        for bad in [
            "",
            "type=bind,source=a,target=/b",
            "type=volume,source=/a,target=/b",
            "type=tmpfs,source=/a,target=/b",
            "type=glob,source=/a,target=/b",
            "type=bind,source=/a,target=/b,bogus=1",
            "type=bind,source=/a",
        ] {
            assert!(MountRequest::mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_image_asks_where_nobody_else_does() {
        let config = serde_json::json!({ "id": "1", "name": "web" });
        let mut config: ContainerConfig = serde_json::from_value(config).expect("config");
        let requests = vec![named("data", "/d", &[])];
        let of_image = ["/d/".to_owned(), "/other".to_owned(), "/".to_owned()];
        sort(requests, &of_image, &mut config).expect("sort");
        let places: Vec<_> = config.named_volumes.iter().map(|v| v.destination.clone()).collect();
        assert_eq!(places, [PathBuf::from("/d"), PathBuf::from("/other")]);
        assert!(config.named_volumes[1].anonymous && config.named_volumes[1].name.len() == 64);
        let twice = vec![named("a", "/x", &[]), named("b", "/x/", &[])];
        assert!(sort(twice, &[], &mut config).is_err());
    }

    #[test]
    fn options_take_back_what_volumes_have_by_themselves() {
        let Ok(MountRequest::Volume(volume)) = MountRequest::volume("v:/d:suid,ro,nocopy") else {
            panic!("a volume")
        };
        assert_eq!(volume.at("/s".into()).options, ["nodev", "suid", "ro"]);
    }
}
