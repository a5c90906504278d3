//! Live TCP connections: both queues, sequence numbers, windows and what the two sides agreed upon.
//!
//! Capture ([`capture`]): found with the descriptors, read when the network is locked. A socket is in
//! repair mode only while it is read, and again when its tasks are about to be killed, so that it is
//! closed without a word.
//!
//! Restore ([`restore`]): the sockets are made with all others, unconnected; when every listener is
//! there the controller gives them their connections, in repair mode, which they leave together when
//! nothing can fail any more. A FIN of the peer, and its acknowledgement of ours, have no place in
//! repair mode: they arrive as packets ([`packet`]).
//!
//! `tcp-stream-%x.img` is CRIU's: sequence numbers are those after the last byte and count a FIN,
//! lengths do not.

mod capture;
mod collect;
mod inject;
mod moments;
mod packet;
mod restore;
mod shape;
mod waiting;
mod wake;
mod window;

pub(super) use capture::Collected;
pub(super) use collect::options;
pub(super) use inject::Injector;
pub(super) use restore::{check, is_clamp, is_live};
pub(crate) use waiting::examine;
pub(super) use wake::Built;
pub(crate) use window::ClosedWindows;
