//! Running containers that move by a registry: one host pushes a checkpoint as an image, another one
//! with an empty store pulls and restores it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::host::{Host, rootfs, run};
use arctern_harness::registry::{ADDRESS, Registry};
use arctern_harness::skips::judge;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

/// Changes a root file system and a volume in every way: new, changed and deleted files and
/// directories, links of both kinds, extended attributes, modes, owners, holes.
const CHANGE: &str = r#"
import os, shutil
shutil.rmtree("/srv/gone")
os.remove("/srv/old")
with open("/srv/kept", "a") as f: f.write("more\n")
for top in ("/srv/new", "/data/new"):
    os.makedirs(top + "/deep/deeper")
    with open(top + "/one", "w") as f: f.write("linked" * 1000)
    os.link(top + "/one", top + "/deep/two")
    os.link(top + "/one", top + "/deep/deeper/three")
    os.symlink("../one", top + "/deep/link")
    os.setxattr(top + "/one", "user.note", b"a\0b")
    os.setxattr(top + "/deep", "user.directory", b"x" * 100)
    os.chown(top + "/deep", 1000, 1001)
    os.chmod(top + "/deep", 0o2751)
    with open(top + "/sparse", "wb") as f:
        f.seek(1 << 20)
        f.write(b"end")
    os.utime(top + "/sparse", ns=(1, 1234567890123456789))
    os.mkfifo(top + "/pipe", 0o640)
    os.mkdir(top + "/empty")
"#;

/// What a restore must bring back, as text.
const LOOK: &str = r#"
import hashlib, os, stat
inodes = {}
for top in ("/srv", "/data"):
    for dir, dirs, files in os.walk(top):
        dirs.sort()
        for name in sorted(files + dirs):
            path = os.path.join(dir, name)
            st = os.lstat(path)
            xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in sorted(os.listxattr(path, follow_symlinks=False))}
            what = ""
            if stat.S_ISLNK(st.st_mode): what = os.readlink(path)
            if stat.S_ISREG(st.st_mode): what = hashlib.sha256(open(path, "rb").read()).hexdigest()
            same = inodes.setdefault((st.st_dev, st.st_ino), path)
            size = st.st_size if stat.S_ISREG(st.st_mode) else 0
            nlink = 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink
            print(path, oct(st.st_mode), st.st_uid, st.st_gid, nlink, size, st.st_mtime_ns, what, same, xattrs)
"#;

fn question(host: &Host, text: &str) -> Result<Value> {
    let mut reader = BufReader::new(host.connect("127.0.0.1:7000")?);
    let stream: &mut TcpStream = reader.get_mut();
    writeln!(stream, "{text}")?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("`{text}` was answered with `{line}`"))
}

/// A host with a container that has changed its root file system and its volume.
fn busy_container(registry: &Registry, host: &Host, base: &str) -> Result<()> {
    // With files to be changed.
    let work = host.dir().join("work");
    let script = "set -e; mkdir -p root/srv/gone root/data; cp \"$1\" changed.tar; \
                  echo x > root/srv/gone/file; echo old > root/srv/old; echo kept > root/srv/kept; \
                  tar -rf changed.tar --owner=0 --group=0 -C root ./srv ./data";
    std::fs::create_dir(&work)?;
    let tar = rootfs("python")?;
    run(std::process::Command::new("sh").args(["-c", script, "sh", &tar]).current_dir(&work))?;
    let changed = work.join("changed.tar").to_string_lossy().into_owned();
    let command = r#"CMD ["python3", "/srv/server.py"]"#;
    host.arctern(&["import", "--change", command, &changed, base])?;
    let volume = ["run", "-d", "-v", "data:/data", "-p", "7000:7000", "--name", "py", base];
    registry.arctern(host, &volume)?;
    question(host, "put key a text that stays")?;
    host.arctern(&["exec", "py", "python3", "-c", CHANGE])?;
    Ok(())
}

fn moves_by_registry(with_image: bool) -> Result<()> {
    let (a, b) = (Host::new()?, Host::new()?);
    let mut registry = Registry::new()?;
    for host in [&a, &b] {
        registry.serve(host)?;
        registry.login(host)?;
    }
    let base = if with_image { "base:1".to_owned() } else { format!("{ADDRESS}/base:1") };
    busy_container(&registry, &a, &base)?;
    if !with_image {
        registry.arctern(&a, &["push", "-q", &base])?;
    }
    let before = a.arctern(&["exec", "py", "python3", "-c", LOOK])?;
    let id = |host: &Host| -> Result<Value> {
        let all: Value = serde_json::from_str(&host.arctern(&["inspect", "py"])?)?;
        Ok(all[0]["Image"].clone())
    };
    let image = id(&a)?;
    let status = question(&a, "status")?;
    let checkpoint = format!("{ADDRESS}/team/py:frozen");
    let mut arguments = vec!["container", "checkpoint", "py", "--create-image", &checkpoint];
    if with_image {
        arguments.push("--with-image");
    }
    registry.arctern(&a, &arguments)?;
    registry.arctern(&a, &["push", "-q", &checkpoint])?;
    let all: Value = serde_json::from_str(&a.arctern(&["image", "inspect", &checkpoint])?)?;
    let annotation = |name: &str| all[0]["Annotations"][name].as_str().unwrap_or("").to_owned();
    ensure!(annotation("io.podman.annotations.checkpoint.runtime.name") == "runc", "{all}");
    ensure!(annotation("io.podman.annotations.checkpoint.name") == "py", "{all}");
    ensure!(
        annotation("io.podman.annotations.checkpoint.rootfsImageName").ends_with("base:1"),
        "{all}"
    );
    if !with_image {
        // The name means another image now, here and in the registry; what is restored does not.
        let other = a.dir().join("other.tar");
        run(std::process::Command::new("tar")
            .arg("-cf")
            .arg(&other)
            .arg("-C")
            .arg("/")
            .arg("etc/hostname"))?;
        a.arctern(&["import", &other.to_string_lossy(), &base])?;
        registry.arctern(&a, &["push", "-q", &base])?;
    }

    let restored = registry.arctern(&b, &["container", "restore", &checkpoint])?;
    ensure!(restored.len() == 64, "restore printed {restored}");
    ensure!(id(&b)? == image, "another image: {} for {image}", id(&b)?);
    let after = b.arctern(&["exec", "py", "python3", "-c", LOOK])?;
    ensure!(before == after, "files differ:\n--- before\n{before}\n--- after\n{after}");
    let now = question(&b, "status")?;
    ensure!(now["pid"] == status["pid"] && now["errors"] == 0, "{status} became {now}");
    let kept = question(&b, "get key")?;
    ensure!(kept == "a text that stays", "the memory lost its text: {kept}");
    b.arctern(&["rm", "-f", "-t", "0", "py"])?;

    b.arctern(&["system", "check"]).context("the store is not as it should be")?;

    // Once more, by `run` and under another name, from what is here.
    b.arctern(&["volume", "rm", "data"]).context("the volume stays in the way")?;
    let run = ["run", "-d", "--name", "again", "-p", "7000:7000", &checkpoint];
    registry.arctern(&b, &run)?;
    ensure!(question(&b, "get key")? == "a text that stays", "lost by `run`");
    let more = registry.refusal(&b, &["run", "-d", "-e", "A=1", &checkpoint])?;
    ensure!(more.contains("--detach, --name, --publish"), "{more}");
    b.arctern(&["rm", "-f", "-t", "0", "again"])?;
    b.arctern(&["volume", "rm", "data"])?;
    drop(registry);
    let left = b.leftovers()?;
    ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
    Ok(())
}

#[test]
fn a_checkpoint_moves_by_registry_and_its_image_is_got_by_digest() -> Result<(), String> {
    judge("checkpoint_images::by-digest", || moves_by_registry(false))
}

#[test]
fn a_checkpoint_moves_by_registry_with_its_image() -> Result<(), String> {
    judge("checkpoint_images::with-image", || moves_by_registry(true))
}

#[test]
fn an_image_that_moved_is_refused() -> Result<(), String> {
    judge("checkpoint_images::moved", || {
        let (a, b) = (Host::new()?, Host::new()?);
        let mut registry = Registry::new()?;
        for host in [&a, &b] {
            registry.serve(host)?;
            registry.login(host)?;
        }
        let base = format!("{ADDRESS}/base:1");
        a.image("python", &[r#"CMD ["python3", "/srv/server.py"]"#, "STOPSIGNAL SIGKILL"])?;
        a.arctern(&["tag", "python", &base])?;
        registry.arctern(&a, &["run", "-d", "--name", "py", &base])?;
        let archive = a.dir().join("py.tar").to_string_lossy().into_owned();
        // At that moment no registry had the image: there is only its name, and its id.
        a.arctern(&["container", "checkpoint", "py", "-e", &archive])?;
        let other = a.dir().join("other.tar");
        run(std::process::Command::new("tar")
            .arg("-cf")
            .arg(&other)
            .arg("-C")
            .arg("/")
            .arg("etc/hostname"))?;
        a.arctern(&["import", &other.to_string_lossy(), &base])?;
        registry.arctern(&a, &["push", "-q", &base])?;
        let refused = registry.refusal(&b, &["container", "restore", "--file", &archive])?;
        ensure!(refused.contains("is another image now"), "{refused}");
        ensure!(b.arctern(&["images", "-q"])?.is_empty(), "something was kept");
        // The right one is taken.
        a.arctern(&["tag", "python", &base])?;
        registry.arctern(&a, &["push", "-q", &base])?;
        registry.arctern(&b, &["container", "restore", "--file", &archive])?;
        b.arctern(&["rm", "-f", "-t", "0", "py"])?;
        Ok(())
    })
}
