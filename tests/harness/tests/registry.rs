//! Images to and from a real registry, with TLS and passwords; and what happens when it lies.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::crash;
use arctern_harness::host::{Host, run};
use arctern_harness::registry::{ADDRESS, CREDS, Registry};
use arctern_harness::skips::judge;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Contents of some size that do not compress, the same for the same seed.
fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 32);
    let mut block = Sha256::digest(seed.as_bytes());
    while out.len() < bytes {
        out.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    out.truncate(bytes);
    out
}

/// A layer with one file of noise; compressed by a program, or plain.
fn layer(dir: &Path, seed: &str, compressor: Option<&str>) -> Result<(PathBuf, String)> {
    let tree = dir.join(format!("tree-{seed}"));
    fs::create_dir_all(tree.join("data"))?;
    fs::write(tree.join("data").join(seed), noise(seed, 300_000))?;
    std::os::unix::fs::symlink(seed, tree.join("data").join(format!("link-{seed}")))?;
    let tar = dir.join(format!("{seed}.tar"));
    let sorted = ["--sort=name", "--mtime=@1", "--owner=0", "--group=0", "--numeric-owner"];
    run(Command::new("tar").args(sorted).arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("data"))?;
    let diff = sha256(&fs::read(&tar)?);
    let path = match compressor {
        None => tar,
        Some(program) => {
            let packed = run(Command::new(program).arg("-c").arg(&tar))?;
            let path = dir.join(format!("{seed}.{program}"));
            fs::write(&path, packed.stdout)?;
            path
        }
    };
    Ok((path, diff))
}

/// An archive as `docker save` writes it, of an image with these layers.
fn saved(dir: &Path, name: &str, layers: &[(&str, Option<&str>)]) -> Result<PathBuf> {
    let (mut members, mut diffs) = (Vec::new(), Vec::new());
    for (seed, compressor) in layers {
        let (path, diff) = layer(&dir.join("layers"), seed, *compressor)?;
        members.push(path.file_name().context("name")?.to_string_lossy().into_owned());
        diffs.push(format!("sha256:{diff}"));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": { "Cmd": ["true"], "Labels": { "name": name } },
        "rootfs": { "type": "layers", "diff_ids": diffs },
        "history": [{ "created_by": "a test" }],
    });
    let layers = dir.join("layers");
    fs::write(layers.join("config.json"), serde_json::to_vec(&config)?)?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": members }]);
    fs::write(layers.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    let archive = dir.join("saved.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&layers).arg("-cf").arg(&archive).args(["config.json", "manifest.json"]);
    run(tar.args(&members))?;
    fs::remove_dir_all(&layers)?;
    Ok(archive)
}

/// Loads an image with these layers on a host.
fn load(host: &Host, name: &str, layers: &[(&str, Option<&str>)]) -> Result<()> {
    fs::create_dir_all(host.dir().join("layers"))?;
    let archive = saved(host.dir(), name, layers)?;
    host.arctern(&["load", "-i", &archive.to_string_lossy()]).map(drop)
}

fn inspect(host: &Host, name: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&host.arctern(&["image", "inspect", name])?)?;
    Ok(all[0].clone())
}

/// Names in a directory of a host's store.
fn stored(host: &Host, dir: &str) -> Result<BTreeSet<String>> {
    let path = host.dir().join("root/storage").join(dir);
    let entries = fs::read_dir(path).into_iter().flatten();
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Nothing is in the store but its empty directories.
fn nothing_is_left(host: &Host) -> Result<()> {
    for dir in ["blobs/sha256", "layers", "tmp"] {
        let left = stored(host, dir)?;
        ensure!(left.is_empty(), "{dir} still has {left:?}");
    }
    ensure!(host.arctern(&["images", "-q"])?.is_empty(), "there are images");
    Ok(())
}

/// Two hosts that reach one registry.
fn two_hosts() -> Result<(Registry, Host, Host)> {
    let (a, b) = (Host::new()?, Host::new()?);
    let mut registry = Registry::new()?;
    registry.serve(&a)?;
    registry.serve(&b)?;
    Ok((registry, a, b))
}

const LAYERS: &[(&str, Option<&str>)] =
    &[("one", None), ("two", Some("gzip")), ("three", Some("zstd"))];

#[test]
fn what_is_pushed_is_pulled_elsewhere_as_the_same() -> Result<(), String> {
    judge("registry::push-pull", || {
        let (registry, a, b) = two_hosts()?;
        let name = format!("{ADDRESS}/team/app:1");
        load(&a, &name, LAYERS)?;
        let before = inspect(&a, &name)?;
        registry.login(&a)?;
        let digest_file = a.dir().join("digest");
        registry.arctern(&a, &["push", "--digestfile", &digest_file.to_string_lossy(), &name])?;
        let digest = fs::read_to_string(digest_file)?;
        ensure!(before["Digest"] == digest.as_str(), "{digest} is not {before}");
        // Once more: there is nothing to move.
        let again = registry.command(&a, &["push", &name])?.output()?;
        let said = String::from_utf8_lossy(&again.stderr);
        ensure!(said.matches("is there already").count() == 4, "pushed again: {said}");

        registry.arctern(&b, &["pull", "--creds", CREDS, &name])?;
        let after = inspect(&b, &name)?;
        for field in ["Id", "Digest", "RootFS", "Config", "RepoTags"] {
            ensure!(before[field] == after[field], "{field}: {before} became {after}");
        }
        ensure!(after["RepoDigests"][0] == format!("{ADDRESS}/team/app@{digest}"), "{after}");
        ensure!(stored(&a, "layers")? == stored(&b, "layers")?, "other layers");
        ensure!(stored(&a, "blobs/sha256")? == stored(&b, "blobs/sha256")?, "other blobs");
        let tree = |host: &Host| {
            let dir = host.dir().join("root/storage/layers");
            let listed = "find . -type f -exec sha256sum {} + | sort; find . -type l -printf '%p %l\\n' | sort";
            run(Command::new("sh").args(["-c", listed]).current_dir(dir)).map(|o| o.stdout)
        };
        ensure!(tree(&a)? == tree(&b)?, "the files of the layers differ");
        ensure!(stored(&b, "tmp")?.is_empty(), "left in tmp");

        // By digest, by short name, and by an alias.
        let pinned = format!("{ADDRESS}/team/app@{digest}");
        let id = after["Id"].as_str().context("id")?;
        registry.login(&b)?;
        for wanted in [pinned.as_str(), "team/app:1"] {
            ensure!(registry.arctern(&b, &["pull", "-q", wanted])? == id, "{wanted} is another");
        }
        let conf = b.dir().join("home/.config/containers/registries.conf");
        let alias = format!("[aliases]\n'short' = '{ADDRESS}/team/app'\n");
        fs::write(&conf, alias)?;
        ensure!(registry.arctern(&b, &["pull", "-q", "short:1"])? == id, "the alias is another");
        ensure!(registry.arctern(&b, &["image", "exists", "short:1"]).is_ok(), "not found again");
        registry.arctern(&b, &["rmi", "-f", id])?;
        nothing_is_left(&b)
    })
}

#[test]
fn strangers_and_unknown_certificates_are_refused() -> Result<(), String> {
    judge("registry::access", || {
        let (registry, a, b) = two_hosts()?;
        let name = format!("{ADDRESS}/app:1");
        load(&a, &name, &[("one", Some("gzip"))])?;
        let wrong = registry.refusal(&a, &["login", "-u", "user", "-p", "wrong", ADDRESS])?;
        ensure!(wrong.contains("does not let user in"), "wrong password: {wrong}");
        let stranger = registry.refusal(&a, &["push", &name])?;
        ensure!(stranger.contains("does not let strangers push to app"), "push: {stranger}");
        registry.arctern(&a, &["push", "--creds", CREDS, &name])?;

        registry.login(&b)?;
        let auth = b.dir().join("home/run/containers/auth.json");
        let kept = fs::read_to_string(&auth)?;
        ensure!(kept.contains(ADDRESS), "no credentials in {kept}");
        ensure!(registry.arctern(&b, &["login", "--get-login", ADDRESS])? == "user", "user");
        let unknown = b.dir().join("unknown");
        fs::create_dir(&unknown)?;
        let unknown = unknown.to_string_lossy().into_owned();
        let refused = registry.refusal(&b, &["pull", "--cert-dir", &unknown, &name])?;
        ensure!(
            refused.contains("certificate of registry 127.0.0.1:5000 is not trusted"),
            "{refused}"
        );
        ensure!(refused.contains("certs.d/127.0.0.1:5000"), "no remedy: {refused}");
        nothing_is_left(&b)?;
        let trusting = ["pull", "-q", "--cert-dir", &unknown, "--tls-verify=false", &name];
        registry.arctern(&b, &trusting)?;
        registry.arctern(&b, &["rmi", &name])?;
        let missing = registry.refusal(&b, &["pull", &format!("{ADDRESS}/app:2")])?;
        ensure!(missing.contains("has no manifest with the tag 2"), "missing: {missing}");
        registry.arctern(&b, &["logout", ADDRESS])?;
        let refused = registry.refusal(&b, &["pull", &name])?;
        ensure!(refused.contains("does not let strangers pull from app"), "{refused}");
        // A helper gives them as well.
        let bin = b.dir().join("bin");
        fs::create_dir(&bin)?;
        let (user, password) = CREDS.split_once(':').context("credentials")?;
        let script = format!(
            "#!/bin/sh\nread -r r; [ \"$r\" = {ADDRESS} ] || exit 1\n\
             echo '{{\"Username\":\"{user}\",\"Secret\":\"{password}\"}}'\n"
        );
        fs::write(bin.join("docker-credential-test"), script)?;
        run(Command::new("chmod").arg("755").arg(bin.join("docker-credential-test")))?;
        let docker = b.dir().join("home/.docker");
        fs::create_dir(&docker)?;
        let config = json!({ "credHelpers": { ADDRESS: "test" } });
        fs::write(docker.join("config.json"), config.to_string())?;
        let path = std::env::var("PATH")?;
        let mut pull = registry.command(&b, &["pull", "-q", &name])?;
        run(pull.env("PATH", format!("{}:{path}", bin.display())))?;
        registry.arctern(&b, &["rmi", &name])?;
        nothing_is_left(&b)
    })
}

#[test]
fn what_is_damaged_in_the_registry_is_refused_by_its_digest() -> Result<(), String> {
    judge("registry::damage", || {
        let (registry, a, b) = two_hosts()?;
        let name = format!("{ADDRESS}/app:1");
        load(&a, &name, LAYERS)?;
        registry.login(&a)?;
        registry.login(&b)?;
        registry.arctern(&a, &["push", &name])?;
        let image = inspect(&a, &name)?;
        let manifest = image["Digest"].as_str().context("digest")?.to_owned();
        let text = fs::read(registry.blob(&manifest["sha256:".len()..]))?;
        let parsed: Value = serde_json::from_slice(&text)?;
        let digest = |value: &Value| Some(value["digest"].as_str()?.to_owned());
        let mut all = vec![manifest, digest(&parsed["config"]).context("config")?];
        all.extend(parsed["layers"].as_array().context("layers")?.iter().filter_map(digest));
        for digest in all {
            let path = registry.blob(&digest["sha256:".len()..]);
            let whole = fs::read(&path)?;
            let mut flipped = whole.clone();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 1;
            fs::write(&path, flipped)?;
            let refused = registry.refusal(&b, &["pull", &name])?;
            ensure!(refused.contains(&digest), "a bit of {digest} was changed: {refused}");
            nothing_is_left(&b)?;
            fs::write(&path, &whole[..middle])?;
            let refused = registry.refusal(&b, &["pull", &name])?;
            // A manifest that makes no sense to the registry is not given away at all.
            let kept_back = refused.contains("answers 500 to manifest");
            ensure!(refused.contains(&digest) || kept_back, "{digest} was cut: {refused}");
            nothing_is_left(&b)?;
            fs::write(&path, whole)?;
        }
        registry.arctern(&b, &["pull", &name])?;
        Ok(())
    })
}

#[test]
fn pulls_side_by_side_share_layers_with_removals() -> Result<(), String> {
    judge("registry::parallel", || {
        let (registry, a, b) = two_hosts()?;
        registry.login(&a)?;
        registry.login(&b)?;
        let names: Vec<String> = (0..4).map(|n| format!("{ADDRESS}/app{n}:1")).collect();
        let tops = ["zero", "uno", "due", "tre"];
        for (name, top) in names.iter().zip(tops) {
            load(&a, name, &[("one", Some("gzip")), ("two", Some("zstd")), (top, Some("gzip"))])?;
            registry.arctern(&a, &["push", "-q", name])?;
        }
        for round in 0..3 {
            let mut running = Vec::new();
            for name in &names {
                running.push((name, registry.command(&b, &["pull", "-q", name])?.spawn()?));
            }
            // What another one has just got may be removed: it must stay for those that need it.
            registry.command(&b, &["image", "prune", "-a", "-f"])?.output()?;
            for (name, mut pull) in running {
                ensure!(pull.wait()?.success(), "pull of {name} failed in round {round}");
            }
            let again: Vec<_> = names.iter().map(|name| ["pull", "-q", name]).collect();
            for arguments in again {
                registry.arctern(&b, &arguments)?;
            }
            ensure!(stored(&b, "layers")? == stored(&a, "layers")?, "layers differ");
            ensure!(stored(&b, "blobs/sha256")? == stored(&a, "blobs/sha256")?, "blobs differ");
            registry.arctern(&b, &["image", "prune", "-a", "-f"])?;
            nothing_is_left(&b)?;
        }
        Ok(())
    })
}

/// A container that prints the version of its image, which is got by this policy.
fn by_policy(registry: &Registry, host: &Host, policy: &str, name: &str) -> Result<Command> {
    let words = ["run", "--rm", "--network", "none", "--pull", policy, name];
    registry.command(host, &[&words[..], &["sh", "-c", "echo version $V"]].concat())
}

#[test]
fn a_container_gets_its_image_by_the_policy() -> Result<(), String> {
    judge("registry::policies", || {
        let (mut registry, a, b) = two_hosts()?;
        let name = format!("{ADDRESS}/team/app:1");
        crash::tiny_image(&a)?;
        registry.login(&a)?;
        registry.login(&b)?;
        let tar = a.dir().join("tiny.tar").to_string_lossy().into_owned();
        let publish = |registry: &Registry, version: &str| -> Result<()> {
            let change = format!("ENV V={version}");
            a.arctern(&["import", "--change", &change, &tar, &name])?;
            registry.arctern(&a, &["push", "-q", &name]).map(drop)
        };
        let says = |registry: &Registry, policy: &str, wanted: &str| -> Result<String> {
            let output = run(&mut by_policy(registry, &b, policy, &name)?)?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(said.trim() == format!("version {wanted}"), "--pull {policy}: {said}");
            Ok(String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let refuses = |registry: &Registry, policy: &str, word: &str| -> Result<()> {
            let output = by_policy(registry, &b, policy, &name)?.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success() && said.contains(word), "--pull {policy}: {said}");
            Ok(())
        };
        publish(&registry, "one")?;
        refuses(&registry, "never", "no image")?;
        says(&registry, "missing", "one")?;
        publish(&registry, "two")?;
        says(&registry, "missing", "one")?;
        says(&registry, "never", "one")?;
        says(&registry, "newer", "two")?;
        says(&registry, "newer", "two")?;
        publish(&registry, "three")?;
        says(&registry, "always", "three")?;
        refuses(&registry, "sometimes", "always, missing, never or newer")?;
        // The others have lost the name, and are still images.
        let dangling = b.arctern(&["images", "--format", "{{.Repository}} {{.Dangling}}"])?;
        ensure!(dangling.matches("<none> true").count() == 2, "{dangling}");

        publish(&registry, "four")?;
        registry.silence();
        for policy in ["missing", "never", "newer"] {
            let told = says(&registry, policy, "three")?;
            let warned = told.contains("no answer from registry");
            ensure!(warned == (policy == "newer"), "--pull {policy}: {told}");
        }
        refuses(&registry, "always", "no answer from registry")?;
        Ok(())
    })
}

#[test]
fn images_are_listed_with_the_fields_that_are_asked_for() -> Result<(), String> {
    judge("registry::format", || {
        let host = Host::new()?;
        load(&host, "app:1", &[("one", None)])?;
        host.arctern(&["tag", "app:1", "other:2"])?;
        host.arctern(&["create", "--network", "none", "--name", "c", "app:1", "true"])?;
        let image = inspect(&host, "app:1")?;
        let text = |field: &str| image[field].as_str().unwrap_or_default().to_owned();
        let listed = |format: &str| host.arctern(&["images", "--format", format]);
        let rows = listed("{{.Repository}}:{{.Tag}} {{.ID}} {{.Os}}/{{.Arch}} {{.Containers}}")?;
        let short = &text("Id")[..12];
        let row = |name: &str| format!("localhost/{name} {short} linux/amd64 1");
        let mut found: Vec<&str> = rows.lines().collect();
        found.sort_unstable();
        ensure!(found == [row("app:1"), row("other:2")], "{rows}");
        let digests = listed("{{.Id}} {{.Digest}} {{.ConfigDigest}} {{.CreatedAt}}")?;
        let all = ["Id", "Digest", "Created"].map(text);
        let wanted = format!("{} {} sha256:{} {}", all[0], all[1], all[0], all[2]);
        ensure!(digests.lines().all(|line| line == wanted), "{digests} is not {wanted}");
        let names = listed("{{json .RepoTags}} {{.Labels.name}} {{.Dangling}}")?;
        ensure!(
            names.contains("\"localhost/other:2\"") && names.contains(" app:1 false"),
            "{names}"
        );
        let table = listed("table {{.Repository}}\\t{{.Size}}\\t{{.CreatedSince}}")?;
        ensure!(table.starts_with("REPOSITORY") && table.contains("ago"), "{table}");
        let whole = host.arctern(&["images", "--no-trunc", "--format", "{{.ID}}"])?;
        ensure!(whole.lines().all(|id| id == format!("sha256:{}", all[0])), "{whole}");
        let wrong = host.attempt(&["images", "--format", "{{.Name}}"])?;
        let said = String::from_utf8_lossy(&wrong.stderr);
        ensure!(!wrong.status.success() && said.contains("there is no field `Name`"), "{said}");
        host.arctern(&["rm", "c"])?;
        Ok(())
    })
}

#[test]
fn an_index_gives_the_image_for_the_machine() -> Result<(), String> {
    judge("registry::index", || {
        let (registry, a, b) = two_hosts()?;
        registry.login(&a)?;
        registry.login(&b)?;
        let (one, other) = (format!("{ADDRESS}/app:one"), format!("{ADDRESS}/app:other"));
        load(&a, &one, &[("one", Some("gzip"))])?;
        load(&a, &other, &[("two", Some("gzip"))])?;
        registry.arctern(&a, &["push", "-q", &one])?;
        // Docker's manifest in Docker's list.
        let digests = a.dir().join("digest");
        let file = digests.to_string_lossy().into_owned();
        let docker = ["push", "-q", "--format", "v2s2", "--digestfile", &file, &other];
        registry.arctern(&a, &docker)?;
        let other_digest = fs::read_to_string(&digests)?;
        let one_digest = inspect(&a, &one)?["Digest"].as_str().context("digest")?.to_owned();
        let docker_manifest = "application/vnd.docker.distribution.manifest.v2+json";
        let size = |digest: &str| -> Result<u64> {
            Ok(fs::metadata(registry.blob(&digest["sha256:".len()..]))?.len())
        };
        let list = "application/vnd.docker.distribution.manifest.list.v2+json";
        let index = json!({
            "schemaVersion": 2, "mediaType": list,
            "manifests": [
                { "mediaType": "application/vnd.oci.image.manifest.v1+json",
                  "digest": one_digest, "size": size(&one_digest)?,
                  "platform": { "os": "linux", "architecture": "arm64", "variant": "v8" } },
                { "mediaType": docker_manifest,
                  "digest": other_digest, "size": size(&other_digest)?,
                  "platform": { "os": "linux", "architecture": "amd64" } },
            ],
        });
        let path = a.dir().join("index.json");
        fs::write(&path, index.to_string())?;
        registry.put(&a, "app:all", list, &path)?;
        let all = format!("{ADDRESS}/app:all");
        let id = |host: &Host, name: &str| -> Result<String> {
            Ok(inspect(host, name)?["Id"].as_str().context("id")?.to_owned())
        };
        ensure!(registry.arctern(&b, &["pull", "-q", &all])? == id(&a, &other)?, "not for amd64");
        let described = inspect(&b, &all)?;
        ensure!(described["Digest"] == other_digest.as_str(), "{described}");
        ensure!(described["RepoDigests"].as_array().is_some_and(|d| d.len() == 2), "{described}");
        let arm = ["pull", "-q", "--platform", "linux/arm64", &all];
        ensure!(registry.arctern(&b, &arm)? == id(&a, &one)?, "not for arm64");
        let none = registry.refusal(&b, &["pull", "--platform", "linux/s390x", &all])?;
        ensure!(
            none.contains("no image for linux/s390x, only for linux/arm64/v8, linux/amd64"),
            "{none}"
        );
        Ok(())
    })
}

#[test]
fn archives_carry_images_in_both_forms() -> Result<(), String> {
    judge("registry::archives", || {
        let (a, b) = (Host::new()?, Host::new()?);
        load(&a, "app:1", LAYERS)?;
        a.arctern(&["tag", "app:1", "other:2"])?;
        load(&a, "small:1", &[("one", None)])?;
        for format in ["docker-archive", "oci-archive"] {
            let file = b.dir().join(format);
            let path = file.to_string_lossy().into_owned();
            let save = ["save", "--format", format, "-o", &path, "app:1", "other:2", "small:1"];
            a.arctern(&save)?;
            let loaded = b.arctern(&["load", "-i", &path])?;
            ensure!(loaded.lines().count() == 3, "loaded {loaded}");
            for name in ["app:1", "other:2", "small:1"] {
                let (here, there) = (inspect(&a, name)?, inspect(&b, name)?);
                for field in ["Id", "RootFS", "Config"] {
                    ensure!(here[field] == there[field], "{format}, {field}: {here} {there}");
                }
            }
            b.arctern(&["rmi", "-f", "app:1"])?;
            b.arctern(&["rmi", "-f", "small:1"])?;
            nothing_is_left(&b)?;
            // As a stream, compressed, cut.
            let saved = run(&mut a.command(&["save", "--format", format, "app:1"]))?.stdout;
            fs::write(&file, &saved[..saved.len() / 2])?;
            ensure!(!b.attempt(&["load", "-i", &path])?.status.success(), "half an archive");
            nothing_is_left(&b)?;
        }
        let steps = a.arctern(&["history", "app:1"])?;
        ensure!(steps.contains("a test"), "{steps}");
        ensure!(a.arctern(&["image", "tree", "app:1"])?.contains("top layer of"), "tree");
        let untagged = a.arctern(&["untag", "other:2"])?;
        ensure!(
            untagged.is_empty()
                && a.attempt(&["image", "exists", "other:2"])?.status.code() == Some(1),
            "untag"
        );
        Ok(())
    })
}
