//! Signatures: OpenSSH's, of the manifest.

use std::path::Path;

use ssh_key::public::KeyData;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};

use super::{KeyError, read_text};
use crate::archive::ArchiveError;

/// The member with the signature of the manifest. It is after it.
pub const SIGNATURE_NAME: &str = "arctern.json.sig";

/// The largest signature that is read, in bytes.
pub(crate) const MAX_SIGNATURE: u64 = 16 << 10;

/// What a signature is for: one that was made for a mail or a commit is none of a checkpoint.
const NAMESPACE: &str = "arctern-checkpoint";

/// A key that signs.
#[derive(Clone, Debug)]
pub struct Signer(PrivateKey);

impl Signer {
    /// A secret key of OpenSSH's (`ssh-keygen -t ed25519`): Ed25519 or ECDSA P-256, without a
    /// passphrase.
    ///
    /// # Errors
    /// It is none of these.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let refused = |cause: &str| KeyError::new(path.display(), cause);
        let text = zeroize::Zeroizing::new(read_text(path)?);
        let key = PrivateKey::from_openssh(text.as_bytes())
            .map_err(|error| refused(&format!("this is no secret key of OpenSSH's: {error}")))?;
        if key.is_encrypted() {
            return Err(refused(
                "it has a passphrase: sign with one that has none (ssh-keygen -t ed25519 -N '')",
            ));
        }
        match is_known(&key.algorithm()) {
            true => Ok(Self(key)),
            false => Err(refused(&format!(
                "keys of type {} cannot sign here: use one of type ed25519",
                key.algorithm()
            ))),
        }
    }

    /// The signature of a manifest, as text.
    pub(crate) fn sign(&self, manifest: &[u8]) -> Result<String, ArchiveError> {
        self.0
            .sign(NAMESPACE, HashAlg::Sha512, manifest)
            .and_then(|signature| signature.to_pem(LineEnding::LF))
            .map_err(|error| ArchiveError::BadSignature { cause: error.to_string() })
    }
}

fn is_known(algorithm: &Algorithm) -> bool {
    use ssh_key::EcdsaCurve;
    matches!(
        algorithm,
        Algorithm::Ed25519
            | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }
            | Algorithm::SkEd25519
    )
}

/// A signature that fits an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    key: KeyData,
}

impl Signature {
    /// Compares a signature with the manifest; it says nothing yet about whose key it is.
    pub(crate) fn check(text: &[u8], manifest: &[u8]) -> Result<Self, ArchiveError> {
        let bad = |error: ssh_key::Error| ArchiveError::BadSignature { cause: error.to_string() };
        let signature = SshSig::from_pem(text).map_err(bad)?;
        let key = signature.public_key().clone();
        PublicKey::from(key.clone()).verify(NAMESPACE, manifest, &signature).map_err(bad)?;
        Ok(Self { key })
    }

    /// The fingerprint of the key that signed, as OpenSSH writes it.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }
}

/// Compares a signature with what it is said to be of. It says nothing about whose key it is.
///
/// # Errors
/// It does not fit.
pub fn check_signature(text: &[u8], manifest: &[u8]) -> Result<Signature, ArchiveError> {
    Signature::check(text, manifest)
}

/// Keys of which one must have signed.
#[derive(Clone, Debug)]
pub struct Signers(Vec<KeyData>);

impl Signers {
    /// Public keys as they are given: the text of one (`ssh-ed25519 AAAA…`), files with one
    /// (`id_ed25519.pub`), or files of allowed signers (ssh-keygen(1)). None if none is given.
    ///
    /// # Errors
    /// One is neither, or has conditions that are not known here.
    pub fn read(given: &[String]) -> Result<Option<Self>, KeyError> {
        let mut keys = Vec::new();
        for one in given {
            if let Ok(key) = PublicKey::from_openssh(one) {
                keys.push(accepted(&key, one)?);
                continue;
            }
            let before = keys.len();
            for (number, line) in read_text(Path::new(one))?.lines().enumerate() {
                let line = line.trim();
                if !line.is_empty() && !line.starts_with('#') {
                    keys.extend(read_line(line, &format!("{one}, line {}", number + 1))?);
                }
            }
            if keys.len() == before {
                return Err(KeyError::new(one, "there is no key in it that may sign checkpoints"));
            }
        }
        Ok((!keys.is_empty()).then_some(Self(keys)))
    }

    /// Whether one of them made a signature.
    pub(crate) fn accept(&self, signature: Option<&Signature>) -> Result<(), ArchiveError> {
        let Some(signature) = signature else { return Err(ArchiveError::Unsigned) };
        match self.0.contains(&signature.key) {
            true => Ok(()),
            false => Err(ArchiveError::WrongSigner { fingerprint: signature.fingerprint() }),
        }
    }
}

fn accepted(key: &PublicKey, what: &str) -> Result<KeyData, KeyError> {
    let algorithm = key.algorithm();
    match is_known(&algorithm) {
        true => Ok(key.key_data().clone()),
        false => {
            let cause = format!("signatures of keys of type {algorithm} cannot be checked here");
            Err(KeyError::new(what, cause))
        }
    }
}

/// A line of a file: a public key, or an allowed signer (`WHO [CONDITIONS] KEY`). None where it is
/// allowed for other things only.
fn read_line(line: &str, what: &str) -> Result<Option<KeyData>, KeyError> {
    if let Ok(key) = PublicKey::from_openssh(line) {
        return accepted(&key, what).map(Some);
    }
    let no_key = || KeyError::new(what, "this is no public key, and no allowed signer");
    let (_, rest) = split_word(line).ok_or_else(no_key)?;
    if let Ok(key) = PublicKey::from_openssh(rest) {
        return accepted(&key, what).map(Some);
    }
    let (conditions, rest) = split_word(rest).ok_or_else(no_key)?;
    let key = PublicKey::from_openssh(rest).map_err(|_| no_key())?;
    match conditions.strip_prefix("namespaces=\"").and_then(|list| list.strip_suffix('"')) {
        Some(list) if !list.contains('"') => match list.split(',').any(|name| name == NAMESPACE) {
            true => accepted(&key, what).map(Some),
            false => Ok(None),
        },
        _ => Err(KeyError::new(
            what,
            format!("the condition {conditions} is not known here: only namespaces=\"…\" is"),
        )),
    }
}

/// The first word, which may have spaces in quotes, and the rest.
fn split_word(line: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let end = line.find(|c: char| {
        quoted ^= c == '"';
        c.is_whitespace() && !quoted
    })?;
    Some((&line[..end], line[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(seed: u8) -> Signer {
        let pair = ssh_key::private::Ed25519Keypair::from_seed(&[seed; 32]);
        Signer(PrivateKey::from(pair))
    }

    fn public(signer: &Signer) -> String {
        signer.0.public_key().to_openssh().unwrap()
    }

    fn signers(text: &str) -> Result<Option<Signers>, KeyError> {
        Signers::read(&[text.to_owned()])
    }

    #[test]
    fn a_signature_fits_its_manifest_and_its_key() {
        let (one, other) = (signer(1), signer(2));
        let text = one.sign(b"manifest").unwrap();
        let signature = Signature::check(text.as_bytes(), b"manifest").unwrap();
        assert!(signature.fingerprint().starts_with("SHA256:"));
        let wanted = signers(&public(&one)).unwrap().unwrap();
        wanted.accept(Some(&signature)).unwrap();
        assert!(matches!(wanted.accept(None), Err(ArchiveError::Unsigned)));
        let foreign = Signature::check(other.sign(b"m").unwrap().as_bytes(), b"m").unwrap();
        let error = wanted.accept(Some(&foreign)).unwrap_err().to_string();
        assert!(error.contains(&foreign.fingerprint()), "{error}");
        assert!(Signature::check(text.as_bytes(), b"manifesT").is_err());
        assert!(Signature::check(b"-----BEGIN SSH SIGNATURE-----\n", b"manifest").is_err());
    }

    #[test]
    fn a_signature_for_something_else_is_none() {
        let one = signer(1);
        let signature = one.0.sign("git", HashAlg::Sha512, b"manifest").unwrap();
        let text = signature.to_pem(LineEnding::LF).unwrap();
        assert!(Signature::check(text.as_bytes(), b"manifest").is_err());
    }

    #[test]
    fn allowed_signers_are_read_with_their_conditions() {
        let key = public(&signer(1));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allowed");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            signers(&path.display().to_string())
        };
        let count = |text: &str| read(text).unwrap().unwrap().0.len();
        assert_eq!(count(&format!("{key} me@here\n")), 1);
        assert_eq!(count(&format!("# us\n\nme@here,you@there {key}\nother {key} comment\n")), 2);
        assert_eq!(count(&format!("\"my name\" namespaces=\"git,arctern-checkpoint\" {key}\n")), 1);
        for bad in [
            format!("me namespaces=\"git\" {key}\n"),
            format!("me cert-authority {key}\n"),
            format!("me valid-before=\"20200101\" {key}\n"),
            format!("me namespaces=\"arctern-checkpoint\",valid-before=\"20200101\" {key}\n"),
            "nonsense\n".to_owned(),
            String::new(),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
        assert!(signers("/nowhere").is_err());
        assert!(Signers::read(&[]).unwrap().is_none());
    }

    #[test]
    fn keys_that_cannot_sign_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "nothing").unwrap();
        let error = Signer::read(&path).unwrap_err().to_string();
        assert!(error.contains("no secret key"), "{error}");
        let key = signer(3);
        std::fs::write(&path, key.0.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
        Signer::read(&path).unwrap();
    }
}
