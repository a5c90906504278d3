//! Where a container goes: `ssh://[user@]host[:port]`, and how arctern is run there.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host that is reached by ssh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

/// What is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no destination: expected ssh://[user@]host[:port]")]
pub struct InvalidDestination(String);

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let rest = text.strip_prefix("ssh://")?;
            let rest = rest.strip_suffix('/').unwrap_or(rest);
            let (user, rest) = match rest.rsplit_once('@') {
                Some((user, rest)) => (Some(user), rest),
                None => (None, rest),
            };
            let (host, port) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
                Some((host, "")) => (host, None),
                Some((host, port)) => (host, Some(port.strip_prefix(':')?)),
                None => match rest.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (rest, None),
                },
            };
            // ssh takes a word that begins with a dash for an option.
            let word = |text: &str| {
                !text.is_empty()
                    && !text.starts_with('-')
                    && text
                        .chars()
                        .all(|c| c.is_ascii_graphic() && !"/?#'\"\\`$;&|<>()".contains(c))
            };
            let port = match port {
                Some(port) => Some(port.parse().ok().filter(|&port: &u16| port != 0)?),
                None => None,
            };
            let valid = word(host) && user.is_none_or(|user| word(user) && !user.contains(':'));
            let user = user.map(str::to_owned);
            valid.then(|| Destination { user, host: host.to_owned(), port })
        };
        parse().ok_or_else(|| InvalidDestination(text.to_owned()))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = InvalidDestination;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> String {
        destination.to_string()
    }
}

/// How arctern is run on the other side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Which host.
    pub destination: Destination,
    /// The program there.
    pub program: PathBuf,
    /// Its `--root`, if it is not the usual one.
    pub root: Option<PathBuf>,
    /// Its `--runroot`, if it is not the usual one.
    pub runroot: Option<PathBuf>,
    /// More options for ssh, each as `-o` takes them.
    pub ssh_options: Vec<String>,
}

/// ssh notices a dead link within half a minute, unless the user says otherwise.
const ALIVE: [&str; 2] = ["ServerAliveInterval=5", "ServerAliveCountMax=6"];

impl Remote {
    /// Arguments of ssh that run `arctern internal WORD` there. Options of the user come first, since
    /// ssh takes the first that it hears.
    #[must_use]
    pub fn ssh_arguments(&self, word: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let options = self.ssh_options.iter().map(String::as_str).chain(ALIVE);
        for option in options {
            arguments.extend(["-o".into(), option.into()]);
        }
        // No terminal, no escape character: the stream is ours alone.
        arguments.extend(["-T".into(), "-e".into(), "none".into()]);
        if let Some(port) = self.destination.port {
            arguments.extend(["-p".into(), port.to_string().into()]);
        }
        if let Some(user) = &self.destination.user {
            arguments.extend(["-l".into(), user.into()]);
        }
        arguments.extend(["--".into(), self.destination.host.clone().into()]);
        arguments.push(self.command(word).into());
        arguments
    }

    /// The command line for the other side's shell.
    fn command(&self, word: &str) -> String {
        let mut line = quoted(&self.program.to_string_lossy());
        for (option, path) in [("--root", &self.root), ("--runroot", &self.runroot)] {
            if let Some(path) = path {
                line.push_str(&format!(" {option} {}", quoted(&path.to_string_lossy())));
            }
        }
        line.push_str(" internal ");
        line.push_str(word);
        line
    }
}

/// One word for a shell, whatever is in it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_urls_of_ssh() {
        for text in
            ["ssh://b", "ssh://root@b.example:2222", "ssh://[fd00::2]:22", "ssh://me@[fd00::2]"]
        {
            let parsed: Destination = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!("ssh://b/".parse::<Destination>().unwrap().to_string(), "ssh://b");
        for bad in [
            "b",
            "tcp://b",
            "ssh://",
            "ssh://@b",
            "ssh://-oProxyCommand=x",
            "ssh://-l@b",
            "ssh://b:0",
            "ssh://b:99999",
            "ssh://b:",
            "ssh://a b",
            "ssh://b/path",
            "ssh://$(x)",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_other_sides_shell_gets_words() {
        let remote = Remote {
            destination: "ssh://root@b:2222".parse().unwrap(),
            program: "/usr/local/bin/arctern".into(),
            root: Some("/srv/my root".into()),
            runroot: Some("/run/it's".into()),
            ssh_options: vec!["ServerAliveInterval=1".into()],
        };
        let arguments: Vec<String> = remote
            .ssh_arguments("receive")
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        assert_eq!(arguments[..2], ["-o", "ServerAliveInterval=1"]);
        assert_eq!(
            arguments[6..],
            [
                "-T",
                "-e",
                "none",
                "-p",
                "2222",
                "-l",
                "root",
                "--",
                "b",
                r"/usr/local/bin/arctern --root '/srv/my root' --runroot '/run/it'\''s' internal receive"
            ]
        );
    }
}
