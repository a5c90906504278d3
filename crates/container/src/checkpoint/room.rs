//! Whether there is room for a checkpoint, a restore, or a container that arrives, before anything is
//! frozen or built.

use std::collections::BTreeSet;
use std::path::Path;

use arctern_engine::room;
use arctern_image::archive::{Compression, Limits};
use arctern_image::summary::summarise_sealed;
use arctern_storage::tree;
use arctern_sys::Pid;
use arctern_sys::proc::meminfo;

use super::import::read_config;
use super::{CheckpointOptions, RestoreOptions, source, volumes};
use crate::cgroup::Hierarchies;
use crate::config::ContainerConfig;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::room::Needs;
use crate::state::Record;
use crate::transfer::{Blocker, Offer};

/// What the smallest checkpoint takes in any form, in bytes.
const SMALLEST: u64 = 4096;

/// The longest archive that is read only to tell what it lacks, in bytes: some seconds.
const LONGEST_LOOK: u64 = 1 << 30;

impl Host {
    /// Refuses a capture whose images and copies of changed files cannot be written; `archived` when
    /// the changed files are captured, too. An archive is known before only if it is not compressed.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub(crate) fn room_for_capture(
        &self,
        record: &Record,
        pid: i32,
        options: &CheckpointOptions,
        archived: bool,
    ) -> Result<()> {
        let mut changed = 0;
        if archived && !options.ignore_rootfs {
            let root = self.images.root_fs(record.id()).map_err(Error::storage)?;
            changed += tree::measure(&root.upper).unwrap_or_default().least;
        }
        if archived && !options.ignore_volumes {
            changed += volumes::least(self, &record.config);
        }
        let image = match options.with_image {
            true => {
                self.images.export_image(&record.config.image_id).map_err(Error::storage)?.size()
            }
            false => 0,
        };
        let needs = |images: u64| {
            let mut needs = Needs::default();
            let dir = self.paths.container(record.id()).dir;
            needs.write("the memory of the processes", &dir, images, &self.elsewhere());
            needs.write("files that the container changed", &dir, changed, &self.elsewhere());
            if let Some(file) = &options.file {
                let compression =
                    options.compression.unwrap_or_else(|| Compression::from_file_name(file));
                let bytes = match compression {
                    Compression::None => images + changed + image,
                    _ => SMALLEST,
                };
                let dir = match file.parent() {
                    Some(dir) if !dir.as_os_str().is_empty() => dir,
                    _ => Path::new("."),
                };
                let remedy = "choose another place for the archive, or compress it";
                needs.write("the archive", dir, bytes, remedy);
            }
            needs
        };
        // The exact figure asks every page table, and is seldom needed.
        if needs(room::about(Pid(pid))).missing()?.is_empty() {
            return Ok(());
        }
        needs(room::at_least(Pid(pid)).images).check()
    }

    /// Refuses an archive that cannot be unpacked here; it takes at least what it is long. Unless it is
    /// long itself, one that is refused is read for the memory that it lacks, so that all is told.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub(super) fn room_for_archive(&self, file: &Path, options: &RestoreOptions) -> Result<()> {
        let archive = source::open(file)?.metadata().map_err(Error::io("inspect", file))?;
        let length = archive.len();
        let mut needs = Needs::default();
        // What does not compress becomes longer by a few bytes in each block.
        let least = length - length / 64;
        let dir = self.paths.root.join("containers");
        needs.write("the unpacked checkpoint", &dir, least, &self.elsewhere());
        if needs.missing()?.is_empty() {
            return Ok(());
        }
        // Not those of the disk, which has no room for it.
        if length <= LONGEST_LOOK
            && let Ok((config, ..)) = read_config(file, options, Limits::default())
            && let Ok(summary) = summarise_sealed(file, &options.unseal)
        {
            // What processes share is not known here: the largest one needs all of its own.
            let own = summary.processes.iter().map(|p| p.memory.anonymous + p.memory.file);
            self.need_memory(&mut needs, &[(&config, own.max().unwrap_or(0))])?;
        }
        needs.check()
    }

    /// Refuses a restore of the images kept with a container for which there is not enough memory: of
    /// the machine, and of the control groups.
    ///
    /// # Errors
    /// [`Error::NoRoom`]; the images are damaged.
    pub(super) fn room_for_restore(&self, record: &Record) -> Result<()> {
        let images = self.paths.container(record.id()).checkpoint();
        let bytes = room::of_images(&images).map_err(|e| Error::Restore(Box::new(e)))?;
        let mut needs = Needs::default();
        self.need_memory(&mut needs, &[(&record.config, bytes)])?;
        needs.check()
    }

    /// What containers that come from another host together lack here.
    pub(crate) fn room_for_arrivals(&self, offers: &[Offer]) -> Result<Vec<Blocker>> {
        let mut needs = Needs::default();
        let mut images = BTreeSet::new();
        for offer in offers {
            let mut write = |what, bytes| {
                needs.write(what, &self.paths.root, bytes, "use another --remote-root");
            };
            write("its memory", offer.images.max(offer.memory));
            // Once as it is sent, and once where it belongs.
            write("the files that it changed", offer.changed.saturating_mul(2));
            if images.insert(&offer.config.image_id) {
                let missing = self.missing_image(offer).unwrap_or_default();
                write("its image", missing.iter().map(|layer| layer.bytes).sum());
            }
        }
        let memory: Vec<_> = offers.iter().map(|offer| (&offer.config, offer.memory)).collect();
        self.need_memory(&mut needs, &memory)?;
        needs.missing()
    }

    /// That containers take so many bytes of memory each.
    fn need_memory(&self, needs: &mut Needs, containers: &[(&ContainerConfig, u64)]) -> Result<()> {
        let bytes = containers.iter().map(|(_, bytes)| bytes).sum();
        needs.take_of_machine(bytes)?;
        let swap = meminfo::read().map_err(Error::io("read", "/proc/meminfo"))?.swap_free;
        if let Some((group, left)) = Hierarchies::of(&self.paths)?.memory_left() {
            let what = format!("control group {}", group.display());
            needs.take(what, bytes, left.saturating_add(swap), "raise its limit of memory");
        }
        for (config, bytes) in containers {
            let Some(limit) = config.memory else { continue };
            let what = format!("container `{}` (--memory)", config.name);
            let remedy = "it cannot run with less than it uses: create it anew with more";
            needs.take(what, *bytes, limit.saturating_add(swap), remedy);
        }
        Ok(())
    }

    fn elsewhere(&self) -> String {
        format!("move {} to a larger file system", self.paths.root.display())
    }
}
