//! Encryption: an age file around the archive.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::secrecy::{ExposeSecret, SecretString};
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, Decryptor, Encryptor, Identity, IdentityFile, scrypt, x25519};

use super::{KeyError, read_text};
use crate::archive::ArchiveError;

/// How an age file begins.
const MAGIC: &[u8] = b"age-encryption.org/v1\n";

/// The longest header of an age file that is read, in bytes: some 80 recipients. It is parsed again
/// with every line.
const MAX_HEADER: u64 = 16 << 10;

/// Work to make a key of a passphrase, as a power of two: 256 MiB and about a second, as age's own
/// program has it.
const WORK: u8 = if cfg!(test) { 10 } else { 18 };

/// The most work that a file may ask for: four times as much.
const MAX_WORK: u8 = 20;

/// Who can read an archive.
#[derive(Clone)]
pub enum Recipients {
    /// Whoever has the secret key of one of these.
    Keys(Vec<x25519::Recipient>),
    /// Whoever knows this.
    Passphrase(SecretString),
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys(keys) => {
                f.debug_list().entries(keys.iter().map(ToString::to_string)).finish()
            }
            Self::Passphrase(_) => f.write_str("passphrase"),
        }
    }
}

impl Recipients {
    /// Recipients as they are given: public keys (`age1…`), or files with one on each line.
    ///
    /// # Errors
    /// One is neither; there is none.
    pub fn read(given: &[String]) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for one in given {
            if one.starts_with("age1") {
                keys.push(parse(one, one)?);
                continue;
            }
            for (number, line) in read_text(Path::new(one))?.lines().enumerate() {
                let line = line.trim();
                if !line.is_empty() && !line.starts_with('#') {
                    keys.push(parse(line, &format!("{one}, line {}", number + 1))?);
                }
            }
        }
        match keys.is_empty() {
            true => Err(KeyError::new(given.join(", "), "there is no recipient in it")),
            false => Ok(Self::Keys(keys)),
        }
    }

    /// The passphrase on the first line of a file.
    ///
    /// # Errors
    /// There is none.
    pub fn passphrase(path: &Path) -> Result<Self, KeyError> {
        read_passphrase(path).map(Self::Passphrase)
    }

    fn encryptor(&self) -> io::Result<Encryptor> {
        let with_passphrase;
        let recipients: Vec<&dyn age::Recipient> = match self {
            Self::Keys(keys) => keys.iter().map(|key| key as &dyn age::Recipient).collect(),
            Self::Passphrase(passphrase) => {
                let mut recipient = scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(WORK);
                with_passphrase = recipient;
                vec![&with_passphrase]
            }
        };
        Encryptor::with_recipients(recipients.into_iter()).map_err(io::Error::other)
    }
}

fn parse(key: &str, what: &str) -> Result<x25519::Recipient, KeyError> {
    key.parse().map_err(|error| {
        KeyError::new(
            what,
            format!("this is no recipient of age (`age1…`, from age-keygen): {error}"),
        )
    })
}

fn read_passphrase(path: &Path) -> Result<SecretString, KeyError> {
    let text = SecretString::from(read_text(path)?);
    match text.expose_secret().lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(SecretString::from(line.to_owned())),
        None => Err(KeyError::new(path.display(), "there is no passphrase on its first line")),
    }
}

/// What opens encrypted archives.
#[derive(Clone)]
pub struct Keys(Vec<Arc<dyn Identity + Send + Sync>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// Secret keys from files as `age-keygen` writes them, and the passphrase on the first line of
    /// another. None without a file.
    ///
    /// # Errors
    /// A file is not of that kind.
    pub fn read(files: &[PathBuf], passphrase: Option<&Path>) -> Result<Option<Self>, KeyError> {
        let mut keys: Vec<Arc<dyn Identity + Send + Sync>> = Vec::new();
        for path in files {
            let text = SecretString::from(read_text(path)?);
            let cause =
                "it is no file of secret keys of age (`AGE-SECRET-KEY-1…`, from age-keygen)";
            let found = IdentityFile::from_buffer(text.expose_secret().as_bytes())
                .ok()
                .and_then(|file| file.into_identities().ok())
                .filter(|found| !found.is_empty())
                .ok_or_else(|| KeyError::new(path.display(), cause))?;
            keys.extend(found.into_iter().map(Arc::from));
        }
        if let Some(path) = passphrase {
            let mut identity = scrypt::Identity::new(read_passphrase(path)?);
            identity.set_max_work_factor(MAX_WORK);
            keys.push(Arc::new(identity));
        }
        Ok((!keys.is_empty()).then_some(Self(keys)))
    }
}

/// Where an archive is written to, encrypted or not.
pub(crate) enum Sealed<W: Write> {
    Plain(W),
    Encrypted(StreamWriter<W>),
}

impl<W: Write> Sealed<W> {
    pub fn new(output: W, recipients: Option<&Recipients>) -> io::Result<Self> {
        Ok(match recipients {
            None => Self::Plain(output),
            Some(recipients) => Self::Encrypted(recipients.encryptor()?.wrap_output(output)?),
        })
    }

    /// Writes the last piece and returns the output.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(output) => Ok(output),
            Self::Encrypted(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Sealed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Encrypted(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Encrypted(writer) => writer.flush(),
        }
    }
}

/// Whether a file that begins with these bytes is an age file.
pub(crate) fn is_encrypted(start: &[u8]) -> bool {
    !start.is_empty() && MAGIC.starts_with(&start[..start.len().min(MAGIC.len())])
}

/// The header of an age file, which was read, and what follows it.
pub type Whole<R> = io::Chain<io::Cursor<Vec<u8>>, BufReader<R>>;

/// An archive's bytes, decrypted where it is encrypted.
pub enum Opened<R: Read> {
    /// It was not asked for a key.
    Plain(R),
    /// What the keys opened.
    Encrypted(Box<StreamReader<Whole<R>>>),
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Encrypted(reader) => reader.read(buffer),
        }
    }
}

/// Opens an archive. Without keys it is passed on as it is.
///
/// # Errors
/// It is not encrypted; no key fits; it is damaged.
pub fn open<R: Read>(source: R, keys: Option<&Keys>) -> Result<Opened<R>, ArchiveError> {
    let Some(keys) = keys else { return Ok(Opened::Plain(source)) };
    let mut source = BufReader::with_capacity(1 << 16, source);
    let header = read_header(&mut source)?;
    let refused = |error: DecryptError| match error {
        DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed => ArchiveError::WrongKey,
        DecryptError::Io(error) => damaged(error),
        other => damaged(io::Error::new(io::ErrorKind::InvalidData, other)),
    };
    let whole = io::Cursor::new(header).chain(source);
    let decryptor = Decryptor::new_buffered(whole).map_err(refused)?;
    let identities = keys.0.iter().map(|key| &**key as &dyn Identity);
    let reader = decryptor.decrypt(identities).map_err(refused)?;
    Ok(Opened::Encrypted(Box::new(reader)))
}

/// The header: lines, the last of which begins with three hyphens. The library would read one of any
/// length.
fn read_header(source: &mut impl BufRead) -> Result<Vec<u8>, ArchiveError> {
    let mut header = Vec::new();
    let mut source = source.take(MAX_HEADER);
    loop {
        let begin = header.len();
        source.read_until(b'\n', &mut header).map_err(damaged)?;
        let line = &header[begin..];
        if begin == 0 && line != MAGIC {
            return Err(ArchiveError::NotEncrypted);
        }
        if !line.ends_with(b"\n") {
            let message = "the header of the encryption is too long or cut off";
            return Err(damaged(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        if line.starts_with(b"---") {
            return Ok(header);
        }
    }
}

fn damaged(error: io::Error) -> ArchiveError {
    ArchiveError::Damaged { member: "its beginning".to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Recipients, Keys) {
        let identity = x25519::Identity::generate();
        let recipients = Recipients::Keys(vec![identity.to_public()]);
        (recipients, Keys(vec![Arc::new(identity)]))
    }

    fn encrypted(text: &[u8], recipients: &Recipients) -> Vec<u8> {
        let mut sealed = Sealed::new(Vec::new(), Some(recipients)).unwrap();
        sealed.write_all(text).unwrap();
        sealed.finish().unwrap()
    }

    fn decrypted(bytes: &[u8], keys: &Keys) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        let mut opened = open(bytes, Some(keys)).map_err(|error| error.to_string())?;
        opened.read_to_end(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[test]
    fn who_has_the_key_reads_it_and_nobody_else() {
        let (recipients, keys) = pair();
        let text = b"secret memory ".repeat(20_000);
        let bytes = encrypted(&text, &recipients);
        assert!(is_encrypted(&bytes) && !bytes.windows(6).any(|w| w == b"secret"));
        assert_eq!(decrypted(&bytes, &keys).unwrap(), text);
        let error = decrypted(&bytes, &pair().1).unwrap_err();
        assert!(error.contains("none of the given keys"), "{error}");
        let error = decrypted(b"plain text, longer than the magic word", &keys).unwrap_err();
        assert!(error.contains("not encrypted"), "{error}");
    }

    #[test]
    fn a_change_or_an_early_end_is_an_error() {
        let (recipients, keys) = pair();
        let bytes = encrypted(&[7; 200_000], &recipients);
        for length in [0, 1, 30, 100, bytes.len() / 2, bytes.len() - 65_552, bytes.len() - 1] {
            assert!(decrypted(&bytes[..length], &keys).is_err(), "{length} bytes");
        }
        for at in (0..bytes.len()).step_by(997) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(decrypted(&changed, &keys).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_header_without_end_is_refused() {
        let (_, keys) = pair();
        let endless = [MAGIC, &b"-> X25519 x\n".repeat(100_000)].concat();
        let error = decrypted(&endless, &keys).unwrap_err();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn passphrases_work_and_ask_for_no_more_than_their_share() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("phrase");
        std::fs::write(&file, "correct horse\nnot this\n").unwrap();
        let recipients = Recipients::passphrase(&file).unwrap();
        let keys = Keys::read(&[], Some(&file)).unwrap().unwrap();
        let bytes = encrypted(b"text", &recipients);
        assert_eq!(decrypted(&bytes, &keys).unwrap(), b"text");
        let greedy = String::from_utf8_lossy(&bytes[..120]).replacen(" 10\n", " 30\n", 1);
        let greedy =
            [greedy.split_inclusive('\n').take(3).collect::<String>().as_bytes(), &bytes[..]]
                .concat();
        assert!(decrypted(&greedy, &keys).is_err());
        std::fs::write(&file, "\n").unwrap();
        assert!(Recipients::passphrase(&file).is_err());
    }

    #[test]
    fn keys_come_from_the_command_line_or_files() {
        let dir = tempfile::tempdir().unwrap();
        let identity = x25519::Identity::generate();
        let public = identity.to_public().to_string();
        let list = dir.path().join("list");
        std::fs::write(&list, format!("# all of us\n\n{public}\n{public}\n")).unwrap();
        let secret = dir.path().join("key");
        let text = identity.to_string();
        std::fs::write(&secret, format!("# a key\n{}\n", text.expose_secret())).unwrap();
        let given = [public, list.display().to_string()];
        let Recipients::Keys(found) = Recipients::read(&given).unwrap() else { panic!("keys") };
        assert_eq!(found.len(), 3);
        let keys = Keys::read(std::slice::from_ref(&secret), None).unwrap().unwrap();
        let bytes = encrypted(b"text", &Recipients::Keys(found));
        assert_eq!(decrypted(&bytes, &keys).unwrap(), b"text");
        assert!(Keys::read(&[], None).unwrap().is_none());
        // The wrong one of the two files: no secret is in the message.
        let swapped = Recipients::read(&[secret.display().to_string()]).unwrap_err().to_string();
        assert!(swapped.contains("line 2") && !swapped.contains("AGE-SECRET"), "{swapped}");
        assert!(Keys::read(&[list], None).is_err());
        assert!(Recipients::read(&["age1nonsense".to_owned()]).is_err());
    }
}
