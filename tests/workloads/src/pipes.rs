//! Pipes and FIFOs: contents, sizes, flags, packets, closed ends.

use crate::must;
use crate::stage::{Checks, Stage};

fn pipe(flags: i32) -> (i32, i32) {
    let mut ends = [0; 2];
    must!(libc::pipe2(ends.as_mut_ptr(), flags));
    (ends[0], ends[1])
}

fn put(fd: i32, data: &[u8]) {
    if must!(libc::write(fd, data.as_ptr().cast(), data.len())) != data.len() as isize {
        crate::stage::setup_failed("short write");
    }
}

/// One read of at most `size` bytes; the error number if it fails.
pub fn take(fd: i32, size: usize) -> Result<Vec<u8>, i32> {
    let mut buffer = vec![0u8; size];
    // SAFETY: the buffer holds size bytes.
    let got = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), size) };
    if got < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    buffer.truncate(got as usize);
    Ok(buffer)
}

fn flags(fd: i32) -> (i32, i32) {
    (must!(libc::fcntl(fd, libc::F_GETFL)), must!(libc::fcntl(fd, libc::F_GETFD)))
}

/// Unread data, sizes, O_NONBLOCK on one end, close-on-exec, shared and separate descriptions.
pub fn pipes(stage: &Stage, checks: &mut Checks) {
    let (read, write) = pipe(libc::O_CLOEXEC);
    let size = must!(libc::fcntl(write, libc::F_SETPIPE_SZ, 256 * 1024));
    must!(libc::fcntl(read, libc::F_SETFL, libc::O_NONBLOCK));
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    put(write, &data);
    let shared = must!(libc::dup3(write, 700, 0));

    let (full_read, full_write) = pipe(libc::O_NONBLOCK);
    let chunk = vec![7u8; 4096];
    let mut full = 0usize;
    // SAFETY: the chunk outlives the call.
    while unsafe { libc::write(full_write, chunk.as_ptr().cast(), chunk.len()) } > 0 {
        full += chunk.len();
    }

    let (eof_read, eof_write) = pipe(0);
    put(eof_write, b"last words");
    must!(libc::close(eof_write));

    let (broken_read, broken_write) = pipe(0);
    must!(libc::close(broken_read));
    // SAFETY: plain call.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };

    // A second description of the same pipe, opened through /proc.
    let path = std::ffi::CString::new(format!("/proc/self/fd/{read}")).expect("no NUL");
    let again = must!(libc::open(path.as_ptr(), libc::O_RDONLY));

    let all = [read, write, shared, full_read, full_write, eof_read, broken_write, again];
    let before: Vec<_> = all.map(flags).to_vec();
    stage.ready();
    stage.wait_for_verify();

    checks.eq("flags", before, all.map(flags).to_vec());
    checks.eq("pipe size", size, must!(libc::fcntl(read, libc::F_GETPIPE_SZ)));
    let first = take(read, 100_000).unwrap_or_default();
    let second = take(again, 200_000).unwrap_or_default();
    checks.that("data differs", [first, second].concat() == data);
    checks.eq("an empty pipe that does not block", Err(libc::EAGAIN), take(read, 1));
    must!(libc::fcntl(write, libc::F_SETFL, libc::O_NONBLOCK));
    checks.that("dup shares its flags", flags(shared).0 & libc::O_NONBLOCK != 0);
    put(shared, b"x");
    checks.eq("through the dup", Ok(b"x".to_vec()), take(read, 10));
    // SAFETY: the chunk outlives the call.
    checks.eq("a full pipe takes nothing", -1, unsafe {
        libc::write(full_write, chunk.as_ptr().cast(), chunk.len())
    });
    let mut left = full;
    while let Ok(bytes) = take(full_read, 65536) {
        checks.that("contents of the full pipe", bytes.iter().all(|&b| b == 7));
        left = left.wrapping_sub(bytes.len());
    }
    checks.eq("bytes missing from the full pipe", 0, left);
    checks.eq("data before the end", Ok(b"last words".to_vec()), take(eof_read, 100));
    checks.eq("end of file", Ok(Vec::new()), take(eof_read, 100));
    // SAFETY: the data outlives the call.
    let result = unsafe { libc::write(broken_write, b"x".as_ptr().cast(), 1) };
    checks.eq("write without a reader", -1, result);
}

/// A pipe in packet mode keeps the borders of its packets.
pub fn packet_pipe(stage: &Stage, checks: &mut Checks) {
    let (read, write) = pipe(libc::O_DIRECT | libc::O_NONBLOCK);
    for packet in [&b"one"[..], b"two two", b"three three three"] {
        put(write, packet);
    }
    stage.ready();
    stage.wait_for_verify();
    for packet in [&b"one"[..], b"two two", b"three three three"] {
        checks.eq("packet", Ok(packet.to_vec()), take(read, 4096));
    }
    put(write, b"four");
    put(write, b"five");
    checks.eq("new packet", Ok(b"four".to_vec()), take(read, 4096));
    checks.eq("new packet", Ok(b"five".to_vec()), take(read, 4096));
}

/// Named FIFOs with data, held open by one end and by both.
pub fn fifos(stage: &Stage, checks: &mut Checks) {
    let path = c"fifo-both";
    must!(libc::mkfifo(path.as_ptr(), 0o600));
    let read = must!(libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK));
    let write = must!(libc::open(path.as_ptr(), libc::O_WRONLY));
    put(write, b"named data");
    let both = must!(libc::open(path.as_ptr(), libc::O_RDWR));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("fifo", Ok(b"named data".to_vec()), take(read, 100));
    put(both, b"more");
    checks.eq("fifo", Ok(b"more".to_vec()), take(both, 100));
    put(write, b"again");
    checks.eq("fifo", Ok(b"again".to_vec()), take(read, 100));
}

/// Pipes and socket pairs with free numbers below them, and ends whose numbers are the other way
/// round.
pub fn shifted_pairs(stage: &Stage, checks: &mut Checks) {
    let low = must!(libc::dup(0));
    let (read, write) = pipe(0);
    let below = must!(libc::dup(0));
    let mut ends = [0; 2];
    must!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()));
    let (last_read, last_write) = pipe(0);
    let (first, second) = (must!(libc::dup(last_write)), must!(libc::dup(last_read)));
    for fd in [low, below, last_read, last_write] {
        must!(libc::close(fd));
    }
    stage.ready();
    stage.wait_for_verify();
    for (what, from, to) in [
        ("pipe", write, read),
        ("socket", ends[0], ends[1]),
        ("socket back", ends[1], ends[0]),
        ("the other way round", first, second),
    ] {
        // SAFETY: the buffer holds as many bytes.
        let put = unsafe { libc::write(from, what.as_ptr().cast(), what.len()) };
        checks.eq(format!("{what}: written"), what.len() as isize, put);
        if put > 0 {
            checks.eq(what, Ok(what.as_bytes().to_vec()), take(to, 100));
        }
    }
}
