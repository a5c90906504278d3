//! Options for signed and encrypted archives.

use std::path::PathBuf;

use arctern_image::seal::{KeyError, Keys, Recipients, Seal, Signer, Signers, Unseal};

use crate::report::{Cannot, Failure};

/// How an archive is sealed.
#[derive(Debug, clap::Args)]
pub struct SealArgs {
    /// Encrypt the archive to this public key of age (`age1…`), or to those in this file; can be
    /// repeated
    #[arg(long, value_name = "RECIPIENT", requires = "file")]
    pub encrypt_to: Vec<String>,
    /// Encrypt the archive with the passphrase on the first line of this file
    #[arg(long, value_name = "FILE", requires = "file", conflicts_with = "encrypt_to")]
    pub passphrase_file: Option<PathBuf>,
    /// Sign the archive or image with this secret key of OpenSSH's, which has no passphrase
    #[arg(long, value_name = "KEY", requires = "target")]
    pub sign: Option<PathBuf>,
}

impl SealArgs {
    /// Reads the keys.
    pub fn seal(&self) -> Result<Seal, Failure> {
        let recipients = match &self.passphrase_file {
            Some(path) => Some(Recipients::passphrase(path).cannot(use_key)?),
            None if self.encrypt_to.is_empty() => None,
            None => Some(Recipients::read(&self.encrypt_to).cannot(use_key)?),
        };
        let signer = self.sign.as_deref().map(Signer::read).transpose().cannot(use_key)?;
        Ok(Seal { recipients, signer })
    }
}

/// What an archive is opened with, and what is asked of it.
#[derive(Debug, clap::Args)]
pub struct UnsealArgs {
    /// Refuse archives that none of these has signed: a public key of OpenSSH's, a file with one, or a
    /// file of allowed signers; can be repeated
    #[arg(long, value_name = "PUBKEY")]
    pub require_signature: Vec<String>,
    /// Open an encrypted archive with the secret keys of age in this file; can be repeated
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Open an encrypted archive with the passphrase on the first line of this file
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

impl UnsealArgs {
    /// Reads the keys.
    pub fn unseal(&self) -> Result<Unseal, Failure> {
        let read = || -> Result<Unseal, KeyError> {
            Ok(Unseal {
                keys: Keys::read(&self.identity, self.passphrase_file.as_deref())?,
                signers: Signers::read(&self.require_signature)?,
            })
        };
        read().cannot(use_key)
    }
}

fn use_key() -> &'static str {
    "use a key"
}
