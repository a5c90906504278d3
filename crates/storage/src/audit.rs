//! What is wrong with a store: missing, damaged and unreferenced parts, and what mends them.
//!
//! References are read under the store's lock, so that a command at work is seen before or after what
//! it does, never in between; contents, which do not change, are read without it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::image::Image;
use crate::layer::Digesting;
use crate::rootfs::{RootNote, read_note};
use crate::store::{AtPath, Store, StoreError, clear};

/// Something that is wrong, and what mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What it is about: `image X`, `layer X`, `volume X`.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What mends it.
    pub cure: Cure,
}

/// What mends a flaw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cure {
    /// Nothing refers to it: it is removed.
    Collect,
    /// A file that a killed command left: it is removed.
    RemoveFile(PathBuf),
    /// An image that lacks something is removed, with the containers that are made from it.
    RemoveImage {
        /// Its id.
        id: String,
        /// Containers whose root is made from it.
        users: Vec<String>,
    },
    /// The note of a container's root is written anew, which needs its image.
    WriteNote {
        /// Container id.
        container: String,
    },
    /// What is left of a volume is removed.
    RemoveVolume {
        /// Its name.
        name: String,
    },
    /// There is nothing that could be done without knowing more.
    Nothing,
}

impl Store {
    /// Looks for flaws. Digests of contents are compared unless it is to be `quick`.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`] when the index of images cannot be read.
    pub fn flaws(&self, quick: bool) -> Result<Vec<Flaw>, StoreError> {
        let mut flaws = Vec::new();
        let images = {
            let _lock = self.lock()?;
            self.damaged_roots(&mut flaws)?;
            if !flaws.iter().any(|flaw| matches!(flaw.cure, Cure::WriteNote { .. })) {
                // Else nobody knows what those roots refer to.
                self.unreferenced(&mut flaws)?;
            }
            self.temporary_files(&mut flaws)?;
            self.broken_volumes(&mut flaws)?;
            self.images()?
        };
        let mut known = BTreeMap::new();
        for image in &images {
            let wrong = self.wrong_with(image, quick, &mut known)?;
            if wrong.is_empty() {
                continue;
            }
            // Removed meanwhile: then it is nobody's.
            if !self.images()?.iter().any(|i| i.id == image.id) {
                continue;
            }
            let name = image.names.first().map_or(&image.id[..12], String::as_str);
            flaws.push(Flaw {
                object: format!("image {name}"),
                problem: wrong.join(", "),
                cure: Cure::RemoveImage {
                    id: image.id.clone(),
                    users: self.users_of(&image.id).unwrap_or_default(),
                },
            });
        }
        Ok(flaws)
    }

    /// Carries out a cure. `image_of` says which image a container is made from. Says whether it was
    /// mended: what users need is for others to remove.
    ///
    /// # Errors
    /// As removal has them.
    pub fn cure(
        &self,
        cure: &Cure,
        image_of: impl Fn(&str) -> Option<String>,
    ) -> Result<bool, StoreError> {
        match cure {
            Cure::Collect => {
                let lock = self.lock()?;
                let graves = self.collect_garbage()?;
                drop(lock);
                clear(graves)?;
            }
            Cure::RemoveFile(path) => {
                let _lock = self.lock()?;
                match std::fs::remove_file(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(e).at("remove", path);
                    }
                    _ => {}
                }
            }
            Cure::RemoveImage { id, users } if users.is_empty() => {
                self.remove_image(id, true)?;
            }
            Cure::WriteNote { container } => {
                let Some(image) = image_of(container) else { return Ok(false) };
                let _lock = self.lock()?;
                let Ok(image) = self.resolve(&image) else { return Ok(false) };
                self.write_note(container, &image)?;
            }
            Cure::RemoveVolume { name } => self.discard(&self.volumes_dir().join(name))?,
            Cure::RemoveImage { .. } | Cure::Nothing => return Ok(false),
        }
        Ok(true)
    }

    /// Layers and blobs that nothing refers to.
    fn unreferenced(&self, flaws: &mut Vec<Flaw>) -> Result<(), StoreError> {
        let (layers, blobs) = self.referenced()?;
        for (what, dir, keep) in [("layer", "layers", &layers), ("blob", "blobs/sha256", &blobs)] {
            for name in names(&self.root().join(dir))? {
                if !keep.contains(&name) {
                    flaws.push(Flaw {
                        object: format!("{what} {name}"),
                        problem: "nothing refers to it".to_owned(),
                        cure: Cure::Collect,
                    });
                }
            }
        }
        Ok(())
    }

    /// Roots of containers that do not say what they are made from, or whose layers are gone.
    fn damaged_roots(&self, flaws: &mut Vec<Flaw>) -> Result<(), StoreError> {
        for id in self.roots()? {
            let object = format!("root file system of container {id}");
            let (problem, cure) = match read_note(&self.container_dir(&id)) {
                Ok(Some(RootNote { layers, .. })) => {
                    let lost = layers.iter().filter(|hex| !self.layer_dir(hex).exists());
                    let lost: Vec<&str> = lost.map(|hex| &hex[..12.min(hex.len())]).collect();
                    if lost.is_empty() {
                        continue;
                    }
                    (format!("its layers {} are gone", lost.join(", ")), Cure::Nothing)
                }
                Ok(None) | Err(StoreError::Damaged { .. }) => (
                    "it does not say which image it is made from".to_owned(),
                    Cure::WriteNote { container: id },
                ),
                Err(error) => return Err(error),
            };
            flaws.push(Flaw { object, problem, cure });
        }
        Ok(())
    }

    /// Files that a killed command was writing.
    fn temporary_files(&self, flaws: &mut Vec<Flaw>) -> Result<(), StoreError> {
        for name in names(self.root())? {
            if name.ends_with(".new") {
                let path = self.root().join(&name);
                flaws.push(Flaw {
                    object: format!("file {}", path.display()),
                    problem: "a killed command was writing it".to_owned(),
                    cure: Cure::RemoveFile(path),
                });
            }
        }
        Ok(())
    }

    /// Volumes without a description or without files.
    fn broken_volumes(&self, flaws: &mut Vec<Flaw>) -> Result<(), StoreError> {
        let dir = self.volumes_dir();
        for name in names(&dir)? {
            let described = std::fs::read(dir.join(&name).join("volume.json"))
                .is_ok_and(|text| serde_json::from_slice::<crate::Volume>(&text).is_ok());
            let data = dir.join(&name).join("_data");
            let empty = || std::fs::read_dir(&data).map_or(true, |mut list| list.next().is_none());
            let (problem, cure) = match (described, data.is_dir()) {
                (true, true) => continue,
                (true, false) => {
                    ("its directory is gone", Cure::RemoveVolume { name: name.clone() })
                }
                (false, _) if empty() => (
                    "it has no description and no files",
                    Cure::RemoveVolume { name: name.clone() },
                ),
                (false, _) => ("it has files and no description", Cure::Nothing),
            };
            let object = format!("volume {name}");
            flaws.push(Flaw { object, problem: problem.to_owned(), cure });
        }
        Ok(())
    }

    /// What an image lacks. `known` has the digests that were compared already.
    fn wrong_with(
        &self,
        image: &Image,
        quick: bool,
        known: &mut BTreeMap<String, bool>,
    ) -> Result<Vec<String>, StoreError> {
        let mut wrong = Vec::new();
        // Of a checkpoint only the archive is kept.
        let unpacked = if image.checkpoint.is_empty() { image.layers.as_slice() } else { &[] };
        for hex in unpacked {
            if !self.layer_dir(hex).join("diff").is_dir() {
                wrong.push(format!("its layer {} is gone", short(hex)));
            }
        }
        let blobs = [("configuration", &image.id), ("manifest", &image.manifest)].into_iter();
        let blobs = blobs.chain(image.blobs.iter().map(|hex| ("layer archive", hex)));
        for (what, hex) in blobs.filter(|(_, hex)| !hex.is_empty()) {
            let path = self.blob(hex);
            if !path.is_file() {
                wrong.push(format!("its {what} {} is gone", short(hex)));
            } else if !quick {
                let fine = match known.get(hex) {
                    Some(fine) => *fine,
                    None => digest(&path)?.is_none_or(|found| found == *hex),
                };
                known.insert(hex.clone(), fine);
                if !fine {
                    wrong.push(format!("its {what} {} is damaged", short(hex)));
                }
            }
        }
        Ok(wrong)
    }
}

fn short(hex: &str) -> &str {
    hex.get(..12).unwrap_or(hex)
}

/// The digest of a file; None when it is gone.
fn digest(path: &Path) -> Result<Option<String>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("open", path),
    };
    let mut file = Digesting::new(file);
    io::copy(&mut file, &mut io::sink()).at("read", path)?;
    Ok(Some(file.finish().1))
}

fn names(dir: &Path) -> Result<BTreeSet<String>, StoreError> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).at("list", dir)? {
        names.insert(entry.at("list", dir)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}
