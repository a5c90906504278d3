//! Checkpoints as images: the archive is the layer of an image, whose annotations are Podman's, so that
//! registries carry it from host to host and both programs restore it.

use std::collections::BTreeMap;
use std::path::Path;

use arctern_engine::options::Events;
use arctern_image::archive::Compression;
use arctern_image::manifest::HostFacts;
use arctern_storage::Image;
use arctern_storage::registry::{Progress, PullOptions};

use super::import::read_config;
use super::{CheckpointOptions, Checkpointed, RestoreOptions, Restored, source};
use crate::cgroup::Hierarchies;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::state::Record;

/// Beginning of Podman's annotations of a checkpoint.
const PODMAN: &str = "io.podman.annotations.checkpoint.";
/// What Podman has no annotation for: where registries have the container's image, with its digest.
const IMAGE_REF: &str = "io.arctern.annotations.checkpoint.rootfsImageRef";

impl Host {
    /// Captures a running container into a new image. After a failure the container runs on; where only
    /// the making of the image failed, it has stopped and its checkpoint is kept with it.
    pub fn checkpoint_to_image(
        &mut self,
        name_or_id: &str,
        image: &str,
        options: &CheckpointOptions,
        events: &mut dyn Events,
    ) -> Result<(Checkpointed, Image)> {
        // Before anything is frozen.
        arctern_storage::ImageName::local(image).map_err(Error::storage)?;
        let draft = self.images.draft_checkpoint().map_err(Error::storage)?;
        let options = CheckpointOptions {
            file: Some(draft.path()),
            compression: Some(Compression::Zstd),
            ..options.clone()
        };
        let done = self.checkpoint(name_or_id, &options, events)?;
        let annotations = self.annotations(&done.record)?;
        let image =
            self.images.add_checkpoint(draft, image, annotations).map_err(Error::storage)?;
        Ok((done, image))
    }

    /// What the manifest says of a checkpoint.
    fn annotations(&self, record: &Record) -> Result<BTreeMap<String, String>> {
        let facts = HostFacts::gather().map_err(Error::system("read the facts of this machine"))?;
        let config = &record.config;
        let (distribution, version) =
            facts.distribution.rsplit_once(' ').unwrap_or((&facts.distribution, ""));
        let mut all: BTreeMap<String, String> = [
            ("name", config.name.as_str()),
            ("rawImageName", &config.raw_image_name),
            ("rootfsImageID", &config.image_id),
            ("rootfsImageName", &config.image_name),
            ("runtime.name", &config.runtime),
            ("host.arch", &facts.architecture),
            ("host.kernel", &facts.kernel),
            ("cgroups.version", Hierarchies::of(&self.paths)?.version()),
            ("distribution.name", distribution),
            ("distribution.version", version),
        ]
        .into_iter()
        .map(|(name, value)| (format!("{PODMAN}{name}"), value.to_owned()))
        .collect();
        if let Some(digest) = self.image_ref(&config.image_id) {
            all.insert(IMAGE_REF.to_owned(), digest);
        }
        Ok(all)
    }

    /// Where registries have an image, with its digest; none when it is in no registry that we know.
    pub(super) fn image_ref(&self, id: &str) -> Option<String> {
        let image = self.images.resolve(id).ok()?;
        let own = image.digests.iter().find(|digest| digest.ends_with(&image.manifest));
        own.or(image.digests.first()).cloned()
    }

    /// Restores a container from an image that is a checkpoint. After a failure nothing of it is left.
    pub fn restore_image(
        &mut self,
        image: &Image,
        options: &RestoreOptions,
        events: &mut dyn Events,
    ) -> Result<Restored> {
        let archive = self.images.checkpoint_archive(image).map_err(Error::storage)?;
        self.restore_archive(&archive, options, events)
    }

    /// The archive in an image that is a checkpoint.
    pub fn archive_of(&self, image: &Image) -> Result<std::path::PathBuf> {
        self.images.checkpoint_archive(image).map_err(Error::storage)
    }

    /// Brings the image of a container in an archive here, if it is not: from the archive, or from the
    /// registry from which it was, by the digest that the archive has of it. An image that is another
    /// one by now is refused before any of it is moved, and nothing is brought for an archive that asks
    /// for more than `options` allow.
    pub fn bring_image(
        &self,
        file: &Path,
        options: &RestoreOptions,
        pull: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<()> {
        self.room_for_archive(file, options)?;
        let limits = source::limits(self)?;
        let (config, ..) = read_config(file, options, limits)?;
        let missing = match self.find_image(file, &config, &options.unseal) {
            Ok(()) => return Ok(()),
            Err(error @ Error::ImageMissing { .. }) => error,
            Err(error) => return Err(error),
        };
        let places = [&config.image_ref, &config.image_name];
        let name =
            places.into_iter().find(|name| !name.is_empty() && !name.starts_with("localhost/"));
        let Some(name) = name else { return Err(missing) };
        let pull = PullOptions { expected: Some(config.image_id), ..pull.clone() };
        self.images.pull(name, &pull, progress).map(drop).map_err(Error::storage)
    }
}
