//! Clients that notice everything: requests on kept-open connections, a large download, counters.
//! Each counts what failed and the longest time without an answer.

use crate::place::Place;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No answer within this time is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the clients of a load saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Answers that came and were right.
    pub answers: u64,
    /// What went wrong, one text for each failure.
    pub failures: Vec<String>,
    /// The longest time between two answers on one connection.
    pub longest_gap: Duration,
    /// Connections that were opened.
    pub connections: u64,
}

impl Report {
    fn add(&mut self, other: Report) {
        self.answers += other.answers;
        self.failures.extend(other.failures);
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.connections += other.connections;
    }

    /// Fails if anything went wrong, or nothing was asked.
    pub fn check(&self) -> Result<()> {
        ensure!(self.answers > 0, "no request was answered: {:?}", self.failures);
        ensure!(
            self.failures.is_empty(),
            "{} failures beside {} answers: {}",
            self.failures.len(),
            self.answers,
            self.failures[..self.failures.len().min(5)].join("; ")
        );
        Ok(())
    }
}

/// Clients that run until they are told to end.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    /// The longest time without an answer on one connection since it was asked for, microseconds.
    gap: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<Report>>>,
}

/// One client's conversation, which a load repeats.
trait Client: Send + 'static {
    /// Opens a connection.
    fn connect(&self) -> Result<BufReader<TcpStream>>;
    /// Asks once; whether the connection stays open.
    fn ask(&self, connection: &mut BufReader<TcpStream>) -> Result<bool>;
}

impl Load {
    /// Clients that get `path` over and over on kept-open connections, each with `pause` between
    /// an answer and the next request.
    pub fn http(
        place: &Place,
        address: SocketAddr,
        path: &str,
        clients: usize,
        pause: Duration,
    ) -> Result<Self> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        Self::start(place, clients, pause, || Http { address, request: request.clone() })
    }

    /// Redis clients that increment one key over and over. As many answers as increments: compare
    /// with the value at the end.
    pub fn increments(
        place: &Place,
        address: SocketAddr,
        key: &str,
        clients: usize,
        pause: Duration,
    ) -> Result<Self> {
        let request = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
        Self::start(place, clients, pause, || Increment { address, request: request.clone() })
    }

    /// Redis clients that each set a key of their own, `key` with a number, to 1, 2, 3 …: as many
    /// answers as the sum of the values at the end.
    pub fn sets(
        place: &Place,
        address: SocketAddr,
        key: &str,
        clients: usize,
        pause: Duration,
    ) -> Result<Self> {
        let number = AtomicU64::new(0);
        let client = || {
            let key = format!("{key}{}", number.fetch_add(1, Ordering::Relaxed));
            Set { address, key, value: AtomicU64::new(0) }
        };
        Self::start(place, clients, pause, client)
    }

    fn start<C: Client>(
        place: &Place,
        clients: usize,
        pause: Duration,
        client: impl Fn() -> C,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (answers, gap) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let threads = (0..clients)
            .map(|_| {
                let (client, stop) = (client(), Arc::clone(&stop));
                let seen = Seen { answers: Arc::clone(&answers), gap: Arc::clone(&gap) };
                place.spawn(move || Ok(talk(&client, &stop, &seen, pause)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { stop, answers, gap, clients: threads })
    }

    /// The longest time without an answer on one connection that ended since this was asked last.
    pub fn take_longest_gap(&self) -> Duration {
        Duration::from_micros(self.gap.swap(0, Ordering::Relaxed))
    }

    /// How many answers came so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits until that many more answers have come.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let (begin, wanted) = (Instant::now(), self.answers() + more);
        while self.answers() < wanted {
            ensure!(begin.elapsed() < PATIENCE, "{more} answers did not come within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Ends the clients, each after its answer, and gives what they saw together.
    pub fn finish(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for client in self.clients {
            report.add(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        Ok(report)
    }
}

/// What the clients of a load have in common.
struct Seen {
    answers: Arc<AtomicU64>,
    gap: Arc<AtomicU64>,
}

fn talk(client: &impl Client, stop: &AtomicBool, seen: &Seen, pause: Duration) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) && report.failures.len() < 10 {
        if let Err(error) = session(client, stop, seen, pause, &mut report) {
            report.failures.push(format!("{error:#}"));
        }
    }
    report
}

fn session(
    client: &impl Client,
    stop: &AtomicBool,
    seen: &Seen,
    pause: Duration,
    report: &mut Report,
) -> Result<()> {
    let mut connection = client.connect()?;
    report.connections += 1;
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let open = client.ask(&mut connection)?;
        report.answers += 1;
        seen.answers.fetch_add(1, Ordering::Relaxed);
        let gap = last.elapsed();
        seen.gap.fetch_max(gap.as_micros() as u64, Ordering::Relaxed);
        report.longest_gap = report.longest_gap.max(gap);
        if !open {
            break;
        }
        std::thread::sleep(pause);
        last = Instant::now() - pause;
    }
    Ok(())
}

/// A connection to a server that may just be starting.
fn open(address: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

struct Http {
    address: SocketAddr,
    request: String,
}

impl Client for Http {
    fn connect(&self) -> Result<BufReader<TcpStream>> {
        open(self.address)
    }

    fn ask(&self, connection: &mut BufReader<TcpStream>) -> Result<bool> {
        connection.get_mut().write_all(self.request.as_bytes()).context("cannot send")?;
        let head = Head::read(connection)?;
        let copied = std::io::copy(&mut connection.take(head.length), &mut std::io::sink())?;
        ensure!(copied == head.length, "an answer of {} bytes broke off", head.length);
        Ok(head.keep)
    }
}

struct Increment {
    address: SocketAddr,
    request: String,
}

impl Client for Increment {
    fn connect(&self) -> Result<BufReader<TcpStream>> {
        open(self.address)
    }

    fn ask(&self, connection: &mut BufReader<TcpStream>) -> Result<bool> {
        connection.get_mut().write_all(self.request.as_bytes()).context("cannot send")?;
        let mut line = String::new();
        connection.read_line(&mut line).context("no answer")?;
        ensure!(line.starts_with(':') && line.ends_with("\r\n"), "redis answers {line:?}");
        Ok(true)
    }
}

struct Set {
    address: SocketAddr,
    key: String,
    /// What was acknowledged last.
    value: AtomicU64,
}

impl Client for Set {
    fn connect(&self) -> Result<BufReader<TcpStream>> {
        open(self.address)
    }

    fn ask(&self, connection: &mut BufReader<TcpStream>) -> Result<bool> {
        let value = self.value.load(Ordering::Relaxed) + 1;
        let request = format!("SET {} {value}\r\n", self.key);
        connection.get_mut().write_all(request.as_bytes()).context("cannot send")?;
        let mut line = String::new();
        connection.read_line(&mut line).context("no answer")?;
        ensure!(line == "+OK\r\n", "redis answers {line:?}");
        self.value.store(value, Ordering::Relaxed);
        Ok(true)
    }
}

/// What the head of an HTTP answer says.
struct Head {
    length: u64,
    keep: bool,
}

impl Head {
    fn read(connection: &mut impl BufRead) -> Result<Self> {
        let mut line = |what| -> Result<String> {
            let mut line = String::new();
            let length = connection.read_line(&mut line).context("no answer")?;
            ensure!(length > 0, "the connection was closed where {what} was expected");
            Ok(line.trim_end().to_owned())
        };
        let status = line("an answer")?;
        ensure!(status.contains(" 200 "), "the answer is {status}");
        let mut head = Head { length: 0, keep: true };
        loop {
            let text = line("a header")?.to_ascii_lowercase();
            match text.split_once(':') {
                None if text.is_empty() => return Ok(head),
                Some(("content-length", value)) => head.length = value.trim().parse()?,
                Some(("connection", value)) => head.keep = value.trim() != "close",
                _ => {}
            }
        }
    }
}

/// A large download on one connection, in the background.
#[derive(Debug)]
pub struct Download {
    thread: JoinHandle<Result<Downloaded>>,
    received: Arc<AtomicU64>,
}

/// A download that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Length in bytes.
    pub bytes: u64,
    /// Hexadecimal SHA-256.
    pub sha256: String,
    /// The longest time without a byte.
    pub longest_gap: Duration,
}

impl Download {
    /// Begins to get `path`.
    pub fn start(place: &Place, address: SocketAddr, path: &str) -> Result<Self> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let thread = place.spawn(move || {
            let mut connection = open(address)?;
            connection.get_mut().write_all(request.as_bytes())?;
            let head = Head::read(&mut connection)?;
            let (mut digest, mut bytes) = (Sha256::new(), 0);
            let (mut last, mut longest_gap) = (Instant::now(), Duration::ZERO);
            let mut buffer = vec![0; 64 << 10];
            while bytes < head.length {
                let got = connection
                    .read(&mut buffer)
                    .with_context(|| format!("after {bytes} of {} bytes", head.length))?;
                if got == 0 {
                    bail!("the download broke off after {bytes} of {} bytes", head.length);
                }
                longest_gap = longest_gap.max(last.elapsed());
                last = Instant::now();
                digest.update(&buffer[..got]);
                bytes += got as u64;
                counter.store(bytes, Ordering::Relaxed);
            }
            Ok(Downloaded { bytes, sha256: hexadecimal(&digest.finalize()), longest_gap })
        })?;
        Ok(Self { thread, received })
    }

    /// How many bytes have come.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether it has ended, well or not.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until so many bytes have come, or it has ended.
    pub fn wait_for(&self, bytes: u64) -> Result<()> {
        let begin = Instant::now();
        while self.received() < bytes && !self.is_finished() {
            ensure!(begin.elapsed() < PATIENCE, "the download stands at {} bytes", self.received());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits for the end.
    pub fn finish(self) -> Result<Downloaded> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the download panicked"))?
    }
}

/// Bytes as hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
