//! The few expressions that our nf_tables rules are made of.
//!
//! Numbers are those of `include/uapi/linux/netfilter/nf_tables.h`.

use crate::netlink::Messages;

/// One step of a rule.
#[derive(Clone, Copy, Debug)]
pub enum Expr<'a> {
    /// Loads a property of the packet; [`meta`] has the keys.
    Meta(u32, u32),
    /// Loads bytes of the Ethernet header: register, offset, length.
    Link(u32, u32, u32),
    /// Loads bytes of the network header: register, offset, length.
    Network(u32, u32, u32),
    /// Loads bytes of the transport header: register, offset, length.
    Transport(u32, u32, u32),
    /// Loads the kind of the packet's destination address (`RTN_LOCAL` is 2, host byte order).
    DestinationType(u32),
    /// Loads the connection's status bits.
    CtStatus(u32),
    /// Loads the connection's mark, in host byte order.
    CtMark(u32),
    /// Gives the connection the mark that a register holds.
    SetCtMark(u32),
    /// Gives the packet the mark that a register holds.
    SetMark(u32),
    /// Goes on if the register equals the value.
    Equal(u32, &'a [u8]),
    /// Goes on if the register differs from the value.
    Differs(u32, &'a [u8]),
    /// Keeps the bits of a register that are set in the mask.
    Mask(u32, &'a [u8]),
    /// Looks the key that begins in a register up in a map, puts the data into the same place; goes
    /// on if it is there.
    Lookup(u32, &'a str, u32),
    /// Goes on if the key that begins in a register is in a set.
    Member(u32, &'a str, u32),
    /// Loads a constant.
    Value(u32, &'a [u8]),
    /// Sends the frame out of the device whose index the register holds (`netdev` tables).
    SendTo(u32),
    /// Sends an IPv4 packet to the neighbour whose address the second register holds, out of the
    /// device whose index the first one holds (`netdev` tables).
    SendToNeighbour(u32, u32),
    /// Redirects the connection to the IPv4 address in the register and the port in the next one.
    DestinationNat(u32),
    /// Redirects the connection to the IPv6 address that begins in the register and the port after
    /// it.
    DestinationNat6(u32),
    /// Gives the connection the IPv4 address in the register as its source.
    SourceNat(u32),
    /// Gives the connection the address of the interface it leaves by.
    Masquerade,
    /// Nobody tracks the connection of this packet (before `prerouting -200`).
    Untracked,
    /// Drops the packet.
    Drop,
}

/// Keys of [`Expr::Meta`].
pub mod meta {
    /// The packet's mark.
    pub const MARK: u32 = 3;
    /// Name of the incoming interface, 16 bytes.
    pub const INPUT_NAME: u32 = 6;
    /// Name of the outgoing interface, 16 bytes.
    pub const OUTPUT_NAME: u32 = 7;
    /// Network protocol; IPv4 is 2.
    pub const NETWORK_PROTOCOL: u32 = 15;
    /// Transport protocol.
    pub const TRANSPORT_PROTOCOL: u32 = 16;
}

impl Expr<'_> {
    pub(crate) fn write(&self, m: &mut Messages) {
        let element = m.nest(1);
        match *self {
            Expr::Meta(register, key) => expression(m, "meta", |m| {
                m.be32(1, register).be32(2, key);
            }),
            Expr::Link(register, offset, len) => payload(m, register, 0, offset, len),
            Expr::Network(register, offset, len) => payload(m, register, 1, offset, len),
            Expr::Transport(register, offset, len) => payload(m, register, 2, offset, len),
            Expr::DestinationType(register) => expression(m, "fib", |m| {
                // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR
                m.be32(1, register).be32(2, 3).be32(3, 2);
            }),
            Expr::CtStatus(register) => expression(m, "ct", |m| {
                // NFT_CT_STATUS
                m.be32(1, register).be32(2, 2);
            }),
            Expr::CtMark(register) => expression(m, "ct", |m| {
                // NFT_CT_MARK
                m.be32(1, register).be32(2, 3);
            }),
            Expr::SetCtMark(register) => expression(m, "ct", |m| {
                m.be32(2, 3).be32(4, register);
            }),
            Expr::SetMark(register) => expression(m, "meta", |m| {
                m.be32(2, meta::MARK).be32(3, register);
            }),
            Expr::Equal(register, value) => compare(m, register, 0, value),
            Expr::Differs(register, value) => compare(m, register, 1, value),
            Expr::Mask(register, mask) => expression(m, "bitwise", |m| {
                let len = u32::try_from(mask.len()).unwrap_or(0);
                m.be32(1, register).be32(2, register).be32(3, len);
                let nested = m.nest(4);
                m.attr(1, mask);
                m.end(nested);
                let nested = m.nest(5);
                m.attr(1, &[0; 16][..mask.len().min(16)]);
                m.end(nested);
            }),
            Expr::Lookup(register, map, id) => expression(m, "lookup", |m| {
                m.text(1, map).be32(2, register).be32(3, register).be32(4, id);
            }),
            Expr::Member(register, set, id) => expression(m, "lookup", |m| {
                m.text(1, set).be32(2, register).be32(4, id);
            }),
            Expr::Value(register, value) => expression(m, "immediate", |m| {
                m.be32(1, register);
                let data = m.nest(2);
                m.attr(1, value);
                m.end(data);
            }),
            Expr::SendTo(register) => expression(m, "fwd", |m| {
                m.be32(1, register);
            }),
            Expr::SendToNeighbour(device, address) => expression(m, "fwd", |m| {
                // NFPROTO_IPV4
                m.be32(1, device).be32(2, address).be32(3, 2);
            }),
            Expr::SourceNat(register) => expression(m, "nat", |m| {
                // NFT_NAT_SNAT, NFPROTO_IPV4
                m.be32(1, 0).be32(2, 2).be32(3, register);
            }),
            Expr::DestinationNat(register) => expression(m, "nat", |m| {
                // NFT_NAT_DNAT, NFPROTO_IPV4, address and port registers.
                m.be32(1, 1).be32(2, 2).be32(3, register).be32(5, register + 1);
            }),
            Expr::DestinationNat6(register) => expression(m, "nat", |m| {
                // NFT_NAT_DNAT, NFPROTO_IPV6; an address fills four registers.
                m.be32(1, 1).be32(2, 10).be32(3, register).be32(5, register + 4);
            }),
            Expr::Masquerade => expression(m, "masq", |_| ()),
            Expr::Untracked => expression(m, "notrack", |_| ()),
            Expr::Drop => expression(m, "immediate", |m| {
                m.be32(1, 0);
                let data = m.nest(2);
                let verdict = m.nest(2);
                m.be32(1, 0);
                m.end(verdict);
                m.end(data);
            }),
        }
        m.end(element);
    }
}

fn expression(m: &mut Messages, name: &str, fill: impl FnOnce(&mut Messages)) {
    m.text(1, name);
    let data = m.nest(2);
    fill(m);
    m.end(data);
}

fn payload(m: &mut Messages, register: u32, base: u32, offset: u32, len: u32) {
    expression(m, "payload", |m| {
        m.be32(1, register).be32(2, base).be32(3, offset).be32(4, len);
    });
}

fn compare(m: &mut Messages, register: u32, operation: u32, value: &[u8]) {
    expression(m, "cmp", |m| {
        m.be32(1, register).be32(2, operation);
        let nested = m.nest(3);
        m.attr(1, value);
        m.end(nested);
    });
}
