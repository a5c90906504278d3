//! Arctern's own: whom unix sockets show as their peer (`arctern-unix-peers.img`).

/// What SO_PEERCRED says of a socket, unix(7). CRIU's images have no place for that.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct UnixPeerEntry {
    /// File id of the socket.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Process id inside of the tree's pid namespace, of a process that may have ended; 0: outside.
    #[prost(int32, required, tag = "2")]
    pub pid: i32,
    /// Effective user id.
    #[prost(uint32, required, tag = "3")]
    pub uid: u32,
    /// Effective group id.
    #[prost(uint32, required, tag = "4")]
    pub gid: u32,
}
