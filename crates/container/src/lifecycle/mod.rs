//! The life of a container, one verb a file.

mod changes;
mod copy;
mod create;
mod exec;
mod inspect;
mod logs;
mod pause;
mod remove;
mod rename;
mod restart;
mod start;
mod stats;
mod stop;
mod top;
mod watch;

pub use copy::Place;
pub use create::CreateOptions;
pub(crate) use exec::Diverted;
pub use exec::{ExecOptions, ExecSession};
pub use logs::{LogLine, LogReader};
pub(crate) use pause::freezer;
pub use start::{Connection, Event, Started};
pub use stats::Usage;
pub use stop::Stopped;
pub use top::DESCRIPTORS;
pub use watch::Condition;
