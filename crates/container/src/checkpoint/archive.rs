//! Writing the archive of a checkpoint, in Podman's layout.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arctern_image::archive::{ArchiveWriter, Compression};
use arctern_image::manifest::{ContainerFacts, HostFacts, Manifest};
use arctern_storage::ImageArchive;

use super::{
    CONFIG, CheckpointOptions, IMAGE, IMAGES, LOG, NETWORK, SPEC, STATS, foreign, volumes,
};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::paths::ContainerPaths;
use crate::state::Record;
use crate::time::Timestamp;

/// An archive that was begun before anything was frozen.
pub struct Archive {
    writer: ArchiveWriter,
    manifest: Manifest,
    config: Vec<u8>,
    spec: Vec<u8>,
    network: Option<String>,
    image: Option<ImageArchive>,
    /// Archives of volumes: members, and the files that hold them.
    volumes: Vec<(String, PathBuf)>,
}

impl Archive {
    /// Begins the archive, and reads what does not depend on the instant of the freeze.
    pub fn begin(
        host: &Host,
        record: &Record,
        options: &CheckpointOptions,
    ) -> Result<Option<Archive>> {
        if let Some(stream) = &options.stream {
            let stream = Box::new(Arc::clone(stream));
            let compression = options.compression.unwrap_or(Compression::Zstd);
            let writer =
                ArchiveWriter::stream_sealed(stream, "the stream", compression, &options.seal)
                    .map_err(Error::archive)?;
            return Archive::over(writer, host, record, options).map(Some);
        }
        let Some(file) = &options.file else { return Ok(None) };
        super::note_target(&host.paths.container(record.id()), file)?;
        let compression = options.compression.unwrap_or_else(|| Compression::from_file_name(file));
        let writer = ArchiveWriter::create_sealed(file, compression, &options.seal)
            .map_err(Error::archive)?;
        Archive::over(writer, host, record, options).map(Some)
    }

    /// As [`Archive::begin`], over a writer that was begun.
    pub fn over(
        writer: ArchiveWriter,
        host: &Host,
        record: &Record,
        options: &CheckpointOptions,
    ) -> Result<Archive> {
        let facts = HostFacts::gather().map_err(Error::system("read the facts of this machine"))?;
        let container = ContainerFacts {
            id: record.id().to_owned(),
            name: record.name().to_owned(),
            image: record.config.raw_image_name.clone(),
            image_id: record.config.image_id.clone(),
        };
        let seconds = u64::try_from(Timestamp::now().0 / 1_000_000_000).unwrap_or(0);
        let paths = host.paths.container(record.id());
        let spec = paths.spec();
        let image = match options.with_image {
            true => {
                Some(host.images.export_image(&record.config.image_id).map_err(Error::storage)?)
            }
            false => None,
        };
        let mut config = record.config.clone();
        config.image_ref = host.image_ref(&config.image_id).unwrap_or_default();
        Ok(Archive {
            writer,
            image,
            volumes: match options.ignore_volumes {
                true => Vec::new(),
                false => {
                    volumes::members(&record.config, &options.skip_volumes, &paths.capture_dir())
                }
            },
            manifest: Manifest::new(seconds, facts, Some(container)),
            config: serde_json::to_vec(&foreign::config_for_podman(&config))
                .map_err(Error::json("the configuration"))?,
            spec: foreign::spec_for_podman(
                &std::fs::read(&spec).map_err(Error::io("read", &spec))?,
                &record.config,
            )?,
            network: crate::network::parse_status(record.network.as_deref())
                .map(|status| status.to_podman().map_err(Error::network))
                .transpose()?,
        })
    }

    /// Adds everything. `images` holds the engine's files.
    pub fn fill(&mut self, paths: &ContainerPaths, images: &Path) -> Result<()> {
        let writer = &mut self.writer;
        writer.add_bytes(CONFIG, &self.config).map_err(Error::archive)?;
        writer.add_bytes(SPEC, &self.spec).map_err(Error::archive)?;
        if let Some(network) = &self.network {
            writer.add_bytes(NETWORK, network.as_bytes()).map_err(Error::archive)?;
        }
        if let Some(image) = &mut self.image {
            writer.add_stream(IMAGE, image.size(), image).map_err(Error::archive)?;
        }
        writer.add_dir_tree(IMAGES, images).map_err(Error::archive)?;
        for (name, path) in [
            (
                arctern_storage::diff::DIFF_FILE,
                paths.capture_dir().join(arctern_storage::diff::DIFF_FILE),
            ),
            (
                arctern_storage::diff::DELETED_FILE,
                paths.capture_dir().join(arctern_storage::diff::DELETED_FILE),
            ),
            (LOG, paths.log()),
            (STATS, images.join(STATS)),
        ] {
            match File::open(&path) {
                Ok(file) => add(writer, name, &file)?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("open", &path)(e)),
            }
        }
        for (name, path) in &self.volumes {
            add(writer, name, &File::open(path).map_err(Error::io("open", path))?)?;
        }
        Ok(())
    }

    /// Ends the archive and gives it its name. Gives its size in bytes.
    pub fn finish(self) -> Result<u64> {
        self.writer.finish(self.manifest).map(|summary| summary.bytes).map_err(Error::archive)
    }
}

fn add(writer: &mut ArchiveWriter, name: &str, file: &File) -> Result<()> {
    let size = file.metadata().map_err(Error::io("inspect", name))?.len();
    writer.add_file(name, file, size).map_err(Error::archive)
}
