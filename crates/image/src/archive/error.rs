//! What can go wrong with an archive.

use std::io;

use crate::manifest::ManifestError;

/// An archive could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The kernel said no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done, as an infinitive.
        action: &'static str,
        /// The file or member.
        path: String,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The file is neither a tar archive nor a compressed one.
    #[error("this is no checkpoint archive: it is neither tar nor gzip nor zstd")]
    NotAnArchive,
    /// The file is compressed in a way that is not read.
    #[error(
        "the archive is compressed with {name}, which is not supported: decompress it with `{tool}` first"
    )]
    UnsupportedCompression {
        /// Name of the compression.
        name: &'static str,
        /// The command that decompresses it.
        tool: &'static str,
    },
    /// The stream cannot be decompressed or ends early.
    #[error("the archive is damaged or incomplete at {member}")]
    Damaged {
        /// The member being read, or what was expected there.
        member: String,
        /// What the decompressor says.
        #[source]
        error: io::Error,
    },
    /// A member that no checkpoint archive has and that could do harm.
    #[error("member {member} is refused: {reason}")]
    Refused {
        /// Its name, with unprintable characters escaped.
        member: String,
        /// Why.
        reason: &'static str,
    },
    /// A name comes twice.
    #[error("member {member} is in the archive twice")]
    Duplicate {
        /// The name.
        member: String,
    },
    /// A member or the whole is larger than allowed.
    #[error("member {member} brings the archive to {size} bytes, the limit is {limit}")]
    TooLarge {
        /// The member.
        member: String,
        /// Bytes of all members up to and with this one.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// There is no room for what the archive unpacks to.
    #[error("no space for member {member}: it needs {needed} bytes and {free} are free")]
    NoSpace {
        /// The member.
        member: String,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// More members than allowed.
    #[error("the archive has more than {limit} members")]
    TooManyMembers {
        /// The limit.
        limit: u64,
    },
    /// The source of a member had another size than announced.
    #[error("member {member} should have {expected} bytes: its source changed while it was read")]
    SourceChanged {
        /// The member.
        member: String,
        /// The announced size.
        expected: u64,
    },
    /// A member's content does not match its digest.
    #[error("member {member} is damaged: its digest or size does not match the manifest")]
    Mismatch {
        /// The member.
        member: String,
    },
    /// A member is not in the manifest.
    #[error("member {member} is not in the manifest")]
    Unlisted {
        /// The member.
        member: String,
    },
    /// The manifest lists a member that is not there.
    #[error("member {member} is missing")]
    MissingMember {
        /// The member.
        member: String,
    },
    /// The manifest cannot be used.
    #[error(transparent)]
    Manifest(ManifestError),
    /// It is encrypted, and no key was given.
    #[error("the archive is encrypted: give a key with --identity or --passphrase-file")]
    Encrypted,
    /// It is not encrypted, and a key was given: whoever expects one that only its maker could
    /// encrypt would be deceived.
    #[error("the archive is not encrypted: leave the keys out if that is what you expect")]
    NotEncrypted,
    /// No key fits.
    #[error("none of the given keys opens the archive, or it is damaged")]
    WrongKey,
    /// A signature is required, and there is none.
    #[error("the archive is not signed")]
    Unsigned,
    /// The signature does not fit.
    #[error(
        "the signature does not fit the archive, which was changed after it was signed: {cause}"
    )]
    BadSignature {
        /// What does not fit.
        cause: String,
    },
    /// It was signed by somebody else.
    #[error("the archive is signed with the key {fingerprint}, which is none of those required")]
    WrongSigner {
        /// The key's fingerprint, as OpenSSH writes it.
        fingerprint: String,
    },
}

impl ArchiveError {
    pub(super) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl ToString,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { action, path: path.to_string(), error: error.into() }
    }

    pub(super) fn refused(member: impl Into<String>, reason: &'static str) -> Self {
        Self::Refused { member: member.into(), reason }
    }
}
