//! What the two hosts say.
//!
//! ```text
//! source                                   destination
//! Hello                                →
//!                                      ←   Hello
//! Offer                                →
//!                                      ←   Answer: everything that is in the way
//! Image, data                          →   (when it is not there)
//! Begin                                →
//!                                      ←   Ready: record, root and network are there, unnoticed
//! Files, data                          →   large files that it has changed (when there are any)
//!                                      ←   Stored
//! Round, data                          →   memory, any number of times, while the container runs
//!                                      ←   Stored
//! Rest, data                           →   frozen and locked from here on, the network may appear at the
//!                                          destination; memory written since the last round
//! Archive, data                        →   everything else
//!                                      ←   Built: nothing of it has run
//! Pass                                 →   connections by way of the source, if there are any
//!                                      ←   Passed
//! Commit                               →   written down by both, each before it acts
//!                                      ←   Running
//! Done                                 →   the source's copy is gone
//! ```
//!
//! At any time [`Answer::Failed`] ends the conversation, as does its end without a word: before the
//! commit the container stays the source's. `Ask` begins a conversation about an earlier move.

use std::net::IpAddr;

use arctern_container::transfer::{Blocker, Lap, Offer, Passage};
use arctern_storage::LayerBlob;
use serde::{Deserialize, Serialize};

/// Version of this conversation. Both sides must have the same.
pub const VERSION: u32 = 7;

/// From the source.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Who speaks.
    Hello(Hello),
    /// A container that is to move.
    Offer(Box<Offer>),
    /// The container's image follows as data, with the layers that are missing.
    Image,
    /// Bytes that mean nothing follow as data: they show how fast the link is.
    Probe,
    /// Make ready: the container comes.
    Begin,
    /// Files that the container has changed follow as an archive.
    Files,
    /// Memory follows as data ([`crate::pages`]): what was written since the round before.
    Round,
    /// The memory that was written since the last round follows as data. The container is frozen.
    Rest,
    /// The archive follows as data, and is built when it is complete.
    Archive,
    /// These connections come by way of the source: return them there.
    Pass(Box<Passage>),
    /// It is yours.
    Commit,
    /// It is gone here: the move can be forgotten.
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
        /// Layers of the image that are not here; none: the image is.
        missing: Option<Vec<LayerBlob>>,
    },
    /// To `Begin`.
    Ready,
    /// To files, a round, a probe.
    Stored,
    /// To the archive.
    Built {
        /// Where the time of the freeze went there.
        laps: Vec<Lap>,
        /// The same of the process that built it.
        builder: Vec<Lap>,
    },
    /// To `Pass`.
    Passed {
        /// Why they are not returned.
        refused: Option<String>,
    },
    /// To `Commit`.
    Running {
        /// What the user should know.
        warnings: Vec<String>,
        /// Where the time went since the commit.
        builder: Vec<Lap>,
    },
    /// To `Ask`: it was committed, and the container is here.
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
