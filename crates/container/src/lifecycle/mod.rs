//! The life of a container, one verb a file.

mod create;
mod exec;
mod inspect;
mod logs;
mod remove;
mod start;
mod stop;

pub use create::CreateOptions;
pub use exec::{ExecOptions, ExecSession};
pub use logs::{LogLine, LogReader};
pub use start::{Connection, Event, Started};
pub use stop::Stopped;
