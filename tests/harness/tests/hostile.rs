//! A checkpoint is hostile input: mutated archives are refused with an error that names the member,
//! within a stated time, and leave nothing; or they are restored as what they were. Each class of
//! vulnerabilities that docs/security.md lists has a test of its own.
//!
//! An ordinary run takes a seeded sample; `ARCTERN_SOAK=1` takes all.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::host::Host;
use arctern_harness::hostile::mutate::cases;
use arctern_harness::hostile::tar::{self, Member};
use arctern_harness::hostile::victim::{Victim, edit_json, find, is_clear};
use arctern_harness::random::{Random, rounds};
use arctern_harness::skips::judge;

#[test]
fn mutated_archives_are_refused_or_restored_as_they_were() -> Result<(), String> {
    judge("hostile::mutations", || {
        let victim = Victim::new()?;
        let mut random = Random::seeded();
        let soak = std::env::var_os("ARCTERN_SOAK").is_some();
        let mut all = cases(&victim.good, &victim.members, rounds(1, 10), &mut random)?;
        if !soak {
            // Every kind is in a sample of about this many.
            let step = all.len().div_ceil(150).max(1);
            let mut number = 0;
            all.retain(|_| {
                number += 1;
                number % step == 0
            });
        }
        ensure!(!soak || all.len() >= 1000, "{} cases only", all.len());
        let (mut restored, mut wrong) = (0, Vec::new());
        for case in &all {
            match victim.judge(case) {
                Ok(true) => restored += 1,
                Ok(false) => {}
                Err(error) => wrong.push(format!("{}: {error:#}", case.name)),
            }
            ensure!(wrong.len() < 20, "too many to go on:\n{}", wrong.join("\n"));
        }
        println!("{} archives, {restored} of them restored", all.len());
        let left = victim.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(())
    })
}

#[test]
fn pipes_and_devices_are_no_archives() -> Result<(), String> {
    judge("hostile::pipes", || {
        let victim = Victim::new()?;
        fs::remove_file(&victim.file)?;
        for (target, word) in [("/dev/zero", "no regular file"), ("/", "a directory")] {
            symlink(target, &victim.file)?;
            victim.refuses(&[], &[word])?;
            fs::remove_file(&victim.file)?;
        }
        let made = Command::new("mkfifo").arg(&victim.file).stdin(Stdio::null()).status()?;
        ensure!(made.success(), "mkfifo failed");
        victim.refuses(&[], &["no regular file"])
    })
}

#[test]
fn what_an_archive_asks_for_is_listed_and_allowed_by_options() -> Result<(), String> {
    judge("hostile::policy", || {
        let victim = Victim::new()?;
        let ask = |config: &mut serde_json::Value| {
            config["privileged"] = true.into();
            config["networkMode"] = "host".into();
            config["capAdd"] = serde_json::json!(["CAP_SYS_ADMIN", "NET_RAW"]);
            config["volumes"] =
                serde_json::json!([{ "source": "/", "destination": "/host", "options": [] }]);
        };
        victim.change(|members| edit_json(find(members, "config.dump")?, ask))?;
        victim.refuses(
            &[],
            &[
                "the host's / at /host (-v /:/host)",
                "privileged mode",
                "(--cap-add SYS_ADMIN)",
                "(--cap-add NET_RAW)",
                "(--network host)",
                "--trust",
            ],
        )?;
        // A part of it is not enough.
        victim.refuses(&["--privileged"], &["(--network host)"])?;
        // The image is pinned by digest.
        victim.change(|members| {
            edit_json(find(members, "config.dump")?, |c| c["rootfsImageID"] = "redis".into())
        })?;
        victim.refuses(&[], &["its digest"])?;
        victim.change(|members| {
            let id = "0".repeat(64);
            edit_json(find(members, "config.dump")?, |c| c["rootfsImageID"] = id.into())
        })?;
        victim.refuses(&[], &["is not here"])
    })
}

/// CVE-2024-8676 (CRI-O): a checkpoint says what is bound from the host into the restored container.
#[test]
fn an_archive_binds_nothing_of_the_host() -> Result<(), String> {
    judge("hostile::binds", || {
        let victim = Victim::new()?;
        // A mount in the images that is said to be external, and no option of the container's.
        victim.change(|members| {
            let name = members.iter().map(Member::text).find(|n| n.contains("mountpoints-"));
            let member = find(members, &name.context("no mountpoints")?)?;
            replace(&mut member.content, b"/etc/hostname", b"/etc/../../..")
        })?;
        victim.refuses(&[], &["mount"])?;
        // Lists of binds that other engines obey are not even looked at.
        victim.change(|members| {
            let binds = br#"[{"source":"/","destination":"/etc/hostname"}]"#;
            members.insert(0, Member::file("bind.mounts", binds));
            edit_json(find(members, "spec.dump")?, |spec| {
                let bind = serde_json::json!({
                    "destination": "/host", "type": "bind", "source": "/", "options": ["rbind"],
                });
                spec["mounts"].as_array_mut().into_iter().for_each(|m| m.push(bind.clone()));
            })
        })?;
        let (restored, text, _) = victim.restore(&[])?;
        ensure!(restored, "{text}");
        let mounts = victim.host.arctern(&["exec", "one", "cat", "/proc/self/mountinfo"])?;
        victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        ensure!(!mounts.contains(" /host "), "{mounts}");
        victim.unchanged()
    })
}

/// Replaces bytes by as many others, everywhere.
fn replace(content: &mut [u8], from: &[u8], to: &[u8]) -> Result<()> {
    ensure!(from.len() == to.len(), "of different lengths");
    let mut found = false;
    for at in 0..content.len().saturating_sub(from.len() - 1) {
        if &content[at..at + from.len()] == from {
            content[at..at + from.len()].copy_from_slice(to);
            found = true;
        }
    }
    ensure!(found, "{:?} is not there", String::from_utf8_lossy(from));
    Ok(())
}

/// Podman's deleted files: a list of paths to remove leads out of the root.
#[test]
fn deleted_files_stay_below_the_root() -> Result<(), String> {
    judge("hostile::deleted", || {
        let victim = Victim::new()?;
        let outside = victim.host.dir().join("precious");
        fs::write(&outside, "keep me")?;
        let mut victim = victim;
        victim.before = victim.tree()?;
        let up = format!("/../../../../../../../..{}", outside.display());
        for path in [up.as_str(), "../../x", "/etc/../../x"] {
            victim.change(|members| {
                find(members, "deleted.files")?.content = serde_json::to_vec(&[path])?;
                Ok(())
            })?;
            victim.refuses(&[], &["deleted path", "refused"])?;
        }
        // Through a link that the changes make.
        victim.change(|members| {
            let link = Member::of_kind(b'2', "way", &victim.host.dir().to_string_lossy(), b"");
            find(members, "rootfs-diff.tar")?.content = tar::write(&[link]);
            find(members, "deleted.files")?.content = br#"["/way/precious"]"#.to_vec();
            Ok(())
        })?;
        let (restored, text, _) = victim.restore(&[])?;
        ensure!(fs::read_to_string(&outside)? == "keep me", "a file outside was removed");
        if restored {
            victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        } else {
            ensure!(is_clear(&text), "{text}");
        }
        victim.unchanged()
    })
}

/// CVE-2026-33056 (tar): a directory that is there as a link has its mode changed through the link;
/// and what else leads out of a root file system's changes.
#[test]
fn changes_of_the_root_stay_in_it() -> Result<(), String> {
    judge("hostile::changes", || {
        let victim = Victim::new()?;
        let outside = victim.host.dir().join("outside");
        fs::create_dir(&outside)?;
        let mut victim = victim;
        victim.before = victim.tree()?;
        let mode = fs::metadata(&outside)?.mode();
        let target = outside.to_string_lossy().into_owned();
        let link = || Member::of_kind(b'2', "way", &target, b"");
        let evil: [(&str, Vec<Member>); 8] = [
            ("directory", vec![link(), Member::of_kind(b'5', "way", "", b"")]),
            ("file below", vec![link(), Member::file("way/x", b"evil")]),
            ("up", vec![Member::file("../x", b"evil")]),
            ("hard link", vec![Member::of_kind(b'1', "x", "../../../etc/passwd", b"")]),
            ("hard link through", vec![link(), Member::of_kind(b'1', "x", "way/../x", b"")]),
            ("block device", vec![Member::of_kind(b'4', "disk", "", b"")]),
            ("character device", vec![Member::of_kind(b'3', "memory", "", b"")]),
            ("hard link to a device", vec![Member::of_kind(b'1', "x", "/dev/sda", b"")]),
        ];
        for (name, list) in evil {
            victim.change(|members| {
                find(members, "rootfs-diff.tar")?.content = tar::write(&list);
                Ok(())
            })?;
            let (restored, text, _) = victim.restore(&[])?;
            match restored {
                // The link was replaced by a directory: inside of the root it may.
                true if name == "directory" => {
                    victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
                }
                true => bail!("{name}: it was restored"),
                false => ensure!(is_clear(&text), "{name}: {text}"),
            }
            ensure!(fs::metadata(&outside)?.mode() == mode, "{name}: a mode outside was changed");
            victim.unchanged().with_context(|| name.to_owned())?;
        }
        // Not even with trust.
        victim.change(|members| {
            let disk = [Member::of_kind(b'4', "disk", "", b"")];
            find(members, "rootfs-diff.tar")?.content = tar::write(&disk);
            Ok(())
        })?;
        victim.refuses(&["--trust"], &["block device"])
    })
}

/// CVE-2025-62518 (tar of the async world): a pax size and a header's size disagree, and what is
/// content for one reader is a member for another.
#[test]
fn sizes_that_disagree_smuggle_nothing() -> Result<(), String> {
    judge("hostile::sizes", || {
        let victim = Victim::new()?;
        let hidden = tar::write(&[Member::file("smuggled", b"evil")]);
        let inner = hidden[..1024].to_vec();
        let record = format!("13 size={}\n", inner.len());
        let mut carrier = Member::file("carrier", &inner);
        carrier.size = Some(0);
        let pair = vec![Member::of_kind(b'x', "h", "", record.as_bytes()), carrier];
        // In the archive itself: an unlisted member, whichever size counts.
        let mut all = pair.clone();
        all.extend(victim.members.clone());
        victim.write(&tar::write(&all))?;
        victim.refuses(&[], &["carrier", "is not in the manifest"])?;
        // In the changes of the root: the pax size counts, so that nothing is smuggled.
        victim.change(|members| {
            find(members, "rootfs-diff.tar")?.content = tar::write(&pair);
            Ok(())
        })?;
        let (restored, text, _) = victim.restore(&[])?;
        ensure!(restored, "{text}");
        let found = victim.host.arctern(&["exec", "one", "sh", "-c", "ls /; wc -c < /carrier"])?;
        victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        ensure!(!found.contains("smuggled") && found.ends_with("1024"), "{found}");
        victim.unchanged()
    })
}

/// CVE-2026-53489 (containerd): a log or a status file of the archive is a link, and what it leads to
/// on the host is read.
#[test]
fn no_link_of_the_archive_is_followed() -> Result<(), String> {
    judge("hostile::links", || {
        let victim = Victim::new()?;
        for (name, link) in
            [("ctr.log", "/etc/passwd"), ("network.status", "/etc/passwd"), ("checkpoint", "/etc")]
        {
            let mut all = vec![Member::of_kind(b'2', name, link, b"")];
            all.extend(victim.members.iter().filter(|m| m.text() != name).cloned());
            victim.write(&tar::write(&all))?;
            victim.refuses(&[], &[name, "symbolic link"])?;
        }
        Ok(())
    })
}

/// CVE-2026-53492 (containerd): annotations of the archive are obeyed, and bring devices, mounts and
/// programs of the host. Ids and names of the archive become paths.
#[test]
fn annotations_hooks_and_paths_of_the_archive_mean_nothing() -> Result<(), String> {
    judge("hostile::names", || {
        let victim = Victim::new()?;
        for (field, value) in [
            ("id", "../../../../var/tmp/arctern-hostile-escape"),
            ("name", "../escape"),
            ("name", "-o"),
        ] {
            victim.change(|members| {
                edit_json(find(members, "config.dump")?, |c| c[field] = value.into())
            })?;
            victim.refuses(&[], &["no valid id and name"])?;
        }
        victim.change(|members| {
            edit_json(find(members, "spec.dump")?, |spec| {
                spec["annotations"]["cdi.k8s.io/x"] = "vendor.com/device=all".into();
                spec["annotations"]["run.oci.hooks.stdout"] = "/var/tmp/an-escape".into();
                spec["hooks"] = serde_json::json!({
                    "prestart": [{ "path": "/bin/touch", "args": ["touch", "/var/tmp/an-escape"] }],
                });
                spec["process"]["apparmorProfile"] = "unconfined".into();
            })?;
            edit_json(find(members, "config.dump")?, |config| {
                for field in ["logPath", "staticDir", "ShmDir", "rootfs", "pidFile"] {
                    config[field] = "/var/tmp/an-escape".into();
                }
            })
        })?;
        let (restored, text, _) = victim.restore(&[])?;
        ensure!(restored, "{text}");
        victim.is_identical()?;
        victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        victim.unchanged()
    })
}

/// CVE-2026-50195 (containerd): an image that comes with a checkpoint takes a name, and the next
/// container that is made from that name runs it.
#[test]
fn an_image_of_an_archive_gets_no_name() -> Result<(), String> {
    judge("hostile::names_of_images", || {
        let (a, b) = (Host::new()?, Host::new()?);
        a.image("redis", &[])?;
        a.arctern(&["run", "-d", "--network", "none", "--name", "one", "redis", "sleep", "1000"])?;
        let file = a.dir().join("with.tar").to_string_lossy().into_owned();
        a.arctern(&["container", "checkpoint", "one", "--with-image", "--file", &file])?;
        b.arctern(&["container", "restore", "--file", &file])?;
        let images = b.arctern(&["images"])?;
        ensure!(!images.contains("redis"), "it has a name: {images}");
        let next = b.attempt(&["create", "redis", "true"])?;
        ensure!(!next.status.success(), "a container was made from it");
        b.arctern(&["rm", "-f", "-t", "0", "one"])?;
        let left = b.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        a.arctern(&["rm", "one"]).map(drop)
    })
}

/// No privilege comes out of the images: capabilities, missing filters, namespaces of the host.
#[test]
fn no_privilege_comes_from_the_images() -> Result<(), String> {
    judge("hostile::privilege", || {
        let victim = Victim::new()?;
        // Field 12 of the credentials, the bounding set, low half: everything.
        let core = "checkpoint/core-1.img";
        let default = 0x8004_05fbu32;
        victim.change(|members| {
            let content = &mut find(members, core)?.content;
            let from = [&[0x60][..], &varint(default)].concat();
            let to = [&[0x60][..], &varint(u32::MAX)].concat();
            replace(content, &from, &to)
        })?;
        victim.refuses(&[], &["CAP_SYS_ADMIN", "--cap-add"])?;
        // Without the filters the container's own comes in their place.
        victim.change(|members| {
            let name = "checkpoint/seccomp.img";
            let content = &mut find(members, name)?.content;
            // Every answer of the program but `allow` (BPF_RET | BPF_K, 0x7fff0000) becomes one.
            let allow = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
            for errno in [1u8, 38] {
                replace(content, &[6, 0, 0, 0, errno, 0, 5, 0], &allow)?;
            }
            Ok(())
        })?;
        let (restored, text, _) = victim.restore(&[])?;
        if restored {
            let status = victim.host.arctern(&["exec", "one", "cat", "/proc/1/status"])?;
            victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
            ensure!(status.contains("Seccomp:\t2") && status.contains("filters:\t2"), "{status}");
        } else {
            ensure!(is_clear(&text), "{text}");
        }
        // In the host's namespaces: the ids of the root task are those of the dumper.
        victim.change(|members| {
            let inventory = find(members, "checkpoint/inventory.img")?.content.clone();
            ensure!(!inventory.is_empty(), "no inventory");
            let ids = find(members, "checkpoint/ids-1.img")?;
            let same = root_ids(&inventory, &ids.content)?;
            find(members, "checkpoint/inventory.img")?.content = same;
            Ok(())
        })?;
        victim.refuses(&[], &["it is the host's"])
    })
}

/// A number as protobuf has it.
fn varint(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// An inventory whose namespaces are those of an ids image.
fn root_ids(inventory: &[u8], ids: &[u8]) -> Result<Vec<u8>> {
    // inventory.img: magic, length, message; its field 3 is the message of ids-PID.img.
    ensure!(inventory.len() > 8 && ids.len() > 12, "too short");
    let message = &ids[12..];
    let mut field = vec![0x1a, u8::try_from(message.len())?];
    field.extend(message);
    // The last one of a field that occurs twice counts, field by field.
    let mut all = inventory[8..].to_vec();
    all.extend(field);
    let mut image = inventory[..4].to_vec();
    image.extend(u32::try_from(all.len())?.to_le_bytes());
    image.extend(all);
    Ok(image)
}
