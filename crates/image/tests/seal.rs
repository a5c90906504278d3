//! Signed and encrypted archives: what is sealed comes back, and what was changed, cut, stripped or made
//! by somebody else is refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use arctern_image::archive::{
    ArchiveError, ArchiveWriter, Compression, Limits, extract, peek_within, verify,
};
use arctern_image::manifest::{HostFacts, Manifest};
use arctern_image::seal::{Keys, Recipients, SIGNATURE_NAME, Seal, Signer, Signers, Unseal};
use ssh_key::private::{Ed25519Keypair, PrivateKey};
use tempfile::TempDir;

/// Keys of two people, in files as their programs write them.
struct Keyring {
    dir: TempDir,
}

impl Keyring {
    fn new() -> Self {
        use age::secrecy::ExposeSecret;
        let dir = tempfile::tempdir().unwrap();
        for (name, seed) in [("one", 1), ("two", 2)] {
            let key = PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]));
            let text = key.to_openssh(ssh_key::LineEnding::LF).unwrap();
            std::fs::write(dir.path().join(name), text.as_bytes()).unwrap();
            let public = key.public_key().to_openssh().unwrap();
            std::fs::write(dir.path().join(format!("{name}.pub")), public).unwrap();
            let identity = age::x25519::Identity::generate();
            let recipient = identity.to_public().to_string();
            std::fs::write(dir.path().join(format!("{name}.age.pub")), recipient).unwrap();
            let secret = identity.to_string();
            std::fs::write(dir.path().join(format!("{name}.age")), secret.expose_secret()).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn signer(&self, name: &str) -> Option<Signer> {
        Some(Signer::read(&self.path(name)).unwrap())
    }

    fn seal(&self, signed: bool, encrypted: bool) -> Seal {
        let list = [self.text("one.age.pub")];
        Seal {
            signer: if signed { self.signer("one") } else { None },
            recipients: encrypted.then(|| Recipients::read(&list).unwrap()),
        }
    }

    fn unseal(&self, signer: Option<&str>, identity: Option<&str>) -> Unseal {
        let signers: Vec<String> =
            signer.iter().map(|name| self.text(&format!("{name}.pub"))).collect();
        let identities: Vec<PathBuf> =
            identity.iter().map(|name| self.path(&format!("{name}.age"))).collect();
        Unseal {
            signers: Signers::read(&signers).unwrap(),
            keys: Keys::read(&identities, None).unwrap(),
        }
    }

    /// An archive of a few members.
    fn write(&self, compression: Compression, seal: &Seal) -> Vec<u8> {
        let path = self.path("web.tar");
        let mut writer = ArchiveWriter::create_sealed(&path, compression, seal).unwrap();
        writer.add_bytes("config.dump", b"{}").unwrap();
        writer.add_stream("checkpoint/pages-1.img", 300_000, &mut io::repeat(7)).unwrap();
        let manifest = Manifest::new(1_700_000_000, HostFacts::default(), None);
        let summary = writer.finish(manifest).unwrap();
        assert_eq!(summary.members, if seal.signer.is_some() { 4 } else { 3 });
        assert_eq!(summary.bytes, path.metadata().unwrap().len());
        std::fs::read(path).unwrap()
    }
}

/// What a restore does: all of it is checked, then looked into, then unpacked.
fn read(bytes: &[u8], unseal: &Unseal) -> Result<(), ArchiveError> {
    let dest = tempfile::tempdir().unwrap();
    let checked = verify(bytes, Limits::default(), unseal);
    let extracted = extract(bytes, dest.path(), Limits::default(), unseal, &mut |_| {});
    // Neither lets through what the other refuses.
    assert_eq!(
        checked.as_ref().map(drop).map_err(ToString::to_string),
        extracted.as_ref().map(drop).map_err(ToString::to_string)
    );
    let extracted = extracted?;
    assert_eq!(checked?, extracted.signature);
    let pages = std::fs::read(dest.path().join("checkpoint/pages-1.img")).unwrap();
    assert!(pages.len() == 300_000 && pages.iter().all(|byte| *byte == 7));
    let found = peek_within(bytes, &["config.dump"], 100, Limits::default(), unseal)?;
    assert_eq!(found["config.dump"], b"{}");
    Ok(())
}

fn refusal(bytes: &[u8], unseal: &Unseal) -> String {
    read(bytes, unseal).expect_err("it was read").to_string()
}

#[test]
fn what_is_sealed_comes_back() {
    let ring = Keyring::new();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for (signed, encrypted) in [(true, false), (false, true), (true, true)] {
            let bytes = ring.write(compression, &ring.seal(signed, encrypted));
            let identity = encrypted.then_some("one");
            read(&bytes, &ring.unseal(signed.then_some("one"), identity)).unwrap();
            read(&bytes, &ring.unseal(None, identity)).unwrap();
            if encrypted {
                assert!(refusal(&bytes, &ring.unseal(None, None)).contains("is encrypted"));
                let other = refusal(&bytes, &ring.unseal(None, Some("two")));
                assert!(other.contains("none of the given keys"), "{other}");
            } else {
                let error = refusal(&bytes, &ring.unseal(None, Some("one")));
                assert!(error.contains("not encrypted"), "{error}");
            }
            let error = refusal(&bytes, &ring.unseal(Some("two"), identity));
            let word = if signed { "none of those required" } else { "not signed" };
            assert!(error.contains(word), "{error}");
        }
    }
}

/// Rewrites a plain archive: each member is kept, changed or dropped, and others can follow.
fn rewrite(
    bytes: &[u8],
    edit: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>,
    more: &[&str],
) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        out.append_data(&mut header, name, content).unwrap();
    };
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if let Some(content) = edit(&name, content) {
            add(&name, entry.header().entry_type(), &content);
        }
    }
    for name in more {
        let directory = name.ends_with('/');
        let kind = if directory { tar::EntryType::Directory } else { tar::EntryType::Regular };
        add(name, kind, b"");
    }
    out.into_inner().unwrap()
}

#[test]
fn what_was_changed_after_it_was_signed_is_refused() {
    let ring = Keyring::new();
    let bytes = ring.write(Compression::None, &ring.seal(true, false));
    let wanted = ring.unseal(Some("one"), None);
    let change = |which: &'static str, to: &'static [u8]| {
        rewrite(&bytes, |name, old| Some(if name == which { to.to_vec() } else { old }), &[])
    };
    let same = rewrite(&bytes, |_, old| Some(old), &[]);
    read(&same, &wanted).unwrap();
    // A member, by its digest; the manifest with it, by the signature; the signature itself.
    assert!(refusal(&change("config.dump", b"[]"), &wanted).contains("config.dump is damaged"));
    let manifest = |name: &str, old: Vec<u8>| match name {
        "arctern.json" => {
            String::from_utf8(old).unwrap().replace("1700000000", "1700000001").into()
        }
        _ => old,
    };
    let remade = rewrite(&bytes, |name, old| Some(manifest(name, old)), &[]);
    assert!(refusal(&remade, &wanted).contains("does not fit"));
    // Also where nobody asked for a signature.
    assert!(refusal(&remade, &Unseal::default()).contains("does not fit"));
    assert!(refusal(&change(SIGNATURE_NAME, b"nothing"), &wanted).contains("does not fit"));
    let without = |which: &'static str| rewrite(&bytes, |n, old| (n != which).then_some(old), &[]);
    assert!(refusal(&without(SIGNATURE_NAME), &wanted).contains("not signed"));
    assert!(refusal(&without("config.dump"), &wanted).contains("config.dump is missing"));
    assert!(refusal(&without("arctern.json"), &wanted).contains("arctern.json is missing"));
    for more in ["smuggled", "volumes/"] {
        let error = refusal(&rewrite(&bytes, |_, old| Some(old), &[more]), &wanted);
        assert!(error.contains("not in the manifest"), "{error}");
    }
    // Another program's archive, and an empty one.
    let foreign = rewrite(&bytes, |n, old| (!n.starts_with("arctern")).then_some(old), &[]);
    assert!(refusal(&foreign, &wanted).contains("not signed"));
    assert!(refusal(&[0; 10240], &wanted).contains("not signed"));
    read(&foreign, &Unseal::default()).unwrap();
}

#[test]
fn what_was_cut_or_flipped_is_refused() {
    let ring = Keyring::new();
    let wanted = ring.unseal(Some("one"), Some("one"));
    let bytes = ring.write(Compression::Zstd, &ring.seal(true, true));
    for length in (0..bytes.len()).step_by(97) {
        assert!(read(&bytes[..length], &wanted).is_err(), "cut to {length} bytes");
    }
    for at in (0..bytes.len()).step_by(31) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(read(&changed, &wanted).is_err(), "byte {at}");
    }
    let longer = [&bytes[..], b"more"].concat();
    assert!(read(&longer, &wanted).is_err());
}

#[test]
fn a_sealed_archive_is_looked_into_with_its_keys() {
    use arctern_image::summary::summarise_sealed;
    let ring = Keyring::new();
    let path = ring.path("sealed");
    let mut writer =
        ArchiveWriter::create_sealed(&path, Compression::Zstd, &ring.seal(true, true)).unwrap();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/images");
    writer
        .add_file(
            "checkpoint/inventory.img",
            &File::open(samples.join("inventory.img")).unwrap(),
            1,
        )
        .unwrap();
    writer.finish(Manifest::new(1, HostFacts::default(), None)).unwrap();
    let look = |signer, identity| {
        summarise_sealed(&path, &ring.unseal(signer, identity)).err().map(|error| error.to_string())
    };
    assert!(look(None, None).unwrap().contains("is encrypted"));
    assert!(look(Some("two"), Some("one")).unwrap().contains("none of those required"));
    // A directory is not signed.
    let error =
        summarise_sealed(&samples, &ring.unseal(Some("one"), None)).unwrap_err().to_string();
    assert!(error.contains("not signed"), "{error}");
}
