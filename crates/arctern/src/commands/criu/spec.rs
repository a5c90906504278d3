//! CRIU's notations for things outside the images.

use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use arctern_engine::options::{External, ExternalUnix};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// `KIND[KEY]:VALUE` or `KIND[KEY]`.
fn split(text: &str) -> anyhow::Result<(&str, &str, Option<&str>)> {
    let parts = || {
        let (kind, rest) = text.split_once('[')?;
        // The value may hold brackets too: the key ends at the first `]:`, else at the last `]`.
        match rest.split_once("]:") {
            Some((key, value)) => Some((kind, key, Some(value))),
            None => Some((kind, rest.strip_suffix(']')?, None)),
        }
    };
    parts().with_context(|| format!("`{text}` is not of the form KIND[KEY] or KIND[KEY]:VALUE"))
}

/// `--external` of a dump.
pub fn parse_dump(text: &str) -> anyhow::Result<External> {
    let (kind, key, value) = split(text)?;
    let name =
        || value.map(str::to_owned).with_context(|| format!("`{text}` has no name after the key"));
    Ok(match kind {
        "mnt" if key.is_empty() => {
            bail!(
                "`{text}`: all mounts at once cannot be external here; name each, as mnt[PATH]:NAME"
            )
        }
        "mnt" => External::Mount { key: key.to_owned(), value: name()? },
        "net" => External::NetNs { ino: decimal(key, text)?, name: name()? },
        "pid" => External::PidNs { ino: decimal(key, text)?, name: name()? },
        "dev" => External::Device { key: key.to_owned(), value: name()? },
        "unix" => External::Unix { ino: decimal(key, text)? },
        "file" => {
            let (mnt_id, ino) = pair(key, text)?;
            let mnt_id =
                u32::try_from(mnt_id).with_context(|| format!("`{text}` has no mount id"))?;
            External::File { mnt_id, ino }
        }
        "tty" => {
            let (rdev, dev) = pair(key, text)?;
            External::Tty { rdev, dev }
        }
        _ => bail!(
            "`{text}`: `{kind}` cannot be external; mnt, net, pid, dev, file, tty and unix can"
        ),
    })
}

/// `--external` of a restore.
pub fn parse_restore(text: &str) -> anyhow::Result<External> {
    let (kind, key, value) = split(text)?;
    let value =
        value.map(str::to_owned).with_context(|| format!("`{text}` has no path after the key"))?;
    Ok(match kind {
        "mnt" => External::Mount { key: key.to_owned(), value },
        "dev" => External::Device { key: key.to_owned(), value },
        _ => bail!("`{text}`: a restore takes mnt[NAME]:PATH and dev[NAME]:PATH"),
    })
}

/// `--inherit-fd fd[N]:KEY`: a duplicate of descriptor N, and the key.
pub fn inherit(text: &str) -> anyhow::Result<(String, OwnedFd)> {
    let (kind, number, key) = split(text)?;
    let (Ok(number), Some(key), "fd") = (number.parse::<i32>(), key, kind) else {
        bail!("`{text}` is not of the form fd[N]:KEY");
    };
    let duplicate = || {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        pidfd_getfd(&own, number, PidfdGetfdFlags::empty())
    };
    let fd = duplicate().with_context(|| format!("`{text}`: descriptor {number} is not open"))?;
    Ok((key.to_owned(), fd))
}

/// `--ext-unix-sk`, `--ext-unix-sk=close`, `--ext-unix-sk=INO,INO`: what is done about unix sockets
/// outside, and those that are connected to again.
pub fn parse_sockets(text: &str) -> anyhow::Result<(ExternalUnix, Vec<u64>)> {
    Ok(match text {
        "" => (ExternalUnix::Reconnect, Vec::new()),
        "close" => (ExternalUnix::Close, Vec::new()),
        _ => {
            let inodes = text.split(',').filter(|t| !t.is_empty()).map(|t| decimal(t, text));
            (ExternalUnix::Refuse, inodes.collect::<Result<_, _>>()?)
        }
    })
}

/// `--ghost-limit`: bytes with K, M or G.
pub fn parse_ghost_limit(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

fn decimal(number: &str, text: &str) -> anyhow::Result<u64> {
    number.parse().with_context(|| format!("`{text}` has no number"))
}

/// Two hexadecimal numbers, `A:B`.
fn pair(key: &str, text: &str) -> anyhow::Result<(u64, u64)> {
    let parse = |n: &str| u64::from_str_radix(n.trim_start_matches("0x"), 16).ok();
    key.split_once(':')
        .and_then(|(a, b)| Some((parse(a)?, parse(b)?)))
        .with_context(|| format!("`{text}` has no two hexadecimal numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_understood() {
        let dump = |t| parse_dump(t).expect(t);
        assert_eq!(dump("mnt[/a b]:n"), External::Mount { key: "/a b".into(), value: "n".into() });
        assert_eq!(dump("net[12]:x"), External::NetNs { ino: 12, name: "x".into() });
        assert_eq!(dump("tty[8803:1d]"), External::Tty { rdev: 0x8803, dev: 0x1d });
        assert_eq!(dump("file[1f:20]"), External::File { mnt_id: 0x1f, ino: 0x20 });
        assert_eq!(dump("unix[7]"), External::Unix { ino: 7 });
        for bad in ["mnt[/a]", "mnt[]", "foo[1]", "net[x]:y", "plain", "tty[zz:1]"] {
            assert!(parse_dump(bad).is_err(), "{bad}");
        }
        assert!(parse_restore("net[1]:x").is_err());
    }

    #[test]
    fn descriptors_are_duplicated() {
        let (key, _fd) = inherit("fd[2]:pipe:[5]").expect("descriptor 2 is open");
        assert_eq!(key, "pipe:[5]");
        assert!(inherit("fd[9999]:x").is_err());
        assert!(inherit("fd[x]:y").is_err());
    }

    #[test]
    fn ghost_limits() {
        assert_eq!(parse_ghost_limit("2M"), Ok(2 << 20));
        assert!(parse_ghost_limit("M").is_err());
    }
}
