//! Signed and encrypted archives, with the keys and programs that people have: OpenSSH's and age's.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use arctern_harness::hostile::tar::{self, MANIFEST, Member};
use arctern_harness::hostile::victim::{Victim, edit_json, find};
use arctern_harness::skips::judge;

const SIGNATURE: &str = "arctern.json.sig";

/// A host with a checkpoint of a container, and the keys of two people.
struct Sealed {
    victim: Victim,
    keys: PathBuf,
}

impl Sealed {
    /// The container is captured with options; `file` is the archive's name.
    fn new(file: &str, options: &[&str]) -> Result<Self> {
        let victim = Victim::new()?;
        let keys = victim.host.dir().join("keys");
        fs::create_dir(&keys)?;
        for name in ["one", "two"] {
            let key = keys.join(name).display().to_string();
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key]))?;
            let (secret, list) = (format!("{key}.age"), format!("{key}.recipients"));
            run(Command::new("age-keygen").args(["-o", &secret]))?;
            run(Command::new("age-keygen").args(["-y", "-o", &list, &secret]))?;
        }
        fs::write(keys.join("one.pass"), "correct horse\nbattery staple\n")?;
        fs::write(keys.join("two.pass"), "battery staple\n")?;
        victim.write(&victim.good.clone())?;
        let sealed = Sealed { victim, keys };
        let good = sealed.victim.file.display().to_string();
        sealed.victim.host.arctern(&["container", "restore", "--file", &good])?;
        let path = sealed.victim.host.dir().join(file).display().to_string();
        let options: Vec<String> = options.iter().map(|word| sealed.expand(word)).collect();
        let mut words = vec!["container", "checkpoint", "one", "--file", &path];
        words.extend(options.iter().map(String::as_str));
        sealed.victim.host.arctern(&words)?;
        sealed.victim.host.arctern(&["rm", "one"])?;
        let bytes = fs::read(&path)?;
        fs::remove_file(&path)?;
        let mut victim = sealed.victim;
        victim.before = victim.tree()?;
        victim.good = bytes;
        Ok(Sealed { victim, keys: sealed.keys })
    }

    /// `{one.pub}` is the path of that key.
    fn expand(&self, word: &str) -> String {
        match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
            Some(name) => self.keys.join(name).display().to_string(),
            None => word.to_owned(),
        }
    }

    /// The archive is refused with these words, and nothing is left.
    fn refuses(&self, bytes: &[u8], options: &[&str], words: &[&str]) -> Result<()> {
        self.victim.write(bytes)?;
        let options: Vec<String> = options.iter().map(|word| self.expand(word)).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.victim.refuses(&options, words)
    }

    /// The archive is restored as what it was.
    fn takes(&self, bytes: &[u8], options: &[&str]) -> Result<()> {
        self.victim.write(bytes)?;
        let options: Vec<String> = options.iter().map(|word| self.expand(word)).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let (restored, text, _) = self.victim.restore(&options)?;
        ensure!(restored, "{text}");
        self.victim.is_identical()?;
        self.victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        self.victim.unchanged()
    }

    /// A signature of OpenSSH's own.
    fn sign(&self, key: &str, namespace: &str, manifest: &[u8]) -> Result<Vec<u8>> {
        let path = self.victim.host.dir().join("to-sign.tar");
        let key = self.keys.join(key);
        fs::write(&path, manifest)?;
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key).arg(&path);
        run(&mut command)?;
        let signature = self.victim.host.dir().join("to-sign.tar.sig");
        let text = fs::read(&signature)?;
        fs::remove_file(signature)?;
        fs::remove_file(path)?;
        Ok(text)
    }
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {text}");
    Ok(output.stdout)
}

fn replaced(members: &[Member], name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut members = members.to_vec();
    find(&mut members, name)?.content = content.to_vec();
    Ok(tar::write(&members))
}

#[test]
fn only_what_the_right_key_signed_is_restored() -> Result<(), String> {
    judge("sealed::signed", || {
        let sealed = Sealed::new("signed.tar", &["--sign", "{one}"])?;
        let good = sealed.victim.good.clone();
        let members = tar::read(&good)?;
        let manifest = find(&mut members.clone(), MANIFEST)?.content.clone();
        let signature = find(&mut members.clone(), SIGNATURE)?.content.clone();
        // By OpenSSH's program, with its file of allowed signers.
        let public = fs::read_to_string(sealed.keys.join("one.pub"))?;
        let allowed = sealed.keys.join("allowed");
        fs::write(&allowed, format!("me@here namespaces=\"arctern-checkpoint\" {public}"))?;
        let written = sealed.keys.join("signature");
        fs::write(&written, &signature)?;
        let mut check = Command::new("sh");
        let script =
            "ssh-keygen -Y verify -n arctern-checkpoint -I me@here -f \"$1\" -s \"$2\" <\"$3\"";
        let input = sealed.keys.join("manifest");
        fs::write(&input, &manifest)?;
        run(check.args(["-c", script, "sh"]).args([&allowed, &written, &input]))?;
        let mut sealed = sealed;
        sealed.victim.before = sealed.victim.tree()?;

        let one = ["--require-signature", "{one.pub}"];
        sealed.takes(&good, &one)?;
        sealed.takes(&good, &["--require-signature", "{allowed}"])?;
        sealed.takes(&good, &["--require-signature", "{two.pub}", one[0], one[1]])?;
        sealed.takes(&good, &[])?;
        let by_openssh = sealed.sign("one", "arctern-checkpoint", &manifest)?;
        sealed.takes(&replaced(&members, SIGNATURE, &by_openssh)?, &one)?;

        let two = ["--require-signature", "{two.pub}"];
        sealed.refuses(&good, &two, &["signed with the key SHA256:", "none of those required"])?;
        let by_two = sealed.sign("two", "arctern-checkpoint", &manifest)?;
        let foreign = replaced(&members, SIGNATURE, &by_two)?;
        sealed.refuses(&foreign, &one, &["none of those required"])?;
        let for_mail = sealed.sign("one", "mail", &manifest)?;
        sealed.refuses(&replaced(&members, SIGNATURE, &for_mail)?, &one, &["does not fit"])?;
        let stripped: Vec<_> = members.iter().filter(|m| m.text() != SIGNATURE).cloned().collect();
        sealed.refuses(&tar::write(&stripped), &one, &["is not signed"])?;
        let bare: Vec<_> = stripped.iter().filter(|m| m.text() != MANIFEST).cloned().collect();
        sealed.refuses(&tar::write(&bare), &one, &["is not signed"])?;
        let mut changed = members.clone();
        edit_json(find(&mut changed, "config.dump")?, |c| c["name"] = "other".into())?;
        sealed.refuses(&tar::write(&changed), &one, &["config.dump is damaged"])?;
        tar::remake(&mut changed)?;
        sealed.refuses(&tar::write(&changed), &one, &["does not fit"])?;
        sealed.refuses(&tar::write(&changed), &[], &["does not fit"])?;
        let mut more = members.clone();
        more.insert(1, Member::file("checkpoint/more.img", b"x"));
        sealed.refuses(
            &tar::write(&more),
            &one,
            &["checkpoint/more.img is not in the manifest"],
        )?;
        for length in [0, 511, good.len() / 2, good.len() - 1025] {
            sealed.refuses(&good[..length], &one, &["error: cannot restore"])?;
        }
        sealed.refuses(&good, &["--require-signature", "{one}"], &["no public key"])?;
        let left = sealed.victim.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn an_encrypted_archive_opens_with_its_key_only() -> Result<(), String> {
    judge("sealed::encrypted", || {
        let options = ["--sign", "{one}", "--encrypt-to", "{one.recipients}"];
        let sealed = Sealed::new("secret.tar.age", &options)?;
        let good = sealed.victim.good.clone();
        let key = ["--identity", "{one.age}"];
        sealed.takes(&good, &key)?;
        sealed.takes(&good, &[key[0], key[1], "--require-signature", "{one.pub}"])?;
        // age's own program opens it, and what it encrypts is opened.
        sealed.victim.write(&good)?;
        let mut decrypt = Command::new("age");
        decrypt.args(["-d", "-i"]).arg(sealed.keys.join("one.age")).arg(&sealed.victim.file);
        let plain = run(&mut decrypt)?;
        ensure!(tar::read(&plain)?.iter().any(|member| member.text() == SIGNATURE), "no signature");
        sealed.takes(&plain, &["--require-signature", "{one.pub}"])?;
        sealed.victim.write(&plain)?;
        let mut encrypt = Command::new("age");
        encrypt.args(["-e", "-R"]).arg(sealed.keys.join("one.recipients"));
        let by_age = run(encrypt.arg(&sealed.victim.file))?;
        sealed.takes(&by_age, &[key[0], key[1], "--require-signature", "{one.pub}"])?;

        sealed.refuses(&good, &[], &["is encrypted", "--identity"])?;
        let two = ["--identity", "{two.age}"];
        sealed.refuses(&good, &two, &["none of the given keys"])?;
        sealed.refuses(&plain, &key, &["is not encrypted"])?;
        sealed.refuses(&good, &["--identity", "{one.pub}"], &["no file of secret keys"])?;
        for length in [10, 200, good.len() / 2, good.len() - 1] {
            sealed.refuses(&good[..length], &key, &["error: cannot restore"])?;
        }
        for at in [5, 150, good.len() / 3, good.len() - 1] {
            let mut changed = good.clone();
            changed[at] ^= 1;
            sealed.refuses(&changed, &key, &["error: cannot restore"])?;
        }
        let file = sealed.victim.file.display().to_string();
        sealed.victim.write(&good)?;
        let identity = sealed.expand(key[1]);
        let public = sealed.expand("{one.pub}");
        let look = ["checkpoint", "inspect", "--identity", &identity, "--require-signature"];
        let shown = sealed.victim.host.arctern(&[&look[..], &[&public, &file]].concat())?;
        ensure!(shown.contains("Signed by    SHA256:"), "{shown}");
        let public = sealed.expand("{two.pub}");
        let blind = sealed.victim.host.attempt(&[&look[..], &[&public, &file]].concat())?;
        ensure!(!blind.status.success() && blind.stdout.is_empty(), "{blind:?}");
        sealed.victim.unchanged()
    })
}

#[test]
fn an_archive_opens_with_its_passphrase_only() -> Result<(), String> {
    judge("sealed::passphrase", || {
        let options = ["--passphrase-file", "{one.pass}"];
        let sealed = Sealed::new("secret.tar.age", &options)?;
        let good = sealed.victim.good.clone();
        sealed.takes(&good, &options)?;
        let two = ["--passphrase-file", "{two.pass}"];
        sealed.refuses(&good, &two, &["none of the given keys"])?;
        sealed.refuses(&good, &[], &["is encrypted", "--passphrase-file"])?;
        sealed.refuses(&good, &["--identity", "{one.age}"], &["none of the given keys"])?;
        sealed.refuses(&good, &["--passphrase-file", "{none}"], &["cannot use a key"])?;
        let host = &sealed.victim.host;
        let file = sealed.victim.file.display().to_string();
        let pass = sealed.expand(options[1]);
        sealed.victim.write(&good)?;
        let look = ["checkpoint", "inspect", "--passphrase-file", &pass, &file];
        ensure!(host.arctern(&look)?.contains("Container    one"), "inspect");
        let diff = ["checkpoint", "diff", "--passphrase-file", &pass];
        let same = host.arctern(&[&diff[..], &[&file, &file]].concat())?;
        ensure!(same.contains("0 pages changed") || same.is_empty(), "{same}");
        let closed = host.attempt(&["checkpoint", "diff", &file, &file])?;
        let text = String::from_utf8_lossy(&closed.stderr);
        ensure!(!closed.status.success() && text.contains("is encrypted"), "{text}");
        sealed.victim.unchanged()
    })
}

#[test]
fn two_encrypted_archives_are_compared() -> Result<(), String> {
    judge("sealed::diff", || {
        let options = ["--sign", "{one}", "--encrypt-to", "{one.recipients}"];
        let sealed = Sealed::new("secret.tar.age", &options)?;
        let (host, good) = (&sealed.victim.host, sealed.victim.good.clone());
        sealed.victim.write(&good)?;
        let first = sealed.victim.file.display().to_string();
        let key = sealed.expand("{one.age}");
        host.arctern(&["container", "restore", "--identity", &key, "--file", &first])?;
        // It has another child then.
        sealed.victim.is_identical()?;
        let second = host.dir().join("second.tar.age").display().to_string();
        let list = sealed.expand("{one.recipients}");
        let checkpoint = ["container", "checkpoint", "one", "--encrypt-to", &list];
        host.arctern(&[&checkpoint[..], &["--file", &second]].concat())?;
        let diff = ["checkpoint", "diff", "--identity", &key];
        let told = host.arctern(&[&diff[..], &[&first, &second]].concat())?;
        ensure!(told.contains("+ process") && told.contains("sleep 1000"), "{told}");
        let refused = |options: &[&str], word: &str| -> Result<()> {
            let mut words = vec!["checkpoint", "diff"];
            words.extend(options);
            let output = host.attempt(&[&words[..], &[&first, &second]].concat())?;
            let text = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success() && output.stdout.is_empty(), "{words:?}: {output:?}");
            ensure!(text.contains(word), "{words:?}: {text}");
            Ok(())
        };
        refused(&["--identity", &sealed.expand("{two.age}")], "none of the given keys")?;
        refused(&[], "is encrypted")?;
        // The second one is not signed.
        let signer = sealed.expand("{one.pub}");
        refused(&["--identity", &key, "--require-signature", &signer], "is not signed")?;
        host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        fs::remove_file(&second)?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn an_image_is_restored_if_the_right_key_signed_it() -> Result<(), String> {
    judge("sealed::image", || {
        let sealed = Sealed::new("signed.tar", &["--sign", "{one}"])?;
        let good = sealed.victim.good.clone();
        let host = &sealed.victim.host;
        sealed.victim.write(&good)?;
        let file = sealed.victim.file.display().to_string();
        let key = sealed.expand("{one}");
        host.arctern(&["container", "restore", "--file", &file])?;
        host.arctern(&[
            "container",
            "checkpoint",
            "one",
            "--sign",
            &key,
            "--create-image",
            "frozen",
        ])?;
        host.arctern(&["rm", "one"])?;
        let restore = |key: &str| {
            let key = sealed.expand(key);
            host.attempt(&["container", "restore", "frozen", "--require-signature", &key])
        };
        let refused = restore("{two.pub}")?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && text.contains("none of those required"), "{text}");
        let taken = restore("{one.pub}")?;
        ensure!(taken.status.success(), "{taken:?}");
        sealed.victim.is_identical()?;
        host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        host.arctern(&["rmi", "frozen"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}
