//! Regular files and directories: offsets, flags, shared descriptions, files without a name, locks.

use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, child};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;

// asm-generic/fcntl.h
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

fn open(path: &str, flags: i32) -> i32 {
    let path = CString::new(path).expect("no NUL");
    must!(libc::open(path.as_ptr(), flags, 0o640))
}

fn write(fd: i32, data: &[u8]) {
    must!(libc::write(fd, data.as_ptr().cast(), data.len()));
}

fn offset(fd: i32) -> i64 {
    must!(libc::lseek(fd, 0, libc::SEEK_CUR))
}

fn fdinfo(fd: i32) -> String {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    // Mount ids and inode numbers are the kernel's own; O_DIRECTORY only speaks to open(2).
    const O_DIRECTORY: u32 = 0o200000;
    text.lines()
        .filter_map(|line| match line.split_once(':')? {
            ("pos", value) => Some(format!("pos {}", value.trim())),
            ("flags", value) => {
                let flags = u32::from_str_radix(value.trim(), 8).unwrap_or(0);
                Some(format!("flags {:o}", flags & !O_DIRECTORY))
            }
            _ => None,
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn link(fd: i32) -> String {
    fs::read_link(format!("/proc/self/fd/{fd}"))
        .map(|path| path.display().to_string())
        .unwrap_or_default()
}

/// Offsets, append, O_PATH, dup, directory streams, working directory, umask, owner of signals.
pub fn files(stage: &Stage, checks: &mut Checks) {
    must!(libc::umask(0o037));
    fs::create_dir_all("inner/empty").expect("directory");
    must!(libc::chdir(c"inner".as_ptr()));
    let plain = open("plain", libc::O_RDWR | libc::O_CREAT);
    write(plain, b"0123456789");
    must!(libc::lseek(plain, 4, libc::SEEK_SET));
    let duplicate = must!(libc::dup2(plain, 600));
    let append = open("log", libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND);
    write(append, b"first\n");
    let path = open("plain", libc::O_PATH);
    let noatime = open("plain", libc::O_RDONLY | libc::O_NOATIME | libc::O_CLOEXEC);
    let asynchronous = open("plain", libc::O_RDWR | libc::O_SYNC | libc::O_NONBLOCK);
    must!(libc::fcntl(asynchronous, libc::F_SETOWN, libc::getpid()));
    must!(libc::fcntl(asynchronous, F_SETSIG, libc::SIGRTMIN() + 4));
    let directory = open(".", libc::O_RDONLY | libc::O_DIRECTORY);
    let null = open("/dev/null", libc::O_RDWR);
    let zero = open("/dev/zero", libc::O_RDONLY);
    let far = open("sparse", libc::O_RDWR | libc::O_CREAT);
    must!(libc::lseek(far, 5 << 32, libc::SEEK_SET));
    let all = [plain, duplicate, append, path, noatime, asynchronous, directory, null, zero, far];
    let before = all.map(|fd| (fdinfo(fd), link(fd), must!(libc::fcntl(fd, libc::F_GETFD))));
    stage.ready();
    stage.wait_for_verify();
    let after = all.map(|fd| (fdinfo(fd), link(fd), must!(libc::fcntl(fd, libc::F_GETFD))));
    checks.eq("descriptors", before, after);
    checks.eq("read goes on", Ok(b"456".to_vec()), take(plain, 3));
    checks.eq("offset of the dup", 7, offset(duplicate));
    write(append, b"second\n");
    checks.eq("log", Some("first\nsecond\n".into()), fs::read_to_string("log").ok());
    checks.eq("umask", 0o037, must!(libc::umask(0)));
    checks
        .that("working directory", std::env::current_dir().is_ok_and(|dir| dir.ends_with("inner")));
    checks.eq("read of O_PATH", Err(libc::EBADF), take(path, 1));
    checks.eq("signal", libc::SIGRTMIN() + 4, must!(libc::fcntl(asynchronous, F_GETSIG)));
    checks.eq("owner", must!(libc::getpid()), must!(libc::fcntl(asynchronous, libc::F_GETOWN)));
    let empty =
        must!(libc::openat(directory, c"empty".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY));
    checks.that("a directory can be used", empty >= 0);
    checks.eq("/dev/zero", Ok(vec![0; 4]), take(zero, 4));
}

/// Files that lost their name: deleted, renamed over, deleted with another hard link left, never
/// named (O_TMPFILE), in a deleted directory; each shared between descriptors.
pub fn deleted_files(stage: &Stage, checks: &mut Checks) {
    let gone = open("gone", libc::O_RDWR | libc::O_CREAT);
    write(gone, b"contents of a deleted file");
    must!(libc::fchmod(gone, 0o604));
    let reader = open("gone", libc::O_RDONLY);
    must!(libc::lseek(reader, 9, libc::SEEK_SET));
    must!(libc::unlink(c"gone".as_ptr()));

    let old = open("name", libc::O_RDWR | libc::O_CREAT);
    write(old, b"old");
    fs::write("new", b"new").expect("file");
    fs::rename("new", "name").expect("rename");

    let linked = open("linked", libc::O_RDWR | libc::O_CREAT);
    write(linked, b"linked");
    fs::hard_link("linked", "elsewhere").expect("link");
    fs::remove_file("linked").expect("unlink");

    let nameless = open(".", libc::O_TMPFILE | libc::O_RDWR);
    write(nameless, b"nameless");

    let before = (inode(gone) == inode(reader), inode(linked) == inode_of("elsewhere"));
    checks.eq("identity before", (true, true), before);
    stage.ready();
    stage.wait_for_verify();

    checks.eq(
        "read of a deleted file goes on",
        Ok(b"of a deleted file".to_vec()),
        take(reader, 100),
    );
    checks.that("two descriptors of a deleted file are one file", inode(gone) == inode(reader));
    write(gone, b"!");
    checks.eq("write through the other", Ok(b"!".to_vec()), take(reader, 100));
    checks.eq("mode", 0o604, mode(gone));
    checks.eq("links of a deleted file", 0, links(gone));
    must!(libc::lseek(old, 0, libc::SEEK_SET));
    checks.eq("renamed over", Ok(b"old".to_vec()), take(old, 100));
    checks.eq("the file under the name", Some("new".into()), fs::read_to_string("name").ok());
    checks.that("the other link is the same file", inode(linked) == inode_of("elsewhere"));
    write(linked, b"+");
    checks.eq(
        "through the other link",
        Some("linked+".into()),
        fs::read_to_string("elsewhere").ok(),
    );
    checks.that("the deleted name is back", fs::metadata("linked").is_err());
    checks.that("the deleted name is back", fs::metadata("gone").is_err());
    must!(libc::lseek(nameless, 0, libc::SEEK_SET));
    checks.eq("O_TMPFILE", Ok(b"nameless".to_vec()), take(nameless, 100));
}

fn stat(fd: i32) -> libc::stat {
    // SAFETY: stat is plain data.
    let mut stat = unsafe { std::mem::zeroed() };
    must!(libc::fstat(fd, &mut stat));
    stat
}

fn inode(fd: i32) -> u64 {
    stat(fd).st_ino
}

fn mode(fd: i32) -> u32 {
    stat(fd).st_mode & 0o7777
}

fn links(fd: i32) -> u64 {
    stat(fd).st_nlink
}

fn inode_of(path: &str) -> u64 {
    fs::metadata(path).map(|meta| meta.ino()).unwrap_or(0)
}

/// Descriptions shared with children keep one offset; separately opened ones keep their own.
pub fn shared_descriptions(stage: &Stage, checks: &mut Checks) {
    fs::write("data", b"abcdefghij").expect("file");
    let shared = open("data", libc::O_RDONLY);
    let own = open("data", libc::O_RDONLY);
    must!(libc::lseek(shared, 2, libc::SEEK_SET));
    let reader = child("reader", |stage, checks| {
        must!(libc::close(own));
        let own = open("data", libc::O_RDONLY);
        stage.ready();
        stage.wait_for_verify();
        checks.eq("shared offset in the child", Ok(b"cde".to_vec()), take(shared, 3));
        checks.eq("own offset in the child", Ok(b"ab".to_vec()), take(own, 2));
    });
    stage.ready();
    stage.wait_for_verify();
    reader.verify(checks);
    checks.eq("shared offset after the child's read", Ok(b"fg".to_vec()), take(shared, 2));
    checks.eq("own offset", Ok(b"a".to_vec()), take(own, 1));
}

/// Locks of all three kinds hold against another process.
pub fn file_locks(stage: &Stage, checks: &mut Checks) {
    for name in ["flock", "posix", "ofd"] {
        fs::write(name, [0u8; 100]).expect("file");
    }
    let flocked = open("flock", libc::O_RDWR);
    must!(libc::flock(flocked, libc::LOCK_EX));
    let posix = open("posix", libc::O_RDWR);
    lock(posix, libc::F_SETLK, libc::F_WRLCK, 10, 20).expect("lock");
    lock(posix, libc::F_SETLK, libc::F_RDLCK, 50, 10).expect("lock");
    let ofd = open("ofd", libc::O_RDWR);
    lock(ofd, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 5).expect("lock");
    stage.ready();
    stage.wait_for_verify();
    child("contender", |stage, checks| {
        stage.ready();
        let other = open("flock", libc::O_RDWR);
        // SAFETY: plain call.
        let taken = unsafe { libc::flock(other, libc::LOCK_EX | libc::LOCK_NB) };
        checks.eq("flock is held", -1, taken);
        let other = open("posix", libc::O_RDWR);
        checks.eq(
            "write lock",
            Err(libc::EAGAIN),
            lock(other, libc::F_SETLK, libc::F_RDLCK, 15, 1),
        );
        checks.eq(
            "read lock against write",
            Err(libc::EAGAIN),
            lock(other, libc::F_SETLK, libc::F_WRLCK, 55, 1),
        );
        checks.eq(
            "read lock against read",
            Ok(()),
            lock(other, libc::F_SETLK, libc::F_RDLCK, 55, 1),
        );
        checks.eq("not locked", Ok(()), lock(other, libc::F_SETLK, libc::F_WRLCK, 70, 1));
        let other = open("ofd", libc::O_RDWR);
        checks.eq(
            "OFD lock",
            Err(libc::EAGAIN),
            lock(other, libc::F_OFD_SETLK, libc::F_WRLCK, 2, 1),
        );
        checks.eq("beyond", Ok(()), lock(other, libc::F_OFD_SETLK, libc::F_WRLCK, 5, 1));
    })
    .wait(checks);
}

fn lock(fd: i32, command: i32, kind: i32, start: i64, length: i64) -> Result<(), i32> {
    // SAFETY: flock is plain data.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_start = start;
    lock.l_len = length;
    // SAFETY: the structure outlives the call.
    if unsafe { libc::fcntl(fd, command, &lock) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}
