//! What a state says about the two ends of a connection.

use arctern_sys::tcp::state;

/// How far the end of one direction has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// More may come.
    Open,
    /// A FIN was written; the peer has not acknowledged it.
    Closed,
    /// A FIN was written and acknowledged.
    Acknowledged,
}

/// The two directions of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// What we send.
    pub sending: End,
    /// Whether the peer's FIN has come.
    pub peer_closed: bool,
    /// Whether the peer's FIN came before ours was written.
    pub peer_first: bool,
}

/// The shape of a connected state; None for the others.
pub(super) fn shape(state: u8) -> Option<Shape> {
    let (sending, peer_closed, peer_first) = match state {
        state::ESTABLISHED => (End::Open, false, false),
        state::CLOSE_WAIT => (End::Open, true, true),
        state::FIN_WAIT1 => (End::Closed, false, false),
        state::FIN_WAIT2 => (End::Acknowledged, false, false),
        state::CLOSING => (End::Closed, true, false),
        state::LAST_ACK => (End::Closed, true, true),
        _ => return None,
    };
    Some(Shape { sending, peer_closed, peer_first })
}

impl Shape {
    /// Sequence numbers that a FIN takes in the direction that we send.
    pub fn sent_fin(self) -> u32 {
        u32::from(self.sending != End::Open)
    }

    /// Sequence numbers that the peer's FIN takes.
    pub fn received_fin(self) -> u32 {
        u32::from(self.peer_closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connected_states_have_a_shape() {
        let shaped: Vec<u8> = (1..=12).filter(|state| shape(*state).is_some()).collect();
        assert_eq!(shaped, [1, 4, 5, 8, 9, 11]);
    }
}
