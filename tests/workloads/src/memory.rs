//! Memory: shared and private mappings, memfd, copy-on-write sharing, protections and advice.

use crate::must;
use crate::stage::{Checks, Stage, child};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU32, Ordering};

const PAGE: usize = 4096;

/// Maps memory; ends the program if that fails.
pub fn map(length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut u8 {
    must!(libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, offset)).cast()
}

/// The bytes at an address.
pub fn bytes<'a>(address: *mut u8, length: usize) -> &'a mut [u8] {
    // SAFETY: callers pass mappings of this program that stay until its end.
    unsafe { std::slice::from_raw_parts_mut(address, length) }
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_ANONYMOUS;

/// A pattern that depends on the page and the seed.
fn fill(memory: &mut [u8], seed: u8) {
    for (index, page) in memory.chunks_mut(PAGE).enumerate() {
        page.fill((index as u8).wrapping_mul(13).wrapping_add(seed));
    }
}

fn filled(memory: &[u8], seed: u8) -> bool {
    memory.chunks(PAGE).enumerate().all(|(index, page)| {
        let want = (index as u8).wrapping_mul(13).wrapping_add(seed);
        page.iter().all(|&byte| byte == want)
    })
}

/// Anonymous memory shared between parent and child stays one memory, also where only one of them
/// maps a part of it, and where the middle of it was unmapped.
pub fn shared_memory(stage: &Stage, checks: &mut Checks) {
    let length = 64 * PAGE;
    let shared = map(length, RW, libc::MAP_SHARED | ANONYMOUS, -1, 0);
    fill(bytes(shared, length), 1);
    // SAFETY: the word lies in the mapping and is used as an atomic only.
    let word = unsafe { &*shared.add(10 * PAGE).cast::<AtomicU32>() };
    let hole = map(8 * PAGE, RW, libc::MAP_SHARED | ANONYMOUS, -1, 0);
    fill(bytes(hole, 8 * PAGE), 9);
    must!(libc::munmap(hole.add(2 * PAGE).cast(), 4 * PAGE));
    let partner = child("partner", |stage, checks| {
        must!(libc::munmap(shared.add(32 * PAGE).cast(), 32 * PAGE));
        stage.ready();
        stage.wait_for_verify();
        checks.eq("what the parent wrote", 4711, word.load(Ordering::SeqCst));
        word.store(4712, Ordering::SeqCst);
    });
    stage.ready();
    stage.wait_for_verify();
    checks.that("contents", filled(bytes(shared, length), 1));
    checks.that("before the hole", filled(bytes(hole, 2 * PAGE), 9));
    checks.eq(
        "after the hole",
        (6u8).wrapping_mul(13).wrapping_add(9),
        bytes(hole.wrapping_add(6 * PAGE), PAGE)[5],
    );
    word.store(4711, Ordering::SeqCst);
    partner.verify(checks);
    checks.eq("what the child wrote", 4712, word.load(Ordering::SeqCst));
}

/// memfd: contents, name, offset, seals, a mapping of it, and executable flag kept.
pub fn memfd(stage: &Stage, checks: &mut Checks) {
    let plain = must!(libc::memfd_create(c"plain".as_ptr(), libc::MFD_CLOEXEC));
    must!(libc::ftruncate(plain, 10 * PAGE as i64));
    must!(libc::lseek(plain, 100, libc::SEEK_SET));
    let view = map(10 * PAGE, RW, libc::MAP_SHARED, plain, 0);
    fill(bytes(view, 10 * PAGE), 3);
    let sealed = must!(libc::memfd_create(c"sealed".as_ptr(), libc::MFD_ALLOW_SEALING));
    must!(libc::write(sealed, b"sealed contents".as_ptr().cast(), 15));
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    must!(libc::fcntl(sealed, libc::F_ADD_SEALS, seals));
    stage.ready();
    stage.wait_for_verify();
    checks.eq(
        "name",
        "/memfd:plain (deleted)".to_owned(),
        fs::read_link(format!("/proc/self/fd/{plain}"))
            .map(|p| p.display().to_string())
            .unwrap_or_default(),
    );
    checks.eq("offset", 100, must!(libc::lseek(plain, 0, libc::SEEK_CUR)));
    checks.eq("close-on-exec", libc::FD_CLOEXEC, must!(libc::fcntl(plain, libc::F_GETFD)));
    checks.that("contents", filled(bytes(view, 10 * PAGE), 3));
    must!(libc::pwrite(plain, b"Z".as_ptr().cast(), 1, 5));
    checks.eq("the mapping is the file", b'Z', bytes(view, 10)[5]);
    checks.eq(
        "seals",
        seals,
        must!(libc::fcntl(sealed, libc::F_GET_SEALS)) & !libc::F_SEAL_SEAL & !0x20,
    );
    // SAFETY: the data outlives the call.
    checks.eq("a write to a sealed memfd", -1, unsafe {
        libc::pwrite(sealed, b"x".as_ptr().cast(), 1, 0)
    });
    let mut buffer = [0u8; 15];
    must!(libc::pread(sealed, buffer.as_mut_ptr().cast(), 15, 0));
    checks.eq("sealed contents", *b"sealed contents", buffer);
}

/// A private file mapping: changed pages are the program's own, the others come from the file.
pub fn private_file(stage: &Stage, checks: &mut Checks) {
    let mut contents = vec![0u8; 32 * PAGE];
    fill(&mut contents, 5);
    fs::write("mapped", &contents).expect("file");
    let fd = must!(libc::open(c"mapped".as_ptr(), libc::O_RDWR));
    let private = map(32 * PAGE, RW, libc::MAP_PRIVATE, fd, 0);
    let shared = map(16 * PAGE, RW, libc::MAP_SHARED, fd, 16 * PAGE as i64);
    must!(libc::close(fd));
    bytes(private, 32 * PAGE)[3 * PAGE..5 * PAGE].fill(200);
    bytes(shared, PAGE)[7] = 99;
    stage.ready();
    stage.wait_for_verify();
    let now = bytes(private, 32 * PAGE);
    checks.that("unchanged pages", filled(&now[..3 * PAGE], 5));
    checks.that("changed pages", now[3 * PAGE..5 * PAGE].iter().all(|&b| b == 200));
    checks.eq("shared change seen privately", 99, now[16 * PAGE + 7]);
    bytes(shared, 2 * PAGE)[PAGE] = 42;
    let mut file = fs::File::open("mapped").expect("file");
    let mut byte = [0u8; 1];
    file.seek(SeekFrom::Start(17 * PAGE as u64)).expect("seek");
    file.read_exact(&mut byte).expect("read");
    checks.eq("the shared mapping writes to the file", 42, byte[0]);
    file.seek(SeekFrom::Start(3 * PAGE as u64)).expect("seek");
    file.read_exact(&mut byte).expect("read");
    checks.eq("the private change is not in the file", 5 + 3 * 13, byte[0]);
}

/// Pages that a parent and its children share by copy-on-write are still shared: the physical
/// frame numbers are compared, which root can read.
pub fn copy_on_write(stage: &Stage, checks: &mut Checks) {
    const PAGES: usize = 4096;
    let memory = map(PAGES * PAGE, RW, libc::MAP_PRIVATE | ANONYMOUS, -1, 0);
    must!(libc::madvise(memory.cast(), PAGES * PAGE, libc::MADV_NOHUGEPAGE));
    fill(bytes(memory, PAGES * PAGE), 17);
    if frame(memory as usize).unwrap_or(0) == 0 {
        stage.skip("frame numbers cannot be read");
    }
    let report = map(PAGE * 64, RW, libc::MAP_SHARED | ANONYMOUS, -1, 0).cast::<u64>();
    let mut children = Vec::new();
    for index in 0..3usize {
        children.push(child("sharer", |stage, checks| {
            bytes(memory, PAGES * PAGE)[index * PAGE..(index + 1) * PAGE].fill(250 + index as u8);
            stage.ready();
            stage.wait_for_verify();
            for page in 0..64usize {
                let value = frame(memory as usize + (page * 61 + 8) * PAGE).unwrap_or(0);
                // SAFETY: 64 numbers a child lie within the shared mapping.
                unsafe { report.add(index * 64 + page).write(value) };
            }
            let memory = bytes(memory, PAGES * PAGE);
            checks.that(
                "own page",
                memory[index * PAGE..(index + 1) * PAGE].iter().all(|&b| b == 250 + index as u8),
            );
            checks.that(
                "shared pages",
                filled(&memory[3 * PAGE..][..0], 0)
                    && memory[100 * PAGE] == (100u8).wrapping_mul(13).wrapping_add(17),
            );
        }));
    }
    stage.ready();
    stage.wait_for_verify();
    // The children stay alive as zombies only after they reported; frames are read by each itself.
    let mine: Vec<u64> = (0..64usize)
        .map(|page| frame(memory as usize + (page * 61 + 8) * PAGE).unwrap_or(0))
        .collect();
    let count = children.len();
    for child in children {
        child.verify(checks);
    }
    for index in 0..count {
        // SAFETY: as above.
        let theirs: Vec<u64> =
            (0..64).map(|page| unsafe { report.add(index * 64 + page).read() }).collect();
        let shared = mine.iter().zip(&theirs).filter(|(a, b)| a == b && **a != 0).count();
        checks.eq(format!("pages of 64 that child {index} shares"), 64, shared);
        if shared < 64 {
            checks.fail(format!("frames {:x?} and {:x?}", &mine[..4], &theirs[..4]));
        }
    }
    checks.that("parent's pages", filled(bytes(memory, PAGES * PAGE), 17));
}

/// The physical frame of an address; needs CAP_SYS_ADMIN.
fn frame(address: usize) -> Option<u64> {
    let mut file = fs::File::open("/proc/self/pagemap").ok()?;
    file.seek(SeekFrom::Start((address / PAGE * 8) as u64)).ok()?;
    let mut entry = [0u8; 8];
    file.read_exact(&mut entry).ok()?;
    Some(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
}

/// The line and the stable flags of every mapping, by start address.
fn mappings() -> BTreeMap<usize, (String, Vec<String>)> {
    const STABLE: [&str; 16] = [
        "rd", "wr", "ex", "sh", "gd", "lo", "sr", "rr", "dc", "dd", "wf", "hg", "nh", "mg", "io",
        "ht",
    ];
    let text = fs::read_to_string("/proc/self/smaps").expect("own smaps");
    let mut all = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some((start, head)) = current.take() {
                let flags = flags
                    .split_whitespace()
                    .filter(|f| STABLE.contains(f))
                    .map(str::to_owned)
                    .collect();
                all.insert(start, (head, flags));
            }
        } else if let Some((range, rest)) = line.split_once(' ')
            && let Some((start, _)) = range.split_once('-')
            && let Ok(start) = usize::from_str_radix(start, 16)
        {
            let permissions = rest.split(' ').next().unwrap_or_default();
            current = Some((start, format!("{range} {permissions}")));
        }
    }
    all
}

/// Protections, advice, locked pages, a growing stack: borders and flags of the mappings are equal,
/// and the memory behaves so.
pub fn protections(stage: &Stage, checks: &mut Checks) {
    const HUGE: usize = 2 << 20;
    let private = libc::MAP_PRIVATE | ANONYMOUS;
    let mut own = Vec::new();
    // Each mapping has an inaccessible neighbour, so that the kernel does not merge it.
    let mut apart = |length: usize, protection: i32, flags: i32| {
        let area = map(length + 2 * PAGE, libc::PROT_NONE, private, -1, 0).wrapping_add(PAGE);
        let fixed =
            must!(libc::mmap(area.cast(), length, protection, flags | libc::MAP_FIXED, -1, 0))
                .cast::<u8>();
        own.push(fixed as usize);
        fixed
    };
    let none = apart(4 * PAGE, RW, private);
    fill(bytes(none, 4 * PAGE), 50);
    must!(libc::mprotect(none.cast(), 4 * PAGE, libc::PROT_NONE));
    let readable = apart(4 * PAGE, RW, private);
    fill(bytes(readable, 4 * PAGE), 51);
    must!(libc::mprotect(readable.cast(), 4 * PAGE, libc::PROT_READ));
    let code = apart(PAGE, RW, private);
    bytes(code, 6).copy_from_slice(&[0xb8, 42, 0, 0, 0, 0xc3]); // mov eax, 42; ret
    must!(libc::mprotect(code.cast(), PAGE, libc::PROT_READ | libc::PROT_EXEC));
    for advice in [
        libc::MADV_DONTFORK,
        libc::MADV_DONTDUMP,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_HUGEPAGE,
        libc::MADV_SEQUENTIAL,
        libc::MADV_RANDOM,
        libc::MADV_MERGEABLE,
    ] {
        let area = apart(HUGE, RW, private);
        // SAFETY: the range is this program's. Not every kernel knows every advice.
        unsafe { libc::madvise(area.cast(), HUGE, advice) };
        fill(bytes(area, 3 * PAGE), advice as u8);
    }
    let wiped = apart(2 * PAGE, RW, private);
    must!(libc::madvise(wiped.cast(), 2 * PAGE, libc::MADV_WIPEONFORK));
    fill(bytes(wiped, 2 * PAGE), 60);
    let locked = apart(4 * PAGE, RW, private);
    must!(libc::mlock(locked.cast(), 4 * PAGE));
    let unreserved = apart(16 * HUGE, RW, private | libc::MAP_NORESERVE);
    bytes(unreserved, 16 * HUGE)[7 * HUGE] = 7;
    let untouched = apart(16 * PAGE, RW, private);
    let stack = {
        let area = map(65 * PAGE, libc::PROT_NONE, private, -1, 0);
        must!(libc::munmap(area.cast(), 65 * PAGE));
        let top = area.wrapping_add(60 * PAGE);
        must!(libc::mmap(
            top.cast(),
            4 * PAGE,
            RW,
            private | libc::MAP_GROWSDOWN | libc::MAP_FIXED,
            -1,
            0
        ))
        .cast::<u8>()
    };
    own.push(stack as usize);
    bytes(stack, PAGE)[0] = 61;
    let before = mappings();
    stage.ready();
    stage.wait_for_verify();
    let after = mappings();
    for start in own {
        checks.eq("mapping", before.get(&start), after.get(&start));
    }
    checks.eq("an inaccessible page", Err(libc::EFAULT), readable_by_kernel(none));
    must!(libc::mprotect(none.cast(), 4 * PAGE, libc::PROT_READ));
    checks.that("contents behind PROT_NONE", filled(bytes(none, 4 * PAGE), 50));
    checks.that("read-only contents", filled(bytes(readable, 4 * PAGE), 51));
    // SAFETY: the page holds a function that returns 42.
    let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(code) };
    checks.eq("code", 42, function());
    checks.that("wipe-on-fork contents", filled(bytes(wiped, 2 * PAGE), 60));
    checks.eq("sparse contents", 7, bytes(unreserved, 16 * HUGE)[7 * HUGE]);
    checks.that("never touched", bytes(untouched, 16 * PAGE).iter().all(|&b| b == 0));
    checks.eq("stack contents", 61, bytes(stack, PAGE)[0]);
    // SAFETY: one page below a growing mapping extends it.
    unsafe { std::ptr::write_volatile(stack.sub(PAGE), 1) };
}

/// Guard pages (kernel 6.13 and later) still fault, and the pages beside them are kept.
pub fn guard_pages(stage: &Stage, checks: &mut Checks) {
    const MADV_GUARD_INSTALL: i32 = 102; // linux/mman.h
    let area = map(8 * PAGE, RW, libc::MAP_PRIVATE | ANONYMOUS, -1, 0);
    fill(bytes(area, 8 * PAGE), 70);
    // SAFETY: the range is this program's.
    if unsafe { libc::madvise(area.wrapping_add(2 * PAGE).cast(), 2 * PAGE, MADV_GUARD_INSTALL) }
        != 0
    {
        stage.skip("this kernel has no guard pages");
    }
    stage.ready();
    stage.wait_for_verify();
    for page in 0..8 {
        let want = if page == 2 || page == 3 { Err(libc::EFAULT) } else { Ok(()) };
        checks.eq(format!("page {page}"), want, readable_by_kernel(area.wrapping_add(page * PAGE)));
    }
    checks.that("contents before", filled(bytes(area, 2 * PAGE), 70));
}

/// Whether the kernel can read a byte at the address.
fn readable_by_kernel(address: *mut u8) -> Result<(), i32> {
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    // SAFETY: an inaccessible address makes the call fail, nothing else.
    let result = unsafe { libc::write(ends[1], address.cast(), 1) };
    let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    must!(libc::close(ends[0]));
    must!(libc::close(ends[1]));
    if result == 1 { Ok(()) } else { Err(error) }
}

/// The break can grow after the restore, and the arguments and the environment are where they were.
pub fn process_image(stage: &Stage, checks: &mut Checks) {
    let brk = must!(libc::sbrk(3 * PAGE as isize)).cast::<u8>();
    fill(bytes(brk, PAGE), 80);
    let read = |name: &str| fs::read(format!("/proc/self/{name}")).unwrap_or_default();
    let exe = || fs::read_link("/proc/self/exe").ok();
    let stat = || {
        let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<String> = text
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        // startcode endcode startstack … start_data end_data start_brk arg_start arg_end env_start env_end
        [23, 24, 25, 42, 43, 44, 45, 46, 47, 48].map(|i| fields.get(i).cloned().unwrap_or_default())
    };
    let before = (read("cmdline"), read("environ"), read("auxv"), read("comm"), exe(), stat());
    stage.ready();
    stage.wait_for_verify();
    checks.that("break contents", filled(bytes(brk, PAGE), 80));
    checks.eq(
        "image",
        before,
        (read("cmdline"), read("environ"), read("auxv"), read("comm"), exe(), stat()),
    );
    let more = must!(libc::sbrk(PAGE as isize)).cast::<u8>();
    bytes(more, PAGE).fill(1);
}
