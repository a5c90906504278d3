//! The container's image in an archive (`--with-image`): an OCI image layout, itself a tar, as
//! member `image.tar`. What is loaded is found by the image's id, which is a digest of everything
//! in it: a member with another image changes nothing.

use std::io::{self, Read};
use std::path::Path;

use arctern_image::archive::{EntryKind, Members, open_members};
use arctern_image::seal::{self, Unseal};

use super::{IMAGE, source};
use crate::error::{Error, Result};
use crate::host::Host;

/// The current member as a stream.
struct Member<'a, R: Read>(&'a mut Members<R>);

impl<R: Read> Read for Member<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_content(buffer).map_err(io::Error::other)
    }
}

impl Host {
    /// Takes the image with this id out of an archive; says whether there was one. It gets no name:
    /// what an archive calls `debian` must not become what the next `run debian` runs.
    pub(crate) fn load_image(&self, file: &Path, id: &str, unseal: &Unseal) -> Result<bool> {
        let archive =
            seal::open(source::open(file)?, unseal.keys.as_ref()).map_err(Error::archive)?;
        let mut members = open_members(archive, source::limits(self)?).map_err(Error::archive)?;
        while let Some(entry) = members.next_entry().map_err(Error::archive)? {
            if entry.name == IMAGE && matches!(entry.kind, EntryKind::File { .. }) {
                let found = self.images.load_only(Member(&mut members), id);
                return found.map(|image| image.is_some()).map_err(Error::storage);
            }
        }
        Ok(false)
    }
}
