//! Which device nodes come out of an archive.

use rustix::fs::FileType;

use super::error::UnpackErrorKind;

/// Which device nodes are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// All, as in layers: who may pull an image may have it.
    #[default]
    All,
    /// Character devices.
    Character,
    /// Those that every container has: memory that is none, random numbers, terminals; and 0:0, with
    /// which an overlay hides a name.
    Ordinary,
}

impl Devices {
    pub(super) fn check(self, ty: FileType, major: u32, minor: u32) -> Result<(), UnpackErrorKind> {
        let block = ty == FileType::BlockDevice;
        let ordinary = match (major, minor) {
            (0, 0) | (1, 3 | 5 | 7 | 8 | 9) | (5, 0..=2) => true,
            _ => (136..=143).contains(&major),
        };
        let allowed = match self {
            Devices::All => true,
            Devices::Character => !block,
            Devices::Ordinary => !block && ordinary,
        };
        let kind = if block { "block" } else { "character" };
        if allowed { Ok(()) } else { Err(UnpackErrorKind::Device { kind, major, minor }) }
    }
}
