//! Arctern's own: unix connections that wait to be accepted, in that order
//! (`arctern-unix-pending.img`).

/// A connection that nobody has accepted, with what it has sent. CRIU's images have no place for that.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct UnixPendingEntry {
    /// File id of the listening socket.
    #[prost(uint32, required, tag = "1")]
    pub listener: u32,
    /// File id of the socket that has connected; missing when it is closed.
    #[prost(uint32, optional, tag = "2")]
    pub client: Option<u32>,
    /// Bytes of each message; together they follow the entry.
    #[prost(uint32, repeated, packed = "false", tag = "3")]
    pub lengths: Vec<u32>,
}
