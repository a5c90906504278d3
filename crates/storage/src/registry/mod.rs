//! Registries: where images come from and go to, by the distribution API of OCI.
//!
//! A name becomes a [`Reference`]; [`Conf`] (`registries.conf`) says where it is to be looked for;
//! [`login`] has the credentials, `tls` the certificates; `client` speaks HTTP; `pull` and `push` move
//! images. Everything that comes is compared with its digest while it streams: a layer goes in one
//! pass to the archive that is kept and to the directory it is unpacked into, and neither gets its
//! place before both digests matched.
//!
//! Requests block; layers are moved by a few threads.

pub mod answer;
mod client;
pub mod conf;
pub mod error;
pub mod login;
pub mod manifest;
mod pull;
mod push;
pub mod reference;
mod tls;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

pub use conf::Conf;
pub use error::RegistryError;
pub use login::Login;
pub use manifest::{Format, Platform};
pub use pull::{PullOptions, PullPolicy};
pub use push::{PushOptions, Pushed};
pub use reference::Reference;

/// How a registry is entered.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Credentials in place of those of the files.
    pub login: Option<Login>,
    /// The file with credentials in place of the usual ones.
    pub authfile: Option<PathBuf>,
    /// Whether certificates are checked; by default as `registries.conf` says, else yes.
    pub tls_verify: Option<bool>,
    /// Directory with certificates in place of the usual ones.
    pub cert_dir: Option<PathBuf>,
}

/// What is told while images move.
#[derive(Clone, Copy, Debug)]
pub enum Transfer<'a> {
    /// An image is looked for here.
    Trying(&'a str),
    /// Something did not work and is tried elsewhere.
    Warning(&'a str),
    /// A blob begins to move; `key` names it from now on.
    Begin {
        /// Its digest, hexadecimal.
        key: &'a str,
        /// Its length in bytes.
        length: u64,
    },
    /// So many more bytes of it have moved.
    Moved {
        /// Its digest.
        key: &'a str,
        /// How many.
        bytes: u64,
    },
    /// It is there.
    Done {
        /// Its digest.
        key: &'a str,
        /// It was there before.
        known: bool,
    },
}

/// Who listens. Called by several threads.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Transfer<'_>);
}

/// Nobody listens.
impl Progress for () {
    fn event(&self, _: Transfer<'_>) {}
}

/// Blobs that move at a time.
const PARALLEL: usize = 4;

/// Sees whether a registry takes credentials: `login` before they are kept.
///
/// # Errors
/// [`RegistryError::Denied`] when it does not; others when it cannot be asked.
pub fn try_login(registry: &str, access: &Access) -> Result<(), RegistryError> {
    let conf = Conf::load()?;
    let image = Reference { repository: registry.to_owned(), tag: None, digest: None };
    let source = conf.destination(&image)?;
    client::Client::connect(&source, access)?.enter()
}

/// Does a number of jobs by a few threads. After a failure no new one is begun, those that run see the
/// flag, and the first failure is given.
fn in_parallel<T: Send, E: Send>(
    jobs: usize,
    work: impl Fn(usize, &AtomicBool) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let results: Mutex<Vec<(usize, Result<T, E>)>> = Mutex::default();
    let one_after_the_other = || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= jobs {
                return;
            }
            let result = work(number, &stop);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            // After the failure is written down: it is the reason for those that follow.
            let failed = result.is_err();
            results.push((number, result));
            if failed {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(PARALLEL) {
            scope.spawn(one_after_the_other);
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut done = Vec::with_capacity(jobs);
    for (number, result) in results {
        done.push((number, result?));
    }
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_keep_their_order_and_the_first_failure_ends_them() {
        let doubled = in_parallel(20, |n, _| Ok::<_, ()>(n * 2)).expect("done");
        assert_eq!(doubled, (0..20).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(in_parallel(20, |n, _| if n < 5 { Ok(n) } else { Err("no") }), Err("no"));
        assert_eq!(in_parallel(0, |_, _| Err::<(), _>("never")), Ok(Vec::new()));
    }
}
