//! The store as the container crate uses it. What needs root is skipped without it.

use std::io::Read;
use std::path::Path;

use arctern_storage::{ImportOptions, Store, StoreError};

/// A directory in memory where there is one: unmounting an overlay syncs the disk below it, which
/// takes as long as the disk is busy.
fn in_memory() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// A tar archive made by a closure.
fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().expect("archive")
}

/// Appends a member of any type with a path that the tar crate would refuse to write.
fn member(
    builder: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    link: &str,
    content: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    header.set_cksum();
    builder.append(&header, content).expect("append");
}

fn small_image() -> Vec<u8> {
    archive(|b| {
        member(b, tar::EntryType::Directory, "./", "", b"");
        member(b, tar::EntryType::Directory, "./etc/", "", b"");
        member(b, tar::EntryType::Regular, "./etc/name", "", b"small");
        member(b, tar::EntryType::Link, "./etc/same", "./etc/name", b"");
        member(b, tar::EntryType::Symlink, "./etc/link", "/etc/name", b"");
    })
}

struct Host {
    dir: tempfile::TempDir,
    store: Store,
}

fn host() -> Option<Host> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    let dir = in_memory().expect("temporary directory");
    let store = Store::open(&dir.path().join("root"), &dir.path().join("run")).expect("open");
    Some(Host { dir, store })
}

impl Host {
    fn import(&self, tar: &[u8], name: &str) -> Result<arctern_storage::Image, StoreError> {
        let options = ImportOptions {
            name: Some(name.into()),
            changes: vec!["CMD [\"/bin/sh\"]".into()],
            message: None,
        };
        self.store.import(tar, &options)
    }

    fn tmp_is_empty(&self) -> bool {
        let tmp = self.dir.path().join("root/tmp");
        std::fs::read_dir(tmp).expect("list").next().is_none()
    }
}

#[test]
fn an_imported_image_is_found_used_and_removed() {
    let Some(host) = host() else { return };
    let image = host.import(&small_image(), "web").expect("import");
    assert_eq!(image.names, ["localhost/web:latest"]);
    assert_eq!(host.store.resolve("web").expect("by name").id, image.id);
    assert_eq!(host.store.resolve(&image.id[..8]).expect("by id").id, image.id);
    let config = host.store.config("web").expect("config");
    let cmd = config.config().as_ref().and_then(|c| c.cmd().clone());
    assert_eq!(cmd, Some(vec!["/bin/sh".to_owned()]));

    let root = host.store.create_root("c1", "web").expect("root");
    assert!(matches!(host.store.create_root("c1", "web"), Err(StoreError::RootExists(_))));
    let merged = host.store.mount_root("c1", false).expect("mount");
    assert_eq!(host.store.mount_root("c1", false).expect("again"), merged);
    let read = |p: &Path| std::fs::read_to_string(p).expect("read");
    assert_eq!(read(&merged.join("etc/same")), "small");
    std::fs::write(merged.join("etc/new"), b"x").expect("write");
    assert!(root.upper.join("etc/new").exists());

    assert!(matches!(host.store.remove_image("web", true), Err(StoreError::ImageInUse { .. })));
    host.store.remove_root("c1").expect("remove root");
    host.store.remove_root("c1").expect("absence is no error");
    assert!(!merged.exists() && !root.upper.exists());
    let removed = host.store.remove_image("web", false).expect("remove image");
    assert_eq!(removed.deleted, Some(image.id.clone()));
    assert!(!host.dir.path().join("root/layers").join(&image.layers[0]).exists());
    assert!(matches!(host.store.resolve("web"), Err(StoreError::NoSuchImage(..))));
    assert!(host.tmp_is_empty());
}

#[test]
fn the_same_archive_compressed_is_the_same_layer() {
    let Some(host) = host() else { return };
    let plain = small_image();
    let mut gzip = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(&plain[..], flate2::Compression::fast());
    encoder.read_to_end(&mut gzip).expect("gzip");
    let zstd = zstd::encode_all(&plain[..], 1).expect("zstd");
    let layers: Vec<_> = [&plain, &gzip, &zstd]
        .iter()
        .map(|tar| host.import(tar, "x").expect("import").layers)
        .collect();
    assert!(layers[0] == layers[1] && layers[1] == layers[2]);
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let Some(host) = host() else { return };
    use tar::EntryType::{Link, Regular, Symlink};
    let outside = tempfile::tempdir().expect("temporary directory");
    let out = outside.path().to_str().expect("text");
    let cases = [
        archive(|b| member(b, Regular, "../evil", "", b"x")),
        archive(|b| member(b, Regular, "/evil", "", b"x")),
        archive(|b| member(b, Regular, "a/../../evil", "", b"x")),
        archive(|b| {
            member(b, Symlink, "a", out, b"");
            member(b, Regular, "a/evil", "", b"x");
        }),
        archive(|b| {
            member(b, Symlink, "a", "..", b"");
            member(b, Link, "b", "a/../x", b"");
        }),
        archive(|b| member(b, Link, "b", "/etc/passwd", b"")),
        archive(|b| {
            member(b, Symlink, "a", "/etc", b"");
            member(b, Link, "b", "a/passwd", b"");
        }),
        b"not a tar archive at all".repeat(100),
        Vec::new(),
    ];
    for (number, tar) in cases.iter().enumerate() {
        let error = host.import(tar, "evil");
        assert!(error.is_err(), "case {number}");
        assert!(host.tmp_is_empty(), "case {number}");
    }
    assert!(outside.path().read_dir().expect("list").next().is_none());
    assert!(host.store.images().expect("images").is_empty());
}

#[test]
fn a_link_in_the_place_of_a_file_is_replaced_not_followed() {
    let Some(host) = host() else { return };
    let victim = host.dir.path().join("victim");
    std::fs::write(&victim, b"kept").expect("write");
    let tar = archive(|b| {
        member(b, tar::EntryType::Symlink, "a", victim.to_str().expect("text"), b"");
        member(b, tar::EntryType::Regular, "a", "", b"new");
    });
    host.import(&tar, "x").expect("import");
    assert_eq!(std::fs::read(&victim).expect("read"), b"kept");
}

#[test]
fn leftovers_of_killed_commands_go_at_the_next_open() {
    let Some(host) = host() else { return };
    let left = host.dir.path().join("root/tmp/1-1");
    std::fs::create_dir_all(left.join("layer/diff")).expect("mkdir");
    let (root, run) = (host.dir.path().join("root"), host.dir.path().join("run"));
    Store::open(&root, &run).expect("open");
    assert!(!left.exists());
}

#[test]
fn a_name_moves_and_several_names_need_force() {
    let Some(host) = host() else { return };
    let first = host.import(&small_image(), "x").expect("import");
    let other = archive(|b| member(b, tar::EntryType::Regular, "f", "", b"2"));
    let second = host.import(&other, "x").expect("import");
    assert_eq!(host.store.resolve("x").expect("x").id, second.id);
    assert!(host.store.resolve(&first.id).expect("first").names.is_empty());
    host.store.tag("x", "y:2").expect("tag");
    assert!(matches!(
        host.store.remove_image(&second.id, false),
        Err(StoreError::SeveralNames { .. })
    ));
    let removed = host.store.remove_image("y:2", false).expect("untag");
    assert_eq!((removed.untagged, removed.deleted), (vec!["localhost/y:2".to_owned()], None));
    assert!(host.store.remove_image("x", false).expect("remove").deleted.is_some());
}

#[test]
fn volumes_come_and_go() {
    let Some(host) = host() else { return };
    host.store.volume_create("data", false, Default::default()).expect("create");
    let path = host.store.volume_path("data").expect("path");
    std::fs::write(path.join("f"), b"x").expect("write");
    assert_eq!(host.store.volumes().expect("list").len(), 1);
    host.store.volume_remove("data").expect("remove");
    assert!(matches!(host.store.volume_path("data"), Err(StoreError::NoSuchVolume(_))));
    assert!(matches!(host.store.volume_path("../x"), Err(StoreError::BadId(_))));
}

#[test]
fn an_exported_image_is_loaded_elsewhere_as_the_same() {
    let (Some(here), Some(there)) = (host(), host()) else { return };
    let image = here.import(&small_image(), "web").expect("import");
    here.store.tag("web", "quay.io/a/web:2").expect("tag");
    let mut archive = here.store.export_image("web").expect("export");
    let mut bytes = Vec::new();
    let size = archive.size();
    archive.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes.len() as u64, size);
    let loaded = there.store.load(&bytes[..]).expect("load");
    assert_eq!(loaded[0].id, image.id);
    assert_eq!(loaded[0].layers, image.layers);
    assert_eq!(loaded[0].names, ["localhost/web:latest", "quay.io/a/web:2"]);
    there.store.create_root("c", "web").expect("root");
    let merged = there.store.mount_root("c", true).expect("mount");
    assert_eq!(std::fs::read(merged.join("etc/name")).expect("read"), b"small");
    assert!(std::fs::write(merged.join("etc/new"), b"").is_err(), "read-only");
    there.store.remove_root("c").expect("remove");
    // Loading it twice changes nothing; a forged byte is noticed.
    assert_eq!(there.store.load(&bytes[..]).expect("again")[0].id, image.id);
    let at = bytes.windows(2).rposition(|w| w == [0x28, 0xb5]).expect("layer") + 40;
    bytes[at] ^= 1;
    assert!(matches!(there.store.load(&bytes[..]), Err(StoreError::DigestMismatch { .. })));
    assert!(there.tmp_is_empty());
    assert!(there.store.remove_image(&image.id, true).expect("remove").deleted.is_some());
    let blobs = there.dir.path().join("root/blobs/sha256");
    assert!(blobs.read_dir().expect("list").next().is_none());
}

#[test]
fn only_missing_layers_are_sent() {
    let (Some(here), Some(there)) = (host(), host()) else { return };
    let both = two_layers();
    let image = &here.store.load(&both[..]).expect("load")[0];
    let layers = here.store.layer_blobs(&image.id).expect("layers");
    assert_eq!(layers.len(), 2);
    let read = |mut archive: arctern_storage::ImageArchive| {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).expect("read");
        bytes
    };
    there.import(&small_image(), "base").expect("import");
    let missing = there.store.missing_layers(&layers);
    assert_eq!(missing.len(), 2, "the base there is kept in other clothes");
    let all = read(here.store.export_layers(&image.id, &missing).expect("export"));
    let top = read(here.store.export_layers(&image.id, &layers[1..]).expect("export"));
    assert!(top.len() < all.len());
    // Without the other layer it is no image, and with it it is.
    assert!(there.store.load_beside(&top[..]).is_err());
    there.store.load(&all[..]).expect("load");
    assert!(there.store.missing_layers(&layers).is_empty());
    there.store.remove_image(&image.id, true).expect("remove");
    there.store.load(&all[..]).expect("load");
    assert!(there.store.load(&top[..]).is_err(), "archives of others have all their layers");
    assert_eq!(there.store.load_beside(&top[..]).expect("load")[0].id, image.id);
    assert!(there.tmp_is_empty());
}

#[test]
fn an_archive_of_docker_save_is_loaded() {
    let Some(host) = host() else { return };
    let tar = two_layers();
    let image = &host.store.load(&tar[..]).expect("load")[0];
    host.store.create_root("c", "busybox:1").expect("root");
    let merged = host.store.mount_root("c", false).expect("mount");
    assert!(merged.join("top").exists());
    assert!(!merged.join("etc/name").exists() && merged.join("etc/same").exists());
    assert_eq!(image.layers.len(), 2);
    host.store.remove_root("c").expect("remove");
    assert!(host.store.load(&b"not an archive"[..]).is_err());
}

/// An archive of `docker save` with two layers.
fn two_layers() -> Vec<u8> {
    let layer = small_image();
    let top = archive(|b| {
        member(b, tar::EntryType::Regular, "etc/.wh.name", "", b"");
        member(b, tar::EntryType::Regular, "top", "", b"top");
    });
    let sha = |bytes: &[u8]| {
        use sha2::Digest;
        sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{}","sha256:{}"]}}}}"#,
        sha(&layer),
        sha(&top)
    );
    let saved =
        r#"[{"Config":"c.json","RepoTags":["busybox:1"],"Layers":["a/layer.tar","b.tar"]}]"#;
    archive(|b| {
        member(b, tar::EntryType::Regular, "c.json", "", config.as_bytes());
        member(b, tar::EntryType::Regular, "a/layer.tar", "", &layer);
        member(b, tar::EntryType::Regular, "b.tar", "", &top);
        member(b, tar::EntryType::Regular, "manifest.json", "", saved.as_bytes());
    })
}

#[test]
fn a_detached_root_is_gone_at_once_and_alive_as_long_as_it_is_held() {
    let Some(host) = host() else { return };
    host.import(&small_image(), "web").expect("import");
    host.store.create_root("c", "web").expect("root");
    let merged = host.store.mount_root("c", false).expect("mount");
    let open = std::fs::File::open(merged.join("etc/name")).expect("open");
    assert!(matches!(host.store.unmount_root("c"), Err(StoreError::Unmount { .. })), "in use");
    let held = host.store.detach_root("c").expect("detach").expect("was mounted");
    assert!(!merged.exists());
    assert_eq!(std::io::read_to_string(&open).expect("read"), "small");
    assert!(host.store.detach_root("c").expect("again").is_none());
    // Mounted anew while the old one lives on.
    let merged = host.store.mount_root("c", false).expect("mount");
    assert!(merged.join("etc/name").exists());
    drop((open, held));
    host.store.remove_root("c").expect("remove");
}

#[test]
fn a_new_volume_takes_what_the_image_has_at_its_place() {
    let Some(host) = host() else { return };
    let tar = archive(|b| {
        member(b, tar::EntryType::Directory, "srv/data/sub", "", b"");
        member(b, tar::EntryType::Regular, "srv/data/sub/f", "", b"from the image");
        member(b, tar::EntryType::Symlink, "data", "/srv/data", b"");
    });
    host.import(&tar, "x").expect("import");
    host.store.create_root("c", "x").expect("root");
    let merged = host.store.mount_root("c", true).expect("mount");
    let populate = |name: &str, path: &str| {
        host.store.volume_create(name, true, Default::default()).expect("create");
        host.store.volume_populate(name, &merged, Path::new(path)).expect("populate")
    };
    assert!(populate("v1", "/srv/data") && populate("v2", "/data") && !populate("v3", "/nowhere"));
    for name in ["v1", "v2"] {
        let file = host.store.volume_path(name).expect("path").join("sub/f");
        assert_eq!(std::fs::read(file).expect("read"), b"from the image");
        let again = host.store.volume_populate(name, &merged, Path::new("/")).expect("again");
        assert!(!again, "only an empty volume is filled");
    }
    host.store.remove_root("c").expect("remove");
}
