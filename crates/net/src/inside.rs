//! The lock of a container that is a machine of a segment by a device of its own (macvlan): there is
//! no bridge that could hold its packets, so they are dropped in its network namespace, before
//! anything in it answers them.
//!
//! One that is restored is hidden besides, where the kernel can do it: nothing leaves its device, so
//! that nobody learns where it is before its lock is opened. What is sent to it goes on to the host
//! that it came from, which keeps it ([`crate::forward`]).
//!
//! A lock goes with the namespace, and is not needed after it: what is sent to an address that nobody
//! has gets no answer from this host, which has no part in it. ARP and neighbour discovery pass, so
//! that peers do not give the container up; so does what the container sends to itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Doing, NetworkError};
use crate::nft::{Batch, Expr, Hook, Nft, REG, TableFamily, Way, interface, is_unsupported, meta};

const TABLE: &str = "arctern-lock";
/// On the device; of the family for single devices.
const HIDDEN: &str = "arctern-hidden";
/// Before everybody else's chains.
const FIRST: i32 = -1000;
const ICMPV6: [u8; 1] = [58];

/// The lock of everything in a network namespace.
#[derive(Debug)]
pub struct InsideLock(OwnedFd);

impl InsideLock {
    /// The lock of this namespace, as it stands.
    pub fn new(netns: OwnedFd) -> Self {
        InsideLock(netns)
    }

    /// The namespace.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Locks. That it is locked already is no error.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn lock(&self) -> Result<(), NetworkError> {
        lock(self.0.as_fd())
    }

    /// Opens the lock. That it is open is no error.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn unlock(&self) -> Result<(), NetworkError> {
        let mut nft = open(self.0.as_fd())?;
        let mut batch = Batch::new(TABLE);
        // Made so that it can be removed, whether it was there or not.
        batch.table().delete_table();
        batch.on(TableFamily::Netdev, HIDDEN).table().delete_table();
        match nft.commit(batch) {
            Err(e) if is_unsupported(&e) => {
                let mut batch = Batch::new(TABLE);
                batch.table().delete_table();
                nft.commit(batch)
            }
            other => other,
        }
        .doing("unlock", "the container's network namespace")
    }
}

fn open(netns: BorrowedFd<'_>) -> Result<Nft, NetworkError> {
    Nft::open_in(netns).doing("enter", "the container's network namespace")
}

/// Locks a namespace.
pub(crate) fn lock(netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let loopback = interface("lo");
    let mut batch = Batch::new(TABLE);
    batch.table().delete_table().table();
    for (chain, hook, device) in
        [("in", Hook::Input, meta::INPUT_NAME), ("out", Hook::Output, meta::OUTPUT_NAME)]
    {
        batch.chain(chain, "filter", hook, FIRST);
        batch.rule(
            chain,
            &[
                Expr::Meta(REG, device),
                Expr::Differs(REG, &loopback),
                Expr::Meta(REG, meta::TRANSPORT_PROTOCOL),
                Expr::Differs(REG, &ICMPV6),
                Expr::Drop,
            ],
        );
    }
    open(netns)?.commit(batch).doing("lock", "the container's network namespace")
}

/// Lets nothing leave by a device of a namespace, not even answers to who looks for it, until
/// [`InsideLock::unlock`]. Where the kernel cannot do that (before 5.16) nothing is done.
pub(crate) fn hide(netns: BorrowedFd<'_>, device: &str) -> Result<(), NetworkError> {
    let mut batch = Batch::new(HIDDEN);
    batch.on(TableFamily::Netdev, HIDDEN).table();
    batch.device_chain("out", device, Way::Out).rule("out", &[Expr::Drop]);
    match open(netns)?.commit(batch) {
        Err(e) if is_unsupported(&e) => Ok(()),
        other => other.doing("hide", device),
    }
}
