//! What the two hosts say.
//!
//! ```text
//! source                                   destination
//! Hello                                →
//!                                      ←   Hello
//! Offer: the containers that move      →
//!                                      ←   Answer: everything that is in the way
//! Image, data                          →   (when it is not there; for each)
//! Begin                                →
//!                                      ←   Ready: records, roots, networks are there, unnoticed
//! Files, data                          →   large files that one has changed (when there are any)
//!                                      ←   Stored
//! Round, data                          →   memory of one, any number of times, while they run
//!                                      ←   Stored
//! Rest, data                           →   one is frozen and locked from here on, its network may appear
//!                                          at the destination; memory written since the last round
//! Archive, data                        →   everything else of that one
//!                                      ←   Built, when the archives of all are there: nothing has run
//! Pass                                 →   connections by way of the source, if one has any
//!                                      ←   Passed
//! Commit                               →   of all; written down by both, each before it acts
//!                                      ←   Running
//! Done                                 →   the source's copies are gone
//! ```
//!
//! Containers are named by their place in the offer. Archives come in that order. At any time
//! [`Answer::Failed`] ends the conversation, as does its end without a word: before the
//! commit the container stays the source's. `Ask` begins a conversation about an earlier move.

use std::net::IpAddr;

use arctern_container::transfer::{Blocker, Lap, Offer, Passage};
use arctern_storage::LayerBlob;
use serde::{Deserialize, Serialize};

/// Version of this conversation. Both sides must have the same.
pub const VERSION: u32 = 8;

/// From the source.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Who speaks.
    Hello(Hello),
    /// Containers that are to move together.
    Offer(Vec<Offer>),
    /// The image of one of them follows as data, with the layers that are missing.
    Image,
    /// Bytes that mean nothing follow as data: they show how fast the link is.
    Probe,
    /// Make ready: they come.
    Begin,
    /// Files that this container has changed follow as an archive.
    Files(usize),
    /// Memory of this container follows as data ([`crate::pages`]): what was written since the round
    /// before.
    Round(usize),
    /// The memory of this container that was written since the last round follows as data. It is
    /// frozen.
    Rest(usize),
    /// The archive of this container follows as data, and is built when it is complete.
    Archive(usize),
    /// These connections of this container come by way of the source: return them there.
    Pass(usize, Box<Passage>),
    /// They are yours.
    Commit,
    /// They are gone here: the move can be forgotten.
    Done,
    /// What became of this move? If nothing was decided, it is given up.
    Ask {
        /// Which one.
        transfer: String,
    },
}

/// From the destination.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Who speaks.
    Hello(Hello),
    /// To an offer.
    Offer {
        /// Everything that is in the way.
        blockers: Vec<Blocker>,
        /// Of each container, the layers of its image that are not here; none: the image is.
        missing: Vec<Option<Vec<LayerBlob>>>,
    },
    /// To `Begin`.
    Ready,
    /// To files, a round, a probe.
    Stored,
    /// To the last archive: each of them.
    Built(Vec<Building>),
    /// To `Pass`.
    Passed {
        /// Why they are not returned.
        refused: Option<String>,
    },
    /// To `Commit`.
    Running(Vec<Release>),
    /// To `Ask`: it was committed, and the containers are here.
    Taken,
    /// To `Ask`: it was not committed, and never will be.
    GivenUp,
    /// It did not work, and nothing of it is left; after a commit, what is left.
    Failed {
        /// The message with its causes.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// One container that was built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Building {
    /// Where the time of the freeze went there.
    pub laps: Vec<Lap>,
    /// The same of the process that built it.
    pub builder: Vec<Lap>,
}

/// One container that was let go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Release {
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Where the time went since the commit.
    pub builder: Vec<Lap>,
    /// Why it does not run there, whose it is: its shim was killed, say.
    pub stopped: Option<String>,
}

/// Who speaks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The program's version, for people.
    pub program: String,
    /// The address at which the destination was called, as it sees it.
    #[serde(default)]
    pub called_at: Option<IpAddr>,
}

impl Hello {
    /// This program.
    #[must_use]
    pub fn new() -> Hello {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        // sshd says: client's address and port, own address and port.
        let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
        let called_at = connection.split(' ').nth(2).and_then(|address| address.parse().ok());
        Hello { version: VERSION, program, called_at }
    }
}

impl Default for Hello {
    fn default() -> Self {
        Self::new()
    }
}
