//! Unix sockets: whom they show as their peer (SO_PEERCRED).

use crate::must;
use crate::stage::{Checks, Stage, child, wait_status};
use crate::unix_queues::{pair, receive, send};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Pid, uid and gid.
fn peer(socket: i32) -> (i32, u32, u32) {
    let mut shown = libc::ucred { pid: -1, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    must!(libc::getsockopt(
        socket,
        libc::SOL_SOCKET,
        libc::SO_PEERCRED,
        (&raw mut shown).cast(),
        &mut len
    ));
    (shown.pid, shown.uid, shown.gid)
}

fn become_other(id: u32) {
    must!(libc::setresgid(id, id, id));
    must!(libc::setresuid(id, id, id));
}

/// A process that does something and ends: its pid.
fn gone(work: impl FnOnce()) -> i32 {
    let pid = must!(libc::fork());
    if pid == 0 {
        work();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    if wait_status(pid).ok() != Some(0) {
        crate::stage::setup_failed("a process that ends");
    }
    pid
}

/// A pair that was made for a child, connections of a child of another user and of processes that
/// are gone, a listener and a pair of processes that are gone, and the caller's own with other ids.
pub fn unix_peers(stage: &Stage, checks: &mut Checks) {
    let me = std::process::id() as i32;
    let place = std::fs::metadata(stage.dir()).expect("own directory").st_ino();
    let name = format!("arctern-peers-{me}-{place}");
    let name = SocketAddr::from_abstract_name(name).expect("name");
    let listener = UnixListener::bind_addr(&name).expect("bind");
    let by_path = UnixListener::bind("by-path").expect("bind");
    let (ours, theirs) = pair(libc::SOCK_SEQPACKET);
    let child = child("other user", |stage, checks| {
        become_other(1000);
        let client = UnixStream::connect_addr(&name).expect("connect");
        let (own, _other) = pair(libc::SOCK_DGRAM);
        let id = std::process::id() as i32;
        let before = [(me, 0, 0), (me, 0, 0), (id, 1000, 1000)];
        let now = || [peer(theirs), peer(client.as_raw_fd()), peer(own)];
        checks.eq("the child's peers before", before, now());
        stage.ready();
        stage.wait_for_verify();
        checks.eq("the child's peers", before, now());
    });
    let (of_child, _) = listener.accept().expect("accept");
    let dead = gone(|| {
        become_other(1001);
        std::mem::forget(UnixStream::connect_addr(&name).expect("connect"));
    });
    let (of_dead, _) = listener.accept().expect("accept");
    let dead_by_path = gone(|| drop(UnixStream::connect("by-path").expect("connect")));
    let (of_dead_by_path, _) = by_path.accept().expect("accept");

    // Its maker has ended; whoever connects to it is shown that one.
    let orphan = UnixListener::bind("orphan").expect("bind");
    let listened = gone(|| {
        must!(libc::setresgid(u32::MAX, 7, u32::MAX));
        must!(libc::listen(orphan.as_raw_fd(), 5));
    });
    let client = UnixStream::connect("orphan").expect("connect");
    let (server, _) = orphan.accept().expect("accept");

    let (to, from) = pair(libc::SOCK_STREAM);
    let maker = gone(|| {
        let (left, right) = pair(libc::SOCK_DGRAM);
        send(to, b"pair", &[left, right]);
    });
    let (_, received) = receive(from, 10);
    // SAFETY: the kernel has just given us these descriptors, nobody else owns them.
    let received: Vec<OwnedFd> =
        received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    let [left, right] = &received[..] else { return checks.fail("no pair came") };

    must!(libc::setresuid(u32::MAX, 5, u32::MAX));
    let (as_other, _end) = pair(libc::SOCK_STREAM);
    must!(libc::setresuid(u32::MAX, 0, u32::MAX));
    let before = [
        ("its end of the pair", (me, 0, 0)),
        ("the listener", (me, 0, 0)),
        ("the child's connection", (child.pid, 1000, 1000)),
        ("a dead process's connection", (dead, 1001, 1001)),
        ("a dead process's connection by path", (dead_by_path, 0, 0)),
        ("the listener of a dead process", (listened, 0, 7)),
        ("the client of a dead process's listener", (listened, 0, 7)),
        ("the server of its own connection", (me, 0, 0)),
        ("one end of a dead process's pair", (maker, 0, 0)),
        ("the other end of it", (maker, 0, 0)),
        ("a pair of its own as another user", (me, 5, 0)),
    ];
    let mut compare = |when: &str| {
        let now = [
            peer(ours),
            peer(listener.as_raw_fd()),
            peer(of_child.as_raw_fd()),
            peer(of_dead.as_raw_fd()),
            peer(of_dead_by_path.as_raw_fd()),
            peer(orphan.as_raw_fd()),
            peer(client.as_raw_fd()),
            peer(server.as_raw_fd()),
            peer(left.as_raw_fd()),
            peer(right.as_raw_fd()),
            peer(as_other),
        ];
        for ((what, before), now) in before.into_iter().zip(now) {
            checks.eq(format!("{what}, {when}"), before, now);
        }
    };
    compare("before");
    stage.ready();
    stage.wait_for_verify();
    compare("afterwards");
    child.verify(checks);
}
