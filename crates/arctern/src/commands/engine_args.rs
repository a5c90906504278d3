//! Options that `checkpoint` and `restore` have in common: what is carried and what is left out.

use arctern_engine::options::TcpPolicy;

/// What is done about connections and locks.
#[derive(Debug, clap::Args)]
pub struct EngineArgs {
    /// Keep the images with the container, also where they have done their service: beside one that
    /// goes on, and after a restore
    #[arg(short, long)]
    pub keep: bool,
    /// Also live TCP connections; without it they are refused. The restored container needs the
    /// address that it had
    #[arg(long, conflicts_with = "tcp_close")]
    pub tcp_established: bool,
    /// Drop live TCP connections: the program finds them closed
    #[arg(long)]
    pub tcp_close: bool,
    /// Also file locks
    #[arg(long)]
    pub file_locks: bool,
    /// Print statistics as JSON
    #[arg(long)]
    pub print_stats: bool,
}

impl EngineArgs {
    /// What is done about live TCP connections.
    pub fn tcp(&self) -> TcpPolicy {
        match (self.tcp_established, self.tcp_close) {
            (true, _) => TcpPolicy::Established,
            (_, true) => TcpPolicy::Close,
            _ => TcpPolicy::Refuse,
        }
    }
}
