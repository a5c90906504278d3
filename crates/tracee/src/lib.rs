//! Stopped threads, remote system calls and remote memory, over ptrace.
//!
//! One controller thread does everything: it seizes, interrupts, runs system calls inside the
//! stopped task and reads and writes its memory. Nothing is linked or loaded into the task but a
//! few dozen bytes of machine code ([`gadget`]).
//!
//! - [`thread::StoppedThread`]: a live thread of somebody's program, stopped, with what it needs to
//!   go on unharmed.
//! - [`live::LiveSession`]: remote calls in such threads. If the controller dies in the middle, the
//!   thread itself goes back to where it was.
//! - [`stub::Stub`]: a task of our own that is being built up. It is killed when the controller
//!   dies.
//! - [`batch::Batch`]: the calls of one stop, with the memory that they need.
//!
//! Ptrace belongs to a thread: all of this must stay on the thread that seized.

pub mod batch;
pub mod error;
pub mod gadget;
pub mod live;
mod sigframe;
pub mod stub;
pub mod thread;

pub use arctern_sys::Pid;
pub use arctern_sys::memory::RemoteAddr;
pub use batch::{Arena, Arg, Batch, CallId};
pub use error::TraceeError;
