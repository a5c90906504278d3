//! CRIU's protobuf messages, declared by hand for prost: no protoc is needed to build.
//!
//! One module per CRIU `.proto` file, every message re-exported here. Names are CRIU's in Rust's
//! spelling (`task_core_entry` is [`TaskCoreEntry`]), field names and numbers are CRIU's. Syntax is
//! proto2: optional fields are `Option`, repeated scalars are written one tag per value and read
//! packed too, unknown fields are skipped. A missing required field reads as its default; what the
//! values mean is checked by those who use them.
//!
//! Every message serialises to readable JSON through serde (enum values by name, addresses and masks
//! in hexadecimal), which is what [`crate::describe`] prints.
//!
//! Left out: messages of other architectures than x86-64, whose fields a reader skips.

pub mod readable;

mod apparmor;
mod autofs;
mod binfmt_misc;
mod bpfmap_data;
mod bpfmap_file;
mod cgroup;
mod core_x86;
mod cpuinfo;
mod creds;
mod datagram;
mod eventfd;
mod eventpoll;
mod ext_file;
mod fdinfo;
mod fh;
mod fifo;
mod file_lock;
mod fown;
mod fs;
mod fsnotify;
mod ghost_file;
mod img_streamer;
mod inventory;
mod ipc_desc;
mod ipc_msg;
mod ipc_sem;
mod ipc_shm;
mod ipc_var;
mod macvlan;
mod memfd;
mod mm;
mod mnt;
mod netdev;
mod ns;
mod packet_sock;
mod pagemap;
mod pidfd;
mod pidns;
mod pipe;
mod pipe_data;
mod pstree;
mod regfile;
mod remap_file_path;
mod rlimit;
mod rpc;
mod rseq;
mod sa;
mod seccomp;
mod siginfo;
mod signalfd;
mod sit;
mod sk_inet;
mod sk_netlink;
mod sk_opts;
mod sk_packet;
mod sk_unix;
mod stats;
mod sysctl;
mod task_core;
mod tcp_stream;
mod timens;
mod timer;
mod timerfd;
mod timeval;
mod tty;
mod tun;
mod unix_peer;
mod unix_pending;
mod userns;
mod utsns;
mod vma;

pub use apparmor::*;
pub use autofs::*;
pub use binfmt_misc::*;
pub use bpfmap_data::*;
pub use bpfmap_file::*;
pub use cgroup::*;
pub use core_x86::*;
pub use cpuinfo::*;
pub use creds::*;
pub use datagram::*;
pub use eventfd::*;
pub use eventpoll::*;
pub use ext_file::*;
pub use fdinfo::*;
pub use fh::*;
pub use fifo::*;
pub use file_lock::*;
pub use fown::*;
pub use fs::*;
pub use fsnotify::*;
pub use ghost_file::*;
pub use img_streamer::*;
pub use inventory::*;
pub use ipc_desc::*;
pub use ipc_msg::*;
pub use ipc_sem::*;
pub use ipc_shm::*;
pub use ipc_var::*;
pub use macvlan::*;
pub use memfd::*;
pub use mm::*;
pub use mnt::*;
pub use netdev::*;
pub use ns::*;
pub use packet_sock::*;
pub use pagemap::*;
pub use pidfd::*;
pub use pidns::*;
pub use pipe::*;
pub use pipe_data::*;
pub use pstree::*;
pub use regfile::*;
pub use remap_file_path::*;
pub use rlimit::*;
pub use rpc::*;
pub use rseq::*;
pub use sa::*;
pub use seccomp::*;
pub use siginfo::*;
pub use signalfd::*;
pub use sit::*;
pub use sk_inet::*;
pub use sk_netlink::*;
pub use sk_opts::*;
pub use sk_packet::*;
pub use sk_unix::*;
pub use stats::*;
pub use sysctl::*;
pub use task_core::*;
pub use tcp_stream::*;
pub use timens::*;
pub use timer::*;
pub use timerfd::*;
pub use timeval::*;
pub use tty::*;
pub use tun::*;
pub use unix_peer::*;
pub use unix_pending::*;
pub use userns::*;
pub use utsns::*;
pub use vma::*;

/// The names that CRIU gives to the values of one of its enums.
pub trait CriuEnum {
    /// The name of `value`, None where CRIU has none.
    fn name(value: i32) -> Option<&'static str>;
}
