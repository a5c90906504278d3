//! Connections whose other end is outside of the tree, under load: every byte arrives, and the clients
//! notice a pause and nothing else.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::engine::Engine::Arctern;
use arctern_harness::skips::judge;
use arctern_harness::workload::Run;
use arctern_sys::fd::{attach_socket_filter, set_socket_int};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLIENTS: usize = 4;

/// A byte of a client's stream.
fn byte(client: usize, at: usize) -> u8 {
    (at % 251 + client) as u8
}

/// A client that sends as fast as it can, and compares what comes back.
struct Client {
    writer: JoinHandle<Result<usize>>,
    reader: JoinHandle<Result<(usize, Duration)>>,
}

impl Client {
    fn start(number: usize, port: u16, stop: &Arc<AtomicBool>) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let (mut from, mut to, stop) = (stream.try_clone()?, stream, stop.clone());
        let writer = std::thread::spawn(move || {
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                let bytes: Vec<u8> = (at..at + 10_000).map(|at| byte(number, at)).collect();
                to.write_all(&bytes).context("write")?;
                at += bytes.len();
            }
            to.shutdown(Shutdown::Write)?;
            Ok(at)
        });
        let reader = std::thread::spawn(move || {
            let (mut at, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
            let mut bytes = vec![0; 1 << 16];
            loop {
                let n = from.read(&mut bytes).with_context(|| format!("after {at} bytes"))?;
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if n == 0 {
                    return Ok((at, longest));
                }
                if let Some(wrong) = (0..n).find(|i| bytes[*i] != byte(number, at + i)) {
                    bail!("byte {} differs", at + wrong);
                }
                at += n;
            }
        });
        Ok(Client { writer, reader })
    }

    fn finish(self) -> Result<Duration> {
        let sent = self.writer.join().expect("the writer ends")?;
        let (got, longest) = self.reader.join().expect("the reader ends")?;
        ensure!(sent == got, "{sent} bytes were sent, {got} came back");
        ensure!(sent > 1 << 20, "only {sent} bytes were sent");
        Ok(longest)
    }
}

/// Runs `act` some times while clients talk to a server.
fn under_load(mut act: impl FnMut(&mut Run, usize) -> Result<()>) -> Result<()> {
    let count = CLIENTS.to_string();
    let mut run = Run::start_with(&["load", "echo", &count])?;
    let port = std::fs::read_to_string(run.work().join("port"))?.parse()?;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Result<Vec<Client>> =
        (0..CLIENTS).map(|number| Client::start(number, port, &stop)).collect();
    for round in 0..5 {
        // Traffic between the captures, not a wait for something.
        std::thread::sleep(Duration::from_millis(100));
        act(&mut run, round).with_context(|| format!("round {round}"))?;
    }
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    for client in clients? {
        println!("longest pause {:?}", client.finish()?);
    }
    run.verify()
}

#[test]
fn clients_of_a_tree_that_goes_on_lose_nothing() -> Result<()> {
    under_load(|run, round| {
        let images = run.images(&format!("images-{round}"))?;
        Arctern.dump(run.pid(), &images, true)
    })
}

#[test]
fn clients_of_a_tree_that_moves_lose_nothing() -> Result<()> {
    under_load(|run, round| {
        let images = run.images(&format!("images-{round}"))?;
        let tree = run.tree()?;
        Arctern.dump(run.pid(), &images, false)?;
        run.wait_for_kill(tree)?;
        let pid = Arctern.restore(&images)?;
        run.restored(pid)
    })
}

/// What a client does while the tree does not stand.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    /// Its first request.
    Asks,
    /// It goes on to fill a window that was full before.
    Fills,
}

/// The lock of a tree that shares its network namespace drops what is sent to it. A client is told not
/// to send, so it need not wait for its timer, which by then is as long as the tree was away.
fn goes_on_at_once(what: Meanwhile, stays: bool) -> Result<()> {
    // Its timer rings after 0.2, 0.6, 1.4, 3 and 6.2 seconds.
    const AWAY: Duration = Duration::from_secs(4);
    let mut run = Run::start_with(&["load", "echo", "1"])?;
    let (port, images) = (port(&run)?, run.images("images")?);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    client.write_all(b"x")?;
    client.read_exact(&mut [0])?;
    let mut sent = 0;
    if let Meanwhile::Fills = what {
        // Nobody takes the answers, so nobody takes the requests.
        client.set_write_timeout(Some(Duration::from_millis(200)))?;
        while let Ok(n) = client.write(&[7; 10_000]) {
            sent += n;
        }
        client.set_write_timeout(None)?;
    }
    let tree = run.tree()?;
    Arctern.dump(run.pid(), &images, stays)?;
    if let Meanwhile::Asks = what {
        client.write_all(b"y")?;
        sent += 1;
    }
    if !stays {
        run.wait_for_kill(tree)?;
        if let Meanwhile::Asks = what {
            std::thread::sleep(AWAY);
        }
        let pid = Arctern.restore(&images)?;
        run.restored(pid)?;
    }
    let begin = Instant::now();
    let mut left = vec![0; sent];
    client.read_exact(&mut left)?;
    let took = begin.elapsed();
    println!("{what:?}: {sent} bytes came back within {took:?}");
    ensure!(took < AWAY / 4, "{sent} bytes came back within {took:?} only");
    client.shutdown(Shutdown::Write)?;
    run.verify()
}

#[test]
fn a_client_that_asked_while_the_tree_was_away_has_its_answer_at_once() -> Result<()> {
    goes_on_at_once(Meanwhile::Asks, false)
}

#[test]
fn a_client_that_waited_for_room_goes_on_at_once() -> Result<()> {
    goes_on_at_once(Meanwhile::Fills, false)
}

#[test]
fn a_client_of_a_tree_that_stays_goes_on_at_once() -> Result<()> {
    goes_on_at_once(Meanwhile::Fills, true)
}

/// A connection with small segments, so that many of them are on their way at once.
fn connect_small(port: u16) -> Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketAddrV4, SocketType, connect, socket};
    let client = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let (tcp, largest_segment) = (6, 2);
    set_socket_int(&client, tcp, largest_segment, 1000)?;
    connect(&client, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(client.into())
}

/// More segments of the tree were on their way than a new connection sends at once, and all are lost.
/// No timer, of either side, rings in less than 200 ms: whoever is sooner did not wait for one.
#[test]
fn lost_segments_of_the_tree_are_sent_again_at_once() -> Result<()> {
    let mut run = Run::start_with(&["load", "echo", "1"])?;
    let (port, images) = (port(&run)?, run.images("images")?);
    let mut client = connect_small(port)?;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    // Both sides have heard that much arrives.
    let mut writer = client.try_clone()?;
    let warm = std::thread::spawn(move || writer.write_all(&[7; 1 << 21]));
    client.read_exact(&mut vec![0; 1 << 21])?;
    warm.join().map_err(|_| anyhow::anyhow!("the writer failed"))??;

    let drop_all = [6];
    attach_socket_filter(&client, &drop_all)?;
    let mut lost = vec![9; 30_000];
    client.write_all(&lost)?;
    let address = client.local_addr()?;
    let unanswered = || -> Result<bool> {
        let all = arctern_sys::diag::tcp_sockets(None)?;
        let server = all.iter().find(|socket| socket.peer == address);
        Ok(server.context("no server")?.send_queue as usize == lost.len())
    };
    while !unanswered()? {
        std::thread::sleep(Duration::from_millis(1));
    }
    let tree = run.tree()?;
    Arctern.dump(run.pid(), &images, false)?;
    run.wait_for_kill(tree)?;
    let (socket, detach) = (1, 27);
    set_socket_int(&client, socket, detach, 0)?;
    let begin = Instant::now();
    let pid = Arctern.restore(&images)?;
    run.restored(pid)?;
    let restored = begin.elapsed();
    client.read_exact(&mut lost)?;
    let took = begin.elapsed() - restored;
    println!("30 segments came {took:?} after a restore of {restored:?}");
    ensure!(took < Duration::from_millis(200), "what was lost came {took:?} after the restore");
    client.shutdown(Shutdown::Write)?;
    run.verify()
}

fn port(run: &Run) -> Result<u16> {
    Ok(std::fs::read_to_string(run.work().join("port"))?.parse()?)
}

/// Runs a command of the engine; its messages, and whether it succeeded.
fn said(mut command: Command, arguments: &[&str]) -> Result<(bool, String)> {
    let output = command.args(arguments).output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn connections_that_nobody_accepted_are_refused_or_dropped() -> Result<()> {
    let mut run = Run::start_with(&["load", "backlog", "8"])?;
    let (port, images) = (port(&run)?, run.images("images")?);
    let mut waiting = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let tree = run.tree()?;
    // Without a lock it cannot be taken.
    let plain = ["--network-lock", "skip"];
    let mut command = Command::new(arctern_harness::engine::built("ARCTERN", "arctern"));
    command.args(["criu", "dump", "--tcp-established", "-t", &run.pid().to_string(), "-D"]);
    command.arg(&images);
    let (done, message) = said(command, &plain)?;
    ensure!(!done && message.contains("1 connection(s) wait to be accepted"), "{message}");
    ensure!(message.contains(&format!("127.0.0.1:{port}")), "{message}");
    run.unharmed()?;
    let drop = ["--skip-in-flight"];
    let (done, message) = said(Arctern.dump_command(run.pid(), &images, false)?, &drop)?;
    ensure!(done, "{message}");
    run.wait_for_kill(tree)?;
    run.restored(Arctern.restore(&images)?)?;
    waiting.set_read_timeout(Some(Duration::from_secs(10)))?;
    let end = waiting.write_all(b"x").and_then(|()| waiting.read(&mut [0]));
    ensure!(end.is_err() || end.is_ok_and(|n| n == 0), "the dropped connection lives");
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("a new connection")?;
    run.verify()
}

#[test]
fn live_connections_are_refused_by_name_and_dropped_on_demand() -> Result<()> {
    let mut run = Run::start_with(&["load", "echo", "2"])?;
    let (port, images) = (port(&run)?, run.images("images")?);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.write_all(b"x")?;
    client.read_exact(&mut [0])?;
    let plain = || {
        let mut command = Command::new(arctern_harness::engine::built("ARCTERN", "arctern"));
        command.args(["criu", "dump", "-t", &run.pid().to_string(), "-D"]).arg(&images);
        command
    };
    let name = format!("TCP 127.0.0.1:{port} -> {} is established", client.local_addr()?);
    let (done, message) = said(plain(), &[])?;
    ensure!(!done && message.contains(&name), "{message}");
    let tree = run.tree()?;
    Arctern.dump(run.pid(), &images, false)?;
    run.wait_for_kill(tree)?;
    let restore = |how: &[&str]| {
        let mut command = Command::new(arctern_harness::engine::built("ARCTERN", "arctern"));
        command.args(["criu", "restore", "-d", "--pidfile"]).arg(images.join("pid"));
        said(
            {
                command.arg("-D").arg(&images);
                command
            },
            how,
        )
    };
    let (done, message) = restore(&[])?;
    ensure!(!done && message.contains("is a live connection"), "{message}");
    let (done, message) = restore(&["--tcp-close"])?;
    ensure!(done, "{message}");
    let pid = std::fs::read_to_string(images.join("pid"))?;
    run.restored(pid.trim().parse()?)?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    let end = client.write_all(b"x").and_then(|()| client.read(&mut [0]));
    ensure!(end.is_err() || end.is_ok_and(|n| n == 0), "the dropped connection lives");
    let rules = Command::new("nft").args(["list", "ruleset"]).output()?.stdout;
    let rules = String::from_utf8_lossy(&rules).into_owned();
    ensure!(!rules.contains(&port.to_string()), "the lock of the dump is left:\n{rules}");
    run.kill()
}

/// Clients of a listener whose program is slow to accept: what each sends, and whether it ends.
fn slow_to_accept(restore: bool) -> Result<()> {
    let mut run = Run::start_with(&["load", "late", "5"])?;
    let port = port(&run)?;
    let mut clients = Vec::new();
    for (number, size) in [0, 10, 5000, 40_000, 100].into_iter().enumerate() {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        let bytes: Vec<u8> = (0..size).map(|at| byte(number, at)).collect();
        client.write_all(&bytes)?;
        clients.push((client, bytes));
    }
    clients[4].0.shutdown(Shutdown::Write)?;
    std::thread::sleep(Duration::from_millis(50));
    for round in 0..3 {
        let images = run.images(&format!("images-{round}"))?;
        let tree = run.tree()?;
        Arctern.dump(run.pid(), &images, !restore)?;
        if restore {
            run.wait_for_kill(tree)?;
            run.restored(Arctern.restore(&images)?)?;
        }
    }
    let serve = std::thread::spawn(move || -> Result<()> {
        for (number, (mut client, mut bytes)) in clients.into_iter().enumerate() {
            client.set_read_timeout(Some(Duration::from_secs(20)))?;
            if number != 4 {
                let more: Vec<u8> =
                    (bytes.len()..bytes.len() + 20_000).map(|at| byte(number, at)).collect();
                client.write_all(&more)?;
                client.shutdown(Shutdown::Write)?;
                bytes.extend(more);
            }
            let mut back = Vec::new();
            client.read_to_end(&mut back).with_context(|| format!("client {number}"))?;
            ensure!(back == bytes, "client {number}: {} of {} bytes", back.len(), bytes.len());
        }
        Ok(())
    });
    run.verify()?;
    serve.join().expect("the clients end")
}

#[test]
fn connections_that_wait_to_be_accepted_wait_on_in_a_tree_that_goes_on() -> Result<()> {
    slow_to_accept(false)
}

#[test]
fn connections_that_wait_to_be_accepted_are_served_after_a_move() -> Result<()> {
    slow_to_accept(true)
}

#[test]
fn damaged_lists_of_waiting_connections_restore_nothing() -> Result<()> {
    let mut run = Run::start_with(&["load", "late", "1"])?;
    let (port, images) = (port(&run)?, run.images("images")?);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.write_all(b"before")?;
    let tree = run.tree()?;
    Arctern.dump(run.pid(), &images, false)?;
    run.wait_for_kill(tree)?;
    let list = images.join("arctern-accept.json");
    let good = std::fs::read_to_string(&list)?;
    let one: serde_json::Value = serde_json::from_str(&good)?;
    let with = |key: &str, value: serde_json::Value| {
        let mut changed = one.clone();
        changed[0][key] = value;
        changed.to_string()
    };
    let twice = format!("[{0},{0}]", one[0]);
    let many = format!("[{}]", vec![one[0].to_string(); 20_000].join(","));
    let damaged = [
        String::new(),
        "{}".to_owned(),
        "[[[[".to_owned(),
        "[".repeat(1 << 20),
        format!("[{}", good.repeat(100_000)),
        twice,
        many,
        with("listener", 0.into()),
        with("listener", u64::MAX.into()),
        with("ino", 0.into()),
        with("ino", (-1).into()),
        with("state", 10.into()),
        with("state", 4.into()),
        with("local", "198.51.100.7:80".into()),
        with("local", format!("127.0.0.1:{}", port ^ 1).into()),
        with("local", "no address".into()),
        with("peer", "[2001:db8::1]:4711".into()),
        with("peer", "224.0.0.1:4711".into()),
    ];
    for text in damaged {
        std::fs::write(&list, &text)?;
        let begin = Instant::now();
        let (done, message) = said(Arctern.restore_command(&images)?, &[])?;
        let start = &text[..text.len().min(200)];
        ensure!(!done && message.contains("error"), "restored: {start}\n{message}");
        ensure!(!message.contains("panicked"), "{start}\n{message}");
        ensure!(begin.elapsed() < Duration::from_secs(30), "{start} took {:?}", begin.elapsed());
        let left = arctern_harness::process::processes_below(&run.work());
        ensure!(left.is_empty(), "{left:?} are left of {start}");
    }
    std::fs::write(&list, &good)?;
    run.restored(Arctern.restore(&images)?)?;
    client.write_all(b" after")?;
    client.shutdown(Shutdown::Write)?;
    run.verify()?;
    let mut back = String::new();
    client.read_to_string(&mut back)?;
    ensure!(back == "before after", "{back:?} came back");
    Ok(())
}

/// A connection of this kind is refused by name, and its program goes on.
fn refused(kind: &str, cause: &str) -> Result<(), String> {
    judge(&format!("tcp::{kind}"), || {
        let run = Run::start_with(&["load", kind, "1"])?;
        let images = run.images("images")?;
        let (done, message) = said(Arctern.dump_command(run.pid(), &images, false)?, &[])?;
        let process = format!("process {}", run.pid());
        for part in [&process, ", fd ", "TCP 127.0.0.1:", cause] {
            ensure!(!done && message.contains(part), "no {part:?}: {message}");
        }
        run.unharmed()?;
        run.verify()
    })
}

#[test]
fn urgent_data_is_refused_by_name() -> Result<(), String> {
    refused("urgent", "has urgent data")
}

#[test]
fn md5_keys_are_refused_by_name() -> Result<(), String> {
    refused("signed", "has MD5 keys")
}

#[test]
fn kernel_tls_is_refused_by_name() -> Result<(), String> {
    refused("kernel-tls", "kernel's tls layer")
}

#[test]
fn authentication_keys_are_refused_by_name() -> Result<(), String> {
    refused("authenticated", "has TCP-AO keys")
}
