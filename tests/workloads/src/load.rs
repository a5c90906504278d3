//! Loads of one kind in a given amount, for benchmarks: they set up and sleep.

use crate::must;
use crate::stage::Stage;

/// Sets `count` things of `kind` up, says ready, and sleeps until SIGUSR1; then it ends.
pub fn load(kind: &str, count: usize, stage: &Stage) {
    // A benchmark must not fail by a limit that is lower than the kernel's.
    // SAFETY: rlimit is plain data.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    must!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit));
    limit.rlim_cur = limit.rlim_max;
    must!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit));
    match kind {
        "memory" => memory(count),
        "processes" => processes(count),
        "threads" => threads(count),
        "mappings" => mappings(count),
        "descriptors" => descriptors(count),
        "connections" => connections(count),
        "echo" => echo(count, stage.dir()),
        "clock" => clock(count, stage.dir()),
        "late" => return late(count, stage),
        "urgent" | "signed" | "kernel-tls" | "authenticated" => return refused(kind, stage),
        "backlog" => backlog(count, stage.dir()),
        _ => {
            eprintln!(
                "no load is called {kind}: memory (MiB), processes, threads, mappings, descriptors, \
                 connections, echo, backlog, clock (MiB), late, urgent, signed, kernel-tls, authenticated"
            );
            std::process::exit(64);
        }
    }
    stage.ready();
    stage.wait_for_verify();
}

/// `mebibytes` of anonymous memory, each page different.
fn memory(mebibytes: usize) {
    let length = mebibytes << 20;
    let memory = crate::memory::map(
        length,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
        0,
    );
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for page in crate::memory::bytes(memory, length).chunks_mut(4096) {
        for word in page.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes());
        }
    }
}

/// Memory, and a look at the clock all the time: `still` in the directory is the longest time between
/// two looks in microseconds, since `reset` was made there.
fn clock(mebibytes: usize, dir: &std::path::Path) -> ! {
    memory(mebibytes);
    let mut longest = std::time::Duration::ZERO;
    let mut last = std::time::Instant::now();
    loop {
        std::thread::sleep(std::time::Duration::from_micros(500));
        if std::fs::remove_file(dir.join("reset")).is_ok() {
            longest = std::time::Duration::ZERO;
            last = std::time::Instant::now();
        }
        let gap = last.elapsed();
        if gap > longest {
            longest = gap;
            std::fs::write(dir.join("still"), format!("{}\n", gap.as_micros()))
                .expect("the directory can be written");
        }
        last = std::time::Instant::now();
    }
}

/// `count` processes in all.
fn processes(count: usize) {
    for _ in 1..count {
        if must!(libc::fork()) == 0 {
            must!(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
            loop {
                // SAFETY: plain call; it returns when a signal was handled or the task was stopped.
                unsafe { libc::pause() };
            }
        }
    }
}

/// `count` threads in all, with small stacks.
fn threads(count: usize) {
    for _ in 1..count {
        std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(|| {
                loop {
                    std::thread::park();
                }
            })
            .expect("a thread can be made");
    }
}

/// `count` mappings that cannot be merged, one page each.
fn mappings(count: usize) {
    for index in 0..count {
        let protection =
            if index % 2 == 0 { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        crate::memory::map(4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
    }
}

/// `count` descriptors: regular files, and every third an event counter. (Pipes are left out: what
/// one user may hold in pipes is limited, and an engine needs as much again.)
fn descriptors(count: usize) {
    for index in 0..count {
        if index % 3 == 0 {
            must!(libc::eventfd(index as u32, 0));
        } else {
            let name = std::ffi::CString::new(format!("file-{index}")).expect("no NUL");
            must!(libc::open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600));
        }
    }
}

/// `count` TCP connections within this process: two sockets each.
fn connections(count: usize) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    for _ in 0..count {
        std::mem::forget(std::net::TcpStream::connect(address).expect("connect"));
        std::mem::forget(listener.accept().expect("accept"));
    }
    std::mem::forget(listener);
}

/// A server that sends `count` clients back what they send; its port is written to DIR/port.
fn echo(count: usize, dir: &std::path::Path) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    std::fs::write(dir.join("port"), port.to_string()).expect("the directory can be written");
    std::thread::spawn(move || {
        for client in listener.incoming().take(count) {
            let mut client = client.expect("accept");
            std::thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                loop {
                    match client.read(&mut bytes) {
                        Ok(0) => return,
                        Ok(n) => client.write_all(&bytes[..n]).expect("write"),
                        Err(e) => {
                            eprintln!("read: {e}");
                            std::process::exit(1);
                        }
                    }
                }
            });
        }
    });
}

/// A listener for `count` connections that accepts none; its port is written to DIR/port.
fn backlog(count: usize, dir: &std::path::Path) {
    use std::os::fd::AsRawFd;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    must!(libc::listen(listener.as_raw_fd(), count as i32));
    let port = listener.local_addr().expect("address").port();
    std::fs::write(dir.join("port"), port.to_string()).expect("the directory can be written");
    std::mem::forget(listener);
}

/// A listener whose `count` clients are served only when it is told to verify: each gets back what it
/// sends.
fn late(count: usize, stage: &Stage) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    std::fs::write(stage.dir().join("port"), port.to_string())
        .expect("the directory can be written");
    stage.ready();
    stage.wait_for_verify();
    let clients: Vec<_> = listener.incoming().take(count).collect();
    for client in clients {
        let mut client = client.expect("accept");
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).expect("read");
        client.write_all(&bytes).expect("write");
    }
}

/// A connection that no capture takes; it works on when this is told to verify.
fn refused(kind: &str, stage: &Stage) {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    const TCP_AO_INFO: i32 = 40;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut client =
        std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    drop(listener);
    let ends = [(&client, &server), (&server, &client)];
    match kind {
        "urgent" => {
            must!(libc::send(client.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB));
        }
        "signed" => ends.into_iter().for_each(|(socket, peer)| sign(socket, peer)),
        _ => {
            let (name, value) = match kind {
                "kernel-tls" => (libc::TCP_ULP, &b"tls"[..]),
                _ => (TCP_AO_INFO, &[0; 48][..]),
            };
            let (fd, length) = (client.as_raw_fd(), value.len() as u32);
            // SAFETY: the value outlives the call.
            let done = unsafe {
                libc::setsockopt(fd, libc::IPPROTO_TCP, name, value.as_ptr().cast(), length)
            };
            if done != 0 {
                stage.skip(&format!("this kernel has no {kind} connections"));
            }
        }
    }
    stage.ready();
    stage.wait_for_verify();
    client.write_all(b"onwards").expect("write");
    server.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("timeout");
    let mut got = [0; 7];
    server.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"onwards");
}

/// Signs what goes to `peer` with a key for MD5 (TCP_MD5SIG).
fn sign(socket: &std::net::TcpStream, peer: &std::net::TcpStream) {
    use std::os::fd::AsRawFd;
    const KEY: &[u8] = b"secret";
    let port = peer.local_addr().expect("address").port();
    // struct tcp_md5sig: address (128 bytes), flags, prefix, length of the key (at 130), index, key.
    let mut signature = [0u8; 216];
    signature[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    signature[2..4].copy_from_slice(&port.to_be_bytes());
    signature[4..8].copy_from_slice(&[127, 0, 0, 1]);
    signature[130..132].copy_from_slice(&(KEY.len() as u16).to_ne_bytes());
    signature[136..136 + KEY.len()].copy_from_slice(KEY);
    let (fd, length) = (socket.as_raw_fd(), signature.len() as u32);
    let from = signature.as_ptr().cast();
    must!(libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_MD5SIG, from, length));
}
