//! Who made an archive, and who may read it.
//!
//! A **signature** is a member after the manifest, [`SIGNATURE_NAME`]: an OpenSSH signature (PROTOCOL.sshsig)
//! of the manifest's bytes. The manifest has the digest of every other member, so that it covers
//! everything that is read. `ssh-keygen -Y verify -n arctern-checkpoint` checks it as well.
//!
//! An **encrypted** archive is an age file (age-encryption.org/v1) around the compressed tar: `age -d`
//! gives the archive. It is written and read as a stream; age authenticates each piece of 64 KiB, and
//! the end, before it is passed on.
//!
//! The signature is inside: it says who made the archive, and not for whom it was encrypted.

mod encrypt;
mod sign;

pub use encrypt::{Keys, Opened, Recipients, open};
pub(crate) use encrypt::{Sealed, is_encrypted};
pub(crate) use sign::MAX_SIGNATURE;
pub use sign::{SIGNATURE_NAME, Signature, Signer, Signers, check_signature};

/// How an archive is sealed. By default it is not.
#[derive(Clone, Debug, Default)]
pub struct Seal {
    /// Who can read it; None: everybody.
    pub recipients: Option<Recipients>,
    /// Who signs it.
    pub signer: Option<Signer>,
}

/// What is needed to read an archive, and what is asked of it.
#[derive(Clone, Debug, Default)]
pub struct Unseal {
    /// Keys of encrypted archives. With keys an archive that is not encrypted is refused.
    pub keys: Option<Keys>,
    /// One of these has signed it; None: nobody need have.
    pub signers: Option<Signers>,
}

/// A key or a passphrase cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct KeyError {
    /// The file, or the key as it was given.
    pub what: String,
    /// What is wrong with it, and what helps.
    pub cause: String,
}

impl KeyError {
    fn new(what: impl ToString, cause: impl ToString) -> Self {
        Self { what: what.to_string(), cause: cause.to_string() }
    }
}

/// Reads a file of keys. They are small.
fn read_text(path: &std::path::Path) -> Result<String, KeyError> {
    use std::io::Read;
    const MAX: u64 = 1 << 20;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX).read_to_string(&mut text))
        .map_err(|error| KeyError::new(path.display(), error))?;
    Ok(text)
}
