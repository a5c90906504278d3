//! Memory that changes all the time, in every way in which it can: written by the program and by the
//! kernel, moved, dropped, unmapped and mapped anew, grown, protected, inherited by children that come
//! and go, and replaced by another program. What every page should hold is kept beside.

use crate::memory::{bytes, map};
use crate::must;
use crate::stage::{Checks, Stage, sigset, wait_status};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE: usize = 4096;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const PAGES: usize = 96;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}

/// Pages of one mapping, and the word that each of them is full of.
struct Region {
    name: &'static str,
    at: *mut u8,
    want: Vec<u64>,
}

impl Region {
    fn new(name: &'static str, pages: usize) -> Self {
        Region { name, at: map(pages * PAGE, RW, PRIVATE, -1, 0), want: vec![0; pages] }
    }

    fn page(&self, index: usize) -> *mut u8 {
        self.at.wrapping_add(index * PAGE)
    }

    fn write(&mut self, index: usize, word: u64) {
        // SAFETY: the page belongs to the mapping and is writable now; words are aligned.
        let words = unsafe { std::slice::from_raw_parts_mut(self.page(index).cast(), PAGE / 8) };
        words.fill(word);
        self.want[index] = word;
    }

    fn check(&self, checks: &mut Checks) {
        for (index, want) in self.want.iter().enumerate() {
            let page = bytes(self.page(index), PAGE);
            let wrong = page.chunks(8).map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")));
            if let Some(got) = wrong.into_iter().find(|got| got != want) {
                checks.fail(format!("{}, page {index}: {want:#x} is {got:#x}", self.name));
            }
        }
    }
}

/// All memory of one process.
struct Memory {
    numbers: Numbers,
    stamp: u64,
    steps: u64,
    plain: Region,
    moved: Region,
    elsewhere: *mut u8,
    replaced: Region,
    dropped: Region,
    zeroed: Region,
    guarded: Region,
    huge: Region,
    grown: Region,
    heap: Region,
    read: Region,
    file: Region,
    source: i32,
}

/// What the file's pages hold.
const IN_FILE: u64 = 0x656c_6966;

impl Memory {
    fn new() -> Self {
        let contents: Vec<u8> = (0..PAGES * PAGE / 8).flat_map(|_| IN_FILE.to_ne_bytes()).collect();
        std::fs::write("mapped", contents).expect("file");
        let fd = must!(libc::open(c"mapped".as_ptr(), libc::O_RDWR));
        let at = map(PAGES * PAGE, RW, libc::MAP_PRIVATE, fd, 0);
        must!(libc::close(fd));
        let source = must!(libc::open(c"source".as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600));
        let huge = Region::new("huge", 2048);
        must!(libc::madvise(huge.at.cast(), 2048 * PAGE, libc::MADV_HUGEPAGE));
        let mut memory = Memory {
            numbers: Numbers(7),
            stamp: 0x1000,
            steps: 0,
            plain: Region::new("plain", 512),
            moved: Region::new("moved", PAGES),
            elsewhere: map(PAGES * PAGE, libc::PROT_NONE, PRIVATE, -1, 0),
            replaced: Region::new("replaced", PAGES),
            dropped: Region::new("dropped", PAGES),
            zeroed: Region::new("zeroed", PAGES),
            guarded: Region::new("guarded", PAGES),
            huge,
            grown: Region::new("grown", PAGES),
            heap: Region { name: "heap", at: must!(libc::sbrk(0)).cast(), want: Vec::new() },
            read: Region::new("read", PAGES),
            file: Region { name: "file", at, want: vec![IN_FILE; PAGES] },
            source,
        };
        let past = memory.heap.at as usize % PAGE;
        if past != 0 {
            must!(libc::sbrk((PAGE - past) as isize));
            memory.heap.at = must!(libc::sbrk(0)).cast();
        }
        memory.huge.write(3, 3);
        for index in 0..512 {
            memory.plain.write(index, index as u64);
        }
        memory
    }

    fn step(&mut self) {
        self.steps += 1;
        self.stamp += 1;
        let (stamp, at) = (self.stamp, self.numbers.below(PAGES));
        for _ in 0..4 {
            let index = self.numbers.below(512);
            self.plain.write(index, stamp);
        }
        let index = self.numbers.below(2048);
        self.huge.write(index, stamp);
        for region in [&mut self.moved, &mut self.replaced, &mut self.dropped, &mut self.zeroed] {
            region.write(at, stamp);
        }
        self.file.write(at, stamp);
        self.zeroed.write(self.numbers.below(PAGES), 0);
        let drop = self.numbers.below(PAGES);
        must!(libc::madvise(self.dropped.page(drop).cast(), PAGE, libc::MADV_DONTNEED));
        self.dropped.want[drop] = 0;
        must!(libc::madvise(self.file.page(drop).cast(), PAGE, libc::MADV_DONTNEED));
        self.file.want[drop] = IN_FILE;
        self.read_a_page(at, stamp);
        if self.steps.is_multiple_of(5) {
            self.protect(at, stamp);
        }
        match self.steps % 23 {
            3 => self.move_over(),
            9 => self.replace(),
            14 => self.grow(stamp),
            19 => self.change_heap(stamp),
            _ => {}
        }
    }

    /// The kernel writes a page.
    fn read_a_page(&mut self, index: usize, word: u64) {
        let contents: Vec<u8> = (0..PAGE / 8).flat_map(|_| word.to_ne_bytes()).collect();
        must!(libc::pwrite(self.source, contents.as_ptr().cast(), PAGE, 0));
        must!(libc::pread(self.source, self.read.page(index).cast(), PAGE, 0));
        self.read.want[index] = word;
    }

    /// Pages that nobody may read for a while.
    fn protect(&mut self, index: usize, word: u64) {
        must!(libc::mprotect(self.guarded.at.cast(), PAGES * PAGE, RW));
        self.guarded.write(index, word);
        must!(libc::mprotect(self.guarded.at.cast(), PAGES * PAGE, libc::PROT_NONE));
    }

    /// The mapping changes places with an empty one.
    fn move_over(&mut self) {
        let (from, to) = (self.moved.at, self.elsewhere);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        must!(libc::mremap(from.cast(), PAGES * PAGE, PAGES * PAGE, flags, to));
        let fixed = PRIVATE | libc::MAP_FIXED;
        must!(libc::mmap(from.cast(), PAGES * PAGE, libc::PROT_NONE, fixed, -1, 0));
        (self.moved.at, self.elsewhere) = (to, from);
    }

    /// Another mapping at the same place, with other contents.
    fn replace(&mut self) {
        let at = self.replaced.at;
        must!(libc::munmap(at.cast(), PAGES * PAGE));
        let fixed = PRIVATE | libc::MAP_FIXED;
        must!(libc::mmap(at.cast(), PAGES * PAGE, RW, fixed, -1, 0));
        self.replaced.want.fill(0);
        for index in 0..self.numbers.below(PAGES) {
            self.replaced.write(index, self.stamp ^ index as u64);
        }
    }

    fn grow(&mut self, word: u64) {
        let (old, new) = (self.grown.want.len(), PAGES + self.numbers.below(PAGES));
        let flags = libc::MREMAP_MAYMOVE;
        let at = must!(libc::mremap(self.grown.at.cast(), old * PAGE, new * PAGE, flags));
        self.grown.at = at.cast();
        self.grown.want.resize(new, 0);
        self.grown.write(new - 1, word);
    }

    fn change_heap(&mut self, word: u64) {
        let (old, new) = (self.heap.want.len(), 1 + self.numbers.below(PAGES));
        if must!(libc::sbrk(0)) != self.heap.page(old).cast() {
            return; // The allocator has taken what follows.
        }
        must!(libc::sbrk((new as isize - old as isize) * PAGE as isize));
        self.heap.want.resize(new, 0);
        self.heap.write(new - 1, word);
    }

    fn check(&mut self, checks: &mut Checks) {
        must!(libc::mprotect(self.guarded.at.cast(), PAGES * PAGE, libc::PROT_READ));
        let all = [
            &self.plain,
            &self.moved,
            &self.replaced,
            &self.dropped,
            &self.zeroed,
            &self.guarded,
            &self.huge,
            &self.grown,
            &self.heap,
            &self.read,
            &self.file,
        ];
        all.into_iter().for_each(|region| region.check(checks));
    }

    /// Changes until the runner's word, with `more` after each step.
    fn change(&mut self, mut more: impl FnMut(&mut Self)) {
        let set = sigset(&[libc::SIGUSR1]);
        let moment = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        loop {
            self.step();
            more(self);
            // SAFETY: set and time are initialised; no information is asked for.
            if unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &moment) } == libc::SIGUSR1 {
                return;
            }
        }
    }
}

/// A shell that remembers everything that it was told.
struct Shell {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    said: String,
}

impl Shell {
    fn start() -> Self {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "all=; while read -r line; do all=$all$line; echo \"$all\"; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Shell { child, to, from: BufReader::new(from), said: String::new() }
    }

    fn tell(&mut self, word: u64, checks: &mut Checks) {
        let word = format!("{word:x}-");
        self.said.push_str(&word);
        let mut answer = String::new();
        let told = writeln!(self.to, "{word}").and_then(|()| self.from.read_line(&mut answer));
        checks.that("the shell answers", told.is_ok());
        checks.eq("what the shell remembers", self.said.as_str(), answer.trim_end());
    }

    fn end(mut self) {
        // Children that were forked since have its input open too: it would wait for them.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that changes what it inherited until it is told to compare.
fn descend(memory: &mut Memory) -> i32 {
    let pid = must!(libc::fork());
    if pid == 0 {
        let mut checks = Checks::default();
        // Offsets of descriptors are shared with the parent; it reads and writes at given places.
        let name =
            std::ffi::CString::new(format!("child-{}", std::process::id())).expect("no zero");
        memory.source = must!(libc::open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600));
        memory.stamp = u64::from(std::process::id()) << 32;
        memory.change(|_| {});
        memory.check(&mut checks);
        let code = checks.finish("child of dirty-memory");
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    pid
}

fn end(child: i32, checks: &mut Checks) {
    must!(libc::kill(child, libc::SIGUSR1));
    checks.eq("status of a child", 0, wait_status(child).unwrap_or(-1));
}

/// Every page holds what was put there last, in every process.
pub fn dirty_memory(stage: &Stage, checks: &mut Checks) {
    let mut memory = Memory::new();
    let pair = map(2 * PAGE, RW, PRIVATE, -1, 0);
    // SAFETY: both words lie in the mapping, which stays, and are used as atomics only.
    let (one, two) = unsafe { (&*pair.cast::<AtomicU64>(), &*pair.add(PAGE).cast::<AtomicU64>()) };
    let shared = map(8 * PAGE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
    // SAFETY: as above.
    let common = unsafe { &*shared.add(5 * PAGE).cast::<AtomicU64>() };
    let mut children = vec![descend(&mut memory)];
    // A thread that writes all the time, in pairs.
    std::thread::spawn(move || {
        loop {
            one.fetch_add(1, Ordering::SeqCst);
            two.fetch_add(1, Ordering::SeqCst);
            if one.load(Ordering::Relaxed).is_multiple_of(64) {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        }
    });
    let mut shell = Shell::start();
    stage.ready();
    memory.change(|memory| {
        common.store(memory.stamp, Ordering::SeqCst);
        shell.tell(memory.stamp, checks);
        if memory.steps.is_multiple_of(29) {
            if children.len() > 2 {
                end(children.remove(0), checks);
            }
            children.push(descend(memory));
        }
        if memory.steps.is_multiple_of(61) {
            std::mem::replace(&mut shell, Shell::start()).end();
        }
    });
    memory.check(checks);
    checks.eq("shared memory", memory.stamp, common.load(Ordering::SeqCst));
    let (first, second) = (one.load(Ordering::SeqCst), two.load(Ordering::SeqCst));
    checks.that(format!("a pair: {first}, {second}"), first.abs_diff(second) < 2000);
    shell.tell(1, checks);
    shell.end();
    for child in children {
        end(child, checks);
    }
}
