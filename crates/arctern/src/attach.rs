//! Connecting this terminal with a container's streams.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use arctern_container::lifecycle::{Connection, Event, ExecSession};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// The terminal without line editing and echo, until the value is dropped.
struct RawTerminal {
    saved: Termios,
}

impl RawTerminal {
    /// None when standard input is no terminal.
    fn enter() -> io::Result<Option<RawTerminal>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(io::stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(RawTerminal { saved }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.saved);
    }
}

/// Which streams are connected.
#[derive(Clone, Debug)]
pub struct Streams {
    /// Send our standard input.
    pub stdin: bool,
    /// The container has a terminal.
    pub terminal: bool,
    /// Keys that leave the container running.
    pub keys: DetachKeys,
}

/// Keys that leave the container running, one after the other; none at all is possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl std::str::FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<DetachKeys, String> {
        let key = |name: &str| match (name.strip_prefix("ctrl-"), name.as_bytes()) {
            (None, [byte]) if byte.is_ascii_graphic() => Ok(*byte),
            (Some(letter), _) => match letter.to_ascii_uppercase().as_bytes() {
                [byte @ b'@'..=b'_'] => Ok(byte & 0x1f),
                _ => Err(format!("`{name}`: ctrl- goes with a letter or one of @[\\]^_")),
            },
            _ => Err(format!("`{name}` is no key: use a character, or ctrl- and one")),
        };
        match text {
            "" => Ok(DetachKeys(Vec::new())),
            text => text.split(',').map(key).collect::<Result<_, _>>().map(DetachKeys),
        }
    }
}

/// Copies between this process's streams and a container until it ends; gives its exit code. None
/// when the user detached.
pub fn container(mut connection: Connection, streams: Streams) -> anyhow::Result<Option<i32>> {
    let _raw = if streams.terminal { RawTerminal::enter()? } else { None };
    let (detached_tx, detached) = std::sync::mpsc::channel::<()>();
    if streams.terminal {
        let resize = connection.try_clone()?;
        follow_window_size(move |rows, columns| {
            let _ = resize.resize(rows, columns);
        })?;
    }
    if streams.stdin {
        let input = connection.try_clone()?;
        std::thread::spawn(move || {
            let mut detector = Detach { keys: streams.keys.0, seen: 0 };
            let mut buffer = [0u8; 16 << 10];
            while let Ok(n) = io::stdin().read(&mut buffer) {
                if n == 0 {
                    let _ = input.end_input();
                    return;
                }
                if streams.terminal && detector.saw(&buffer[..n]) {
                    let _ = detached_tx.send(());
                    let _ = input.shutdown();
                    return;
                }
                if input.send_input(&buffer[..n]).is_err() {
                    return;
                }
            }
        });
    }
    loop {
        match connection.next_event()? {
            Some(Event::Stdout(bytes)) => write_all(io::stdout().lock(), &bytes)?,
            Some(Event::Stderr(bytes)) => write_all(io::stderr().lock(), &bytes)?,
            Some(Event::Exit(code)) => return Ok(Some(code)),
            None if detached.try_recv().is_ok() => return Ok(None),
            None => anyhow::bail!("the shim of the container is gone"),
        }
    }
}

/// Sees the detach keys in what is typed, also when they arrive apart.
struct Detach {
    keys: Vec<u8>,
    /// How many of them were typed last.
    seen: usize,
}

impl Detach {
    fn saw(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            self.seen = match self.keys.get(self.seen) {
                Some(&key) if key == byte => self.seen + 1,
                _ => usize::from(self.keys.first() == Some(&byte)),
            };
            if self.seen > 0 && self.seen == self.keys.len() {
                return true;
            }
        }
        false
    }
}

/// Copies between this terminal and that of a command; gives the command's exit code.
pub fn exec(session: &ExecSession, master: OwnedFd, stdin: bool) -> anyhow::Result<i32> {
    let raw = RawTerminal::enter()?;
    let resize = master.try_clone()?;
    follow_window_size(move |rows, columns| {
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = tcsetwinsize(&resize, size);
    })?;
    if stdin {
        let mut input = std::fs::File::from(master.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut input);
        });
    }
    let mut output = std::fs::File::from(master);
    let mut buffer = [0u8; 16 << 10];
    loop {
        match output.read(&mut buffer) {
            // EIO: the last program on the terminal is gone.
            Ok(0) => break,
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => break,
            Err(e) => return Err(e).context("read the terminal"),
            Ok(n) => write_all(io::stdout().lock(), &buffer[..n])?,
        }
    }
    drop(raw);
    Ok(session.wait()?)
}

fn write_all(mut to: impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("write output")
}

/// Calls `set` with the size of our terminal, now and whenever it changes.
fn follow_window_size(set: impl Fn(u16, u16) + Send + 'static) -> anyhow::Result<()> {
    if !io::stdout().is_terminal() {
        return Ok(());
    }
    let now = move || {
        if let Ok(size) = tcgetwinsize(io::stdout().as_fd()) {
            set(size.ws_row, size.ws_col);
        }
    };
    now();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGWINCH])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            now();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector(keys: &str) -> Detach {
        Detach { keys: keys.parse::<DetachKeys>().expect("keys").0, seen: 0 }
    }

    #[test]
    fn detach_keys_are_seen_in_pieces() {
        let mut detach = detector("ctrl-p,ctrl-q");
        assert!(!detach.saw(&[b'a', 0x10]));
        assert!(detach.saw(&[0x11]));
        let mut detach = detector("ctrl-p,ctrl-q");
        assert!(!detach.saw(&[0x10, b'x', 0x11]));
        assert!(detector("ctrl-p,ctrl-q").saw(&[0x10, 0x10, 0x11]));
        assert!(detector("q").saw(b"q"));
        assert!(!detector("").saw(&[0, 0x10, 0x11]));
    }

    #[test]
    fn keys_are_named() {
        assert_eq!("ctrl-@,a".parse(), Ok(DetachKeys(vec![0, b'a'])));
        for bad in ["ctrl-", "ctrl-ab", "ab", ",", "ctrl-1"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad}");
        }
    }
}
