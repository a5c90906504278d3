//! What belongs to somebody outside of the tree as well. Unix sockets that are connected to a program
//! there: refused, connected again, closed. Files that changed between capture and restore.
#![forbid(unsafe_code)]

use anyhow::{Result, bail, ensure};
use arctern_harness::engine::Engine::Arctern;
use arctern_harness::workload::{Run, serve};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

/// One server at a time: its name is this process's.
static SERVER: Mutex<()> = Mutex::new(());

/// Listens as the workloads expect it: answers each byte with the number of the connection.
struct Server {
    path: PathBuf,
    mailbox: UnixDatagram,
    _one: MutexGuard<'static, ()>,
}

impl Server {
    fn start() -> Result<Self> {
        let one = SERVER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let path = PathBuf::from(format!("/tmp/arctern-outside-{}", std::process::id()));
        let name = SocketAddr::from_abstract_name(path.as_os_str().as_encoded_bytes())?;
        let mailbox = UnixDatagram::bind_addr(&name)?;
        let listener = UnixListener::bind(&path)?;
        serve(listener);
        Ok(Server { path, mailbox, _one: one })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn dump(run: &Run, policy: Option<&str>) -> Result<std::process::Output> {
    let images = run.images("images")?;
    let mut command = Arctern.dump_command(run.pid(), &images, false)?;
    command.args(policy);
    Ok(command.output()?)
}

fn through(workload: &str, policy: &str) -> Result<()> {
    let mut run = Run::start(workload)?;
    let tree = run.tree()?;
    let output = dump(&run, Some(policy))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    run.wait_for_kill(tree)?;
    let pid = Arctern.restore(&run.images("images")?)?;
    run.restored(pid)?;
    run.verify()
}

#[test]
fn sockets_outside_are_refused_by_name() -> Result<()> {
    let server = Server::start()?;
    let run = Run::start("unix-closed")?;
    for policy in [None, Some("--ext-unix-sk")] {
        let output = dump(&run, policy)?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "nothing was refused");
        ensure!(text.contains(&server.path.display().to_string()), "{text}");
        let why = if policy.is_some() { "unread" } else { "--ext-unix-sk=close" };
        ensure!(text.contains(why), "{text}");
    }
    run.kill()
}

#[test]
fn sockets_outside_are_connected_again() -> Result<()> {
    let server = Server::start()?;
    through("unix-reconnected", "--ext-unix-sk")?;
    let mut letter = [0; 10];
    server.mailbox.set_nonblocking(true)?;
    let length = server.mailbox.recv(&mut letter)?;
    ensure!(&letter[..length] == b"after", "{letter:?}");
    Ok(())
}

#[test]
fn sockets_outside_are_closed() -> Result<()> {
    let _server = Server::start()?;
    through("unix-closed", "--ext-unix-sk=close")
}

/// Captures and kills a workload, lets `meanwhile` work on its directory, and restores.
fn meanwhile(
    workload: &str,
    work: impl FnOnce(PathBuf) -> Result<()>,
) -> Result<(Run, Result<i32>)> {
    let run = Run::start(workload)?;
    let tree = run.tree()?;
    let output = dump(&run, None)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    run.wait_for_kill(tree)?;
    work(run.work())?;
    let restored = Arctern.restore(&run.images("images")?);
    Ok((run, restored))
}

fn append(path: PathBuf) -> Result<()> {
    Ok(std::fs::File::options().append(true).open(path)?.write_all(b"meanwhile\n")?)
}

#[test]
fn a_log_may_have_grown() -> Result<()> {
    let (mut run, restored) = meanwhile("grown-log", |work| append(work.join("log")))?;
    run.restored(restored?)?;
    run.verify()
}

#[test]
fn another_file_may_not_have_grown() -> Result<()> {
    let (_run, restored) = meanwhile("grown-file", |work| append(work.join("file")))?;
    let Err(error) = restored else { bail!("the file has changed, and nobody noticed") };
    let text = format!("{error:#}");
    ensure!(text.contains("work/file") && text.contains("17"), "{text}");
    Ok(())
}
