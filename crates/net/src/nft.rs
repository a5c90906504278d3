//! nf_tables over netlink: transactions, and the few expressions that our rules are made of.
//!
//! Everything of one transaction goes to the kernel in one datagram between a begin and an end
//! mark, and takes effect as a whole or not at all. Numbers are those of
//! `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`. A rule is a list of expressions that
//! pass values on in 32-bit registers.

use std::io;
use std::os::fd::BorrowedFd;

use crate::netlink::{ACK, APPEND, CREATE, DUMP, Family, Messages, Reply, Socket, as_text, find};

/// `NFPROTO_INET`.
const INET: u8 = 1;

/// What kind of packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    Inet = 1,
    /// Frames on one device (`NFPROTO_NETDEV`).
    Netdev = 5,
    /// Frames on bridges (`NFPROTO_BRIDGE`).
    Bridge = 7,
}
/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message type.
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const NEWSET: u16 = SUBSYSTEM | 9;
const GETSET: u16 = SUBSYSTEM | 10;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const DELSETELEM: u16 = SUBSYSTEM | 14;

/// The first of the sixteen 32-bit registers (`NFT_REG32_00`).
pub const REG: u32 = 8;
/// The register after it: two in a row make a concatenated key.
pub const REG2: u32 = 9;

/// What a base chain hooks into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `NF_INET_PRE_ROUTING`, `NF_BR_PRE_ROUTING`.
    Prerouting = 0,
    /// `NF_INET_LOCAL_IN`.
    Input = 1,
    /// `NF_INET_FORWARD`.
    Forward = 2,
    /// `NF_INET_LOCAL_OUT`.
    Output = 3,
    /// `NF_INET_POST_ROUTING`, `NF_BR_POST_ROUTING`.
    Postrouting = 4,
}

/// A lookup table from a concatenated key to concatenated data.
#[derive(Clone, Copy, Debug)]
pub struct MapType {
    /// Name within its table.
    pub name: &'static str,
    /// Identifies it within the transaction that makes it.
    pub id: u32,
    /// nft's number for the key's type; for listings only.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// nft's number for the data's type.
    pub data_type: u32,
    /// Bytes of data.
    pub data_len: u32,
}

/// An element of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The key's bytes.
    pub key: Vec<u8>,
    /// The data's bytes.
    pub data: Vec<u8>,
    /// Comment as `nft list` shows it.
    pub comment: String,
}

/// A transaction under construction.
#[derive(Debug)]
pub struct Batch {
    messages: Messages,
    begin: u32,
    next: u32,
    family: TableFamily,
    table: String,
}

/// `struct nfgenmsg`.
fn genmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Batch {
    /// A transaction on the table `inet NAME`.
    pub fn new(table: &str) -> Self {
        let family = TableFamily::Inet;
        let messages = Messages::new();
        let mut batch = Batch { messages, begin: 1, next: 1, family, table: table.into() };
        batch.messages.begin(BATCH_BEGIN, 0, 1, &genmsg(0, SUBSYSTEM >> 8)).finish();
        batch
    }

    /// What follows is about another table.
    pub fn on(&mut self, family: TableFamily, table: &str) -> &mut Self {
        self.family = family;
        self.table = table.into();
        self
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Messages, &str)) {
        self.next += 1;
        self.messages.begin(kind, flags | ACK, self.next, &genmsg(self.family as u8, 0));
        fill(&mut self.messages, &self.table);
        self.messages.finish();
    }

    /// Makes the table; that it exists is no error.
    pub fn table(&mut self) -> &mut Self {
        self.message(NEWTABLE, CREATE, |m, table| {
            m.text(1, table).be32(2, 0);
        });
        self
    }

    /// Makes the table so that nobody else can change it and that it goes with the socket that commits
    /// it (kernel 5.12).
    pub fn owned_table(&mut self) -> &mut Self {
        const OWNER: u32 = 2;
        self.message(NEWTABLE, CREATE, |m, table| {
            m.text(1, table).be32(2, OWNER);
        });
        self
    }

    /// Removes the table with everything in it.
    pub fn delete_table(&mut self) -> &mut Self {
        self.message(DELTABLE, 0, |m, table| {
            m.text(1, table);
        });
        self
    }

    /// Makes a base chain of type `nat` or `filter` that accepts what no rule decides.
    pub fn chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) -> &mut Self {
        self.message(NEWCHAIN, CREATE, |m, table| {
            m.text(1, table).text(3, name);
            let nested = m.nest(4);
            // A negative priority travels as its two's complement.
            m.be32(1, hook as u32).attr(2, &priority.to_be_bytes());
            m.end(nested);
            m.text(7, kind);
        });
        self
    }

    /// Makes a base chain of type `filter` that sees what arrives on one device.
    pub fn ingress_chain(&mut self, name: &str, device: &str) -> &mut Self {
        self.message(NEWCHAIN, CREATE, |m, table| {
            m.text(1, table).text(3, name);
            let nested = m.nest(4);
            // NF_NETDEV_INGRESS
            m.be32(1, 0).be32(2, 0).text(3, device);
            m.end(nested);
            m.text(7, "filter");
        });
        self
    }

    /// Makes a set: a map whose data nobody looks at.
    pub fn set(&mut self, name: &str, id: u32, key_type: u32, key_len: u32) -> &mut Self {
        self.message(NEWSET, CREATE, |m, table| {
            m.text(1, table).text(2, name).be32(3, 0).be32(4, key_type).be32(5, key_len);
            m.be32(10, id);
        });
        self
    }

    /// Makes a map.
    pub fn map(&mut self, map: &MapType) -> &mut Self {
        const NFT_SET_MAP: u32 = 8;
        self.message(NEWSET, CREATE, |m, table| {
            m.text(1, table)
                .text(2, map.name)
                .be32(3, NFT_SET_MAP)
                .be32(4, map.key_type)
                .be32(5, map.key_len)
                .be32(6, map.data_type)
                .be32(7, map.data_len)
                .be32(10, map.id);
        });
        self
    }

    /// Appends a rule to a chain.
    pub fn rule(&mut self, chain: &str, expressions: &[Expr<'_>]) -> &mut Self {
        self.message(NEWRULE, CREATE | APPEND, |m, table| {
            m.text(1, table).text(2, chain);
            let list = m.nest(4);
            for expression in expressions {
                expression.write(m);
            }
            m.end(list);
        });
        self
    }

    /// Adds elements to a map. An element that is there already fails the transaction (`EEXIST`),
    /// unless it has the same data.
    pub fn add_elements(&mut self, map: &str, elements: &[Element]) -> &mut Self {
        self.elements(NEWSETELEM, CREATE, map, elements)
    }

    /// Removes elements from a map. One that is not there fails the transaction (`ENOENT`).
    pub fn delete_elements(&mut self, map: &str, elements: &[Element]) -> &mut Self {
        self.elements(DELSETELEM, 0, map, elements)
    }

    fn elements(&mut self, kind: u16, flags: u16, map: &str, elements: &[Element]) -> &mut Self {
        // One message holds at most 64 KiB of elements, because they are one attribute.
        for some in elements.chunks(256) {
            self.message(kind, flags, |m, table| {
                m.text(1, table).text(2, map);
                let list = m.nest(3);
                for element in some {
                    let item = m.nest(1);
                    let key = m.nest(1);
                    m.attr(1, &element.key);
                    m.end(key);
                    if kind == NEWSETELEM {
                        if !element.data.is_empty() {
                            let data = m.nest(2);
                            m.attr(1, &element.data);
                            m.end(data);
                        }
                        m.attr(6, &comment(&element.comment));
                    }
                    m.end(item);
                }
                m.end(list);
            });
        }
        self
    }
}

/// User data as nft(8) writes it: type 0 is a comment, then length, text, zero byte.
fn comment(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(120).chain([0]).collect();
    // Bounded by the line above.
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0, len], &text[..]].concat()
}

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
    /// Redirects the connection to the IPv4 address in the register and the port in the next one.
    DestinationNat(u32),
    /// Redirects the connection to the IPv6 address that begins in the register and the port after
    /// it.
    DestinationNat6(u32),
    /// Gives the connection the address of the interface it leaves by.
    Masquerade,
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
    fn write(&self, m: &mut Messages) {
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
            Expr::DestinationNat(register) => expression(m, "nat", |m| {
                // NFT_NAT_DNAT, NFPROTO_IPV4, address and port registers.
                m.be32(1, 1).be32(2, 2).be32(3, register).be32(5, register + 1);
            }),
            Expr::DestinationNat6(register) => expression(m, "nat", |m| {
                // NFT_NAT_DNAT, NFPROTO_IPV6; an address fills four registers.
                m.be32(1, 1).be32(2, 10).be32(3, register).be32(5, register + 4);
            }),
            Expr::Masquerade => expression(m, "masq", |_| ()),
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

/// An interface name as a register holds it.
pub fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// A handle on the nf_tables of one network namespace.
#[derive(Debug)]
pub struct Nft(Socket);

impl Nft {
    /// The current thread's network namespace.
    ///
    /// # Errors
    /// Those of `socket(2)`.
    pub fn open() -> io::Result<Self> {
        Socket::open(Family::Netfilter).map(Nft)
    }

    /// The network namespace of a socket of the netfilter family.
    pub fn over(socket: Socket) -> Self {
        Nft(socket)
    }

    /// Another network namespace.
    ///
    /// # Errors
    /// Those of `setns(2)` and `socket(2)`.
    pub fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        Socket::open_in(Family::Netfilter, netns).map(Nft)
    }

    /// Commits a transaction.
    ///
    /// # Errors
    /// The kernel's first answer that is no success; nothing was changed then.
    pub fn commit(&mut self, batch: Batch) -> io::Result<()> {
        let Batch { mut messages, begin, next, .. } = batch;
        messages.begin(BATCH_END, 0, next + 1, &genmsg(0, SUBSYSTEM >> 8)).finish();
        if next == begin {
            return Ok(());
        }
        self.0.reserve(messages.bytes().len())?;
        self.0.send(messages.bytes())?;
        self.0.receive_acks(begin, begin + 1, next).map_err(|(_, e)| e)
    }

    /// Whether the table `inet NAME` exists.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn has_table(&mut self, name: &str) -> io::Result<bool> {
        self.has(TableFamily::Inet, name)
    }

    /// Whether a table exists.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn has(&mut self, family: TableFamily, name: &str) -> io::Result<bool> {
        let found = self.0.request(GETTABLE, 0, &genmsg(family as u8, 0), |m| {
            m.text(1, name);
        });
        match found {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The tables of the `inet` family that have a map called `map`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn tables_with(&mut self, map: &str) -> io::Result<Vec<String>> {
        let replies = self.0.request(GETSET, DUMP, &genmsg(INET, 0), |_| ())?;
        Ok(replies
            .iter()
            .filter_map(|reply| {
                let body = reply.body.get(4..)?;
                let name = find(body, 2).and_then(as_text)?;
                let table = find(body, 1).and_then(as_text)?;
                (name == map).then(|| table.to_owned())
            })
            .collect())
    }

    /// The elements of a map.
    ///
    /// # Errors
    /// The kernel's answer, `ENOENT` when table or map do not exist.
    pub fn elements(&mut self, table: &str, map: &str) -> io::Result<Vec<Element>> {
        let replies = self.0.request(GETSETELEM, DUMP, &genmsg(INET, 0), |m| {
            m.text(1, table).text(2, map);
        })?;
        Ok(replies.iter().flat_map(elements_in).collect())
    }
}

fn elements_in(reply: &Reply) -> Vec<Element> {
    let body = reply.body.get(4..).unwrap_or_default();
    let list = find(body, 3).unwrap_or_default();
    crate::netlink::attrs(list).filter_map(|(_, element)| parse_element(element)).collect()
}

fn parse_element(element: &[u8]) -> Option<Element> {
    let value = |kind| find(find(element, kind)?, 1).map(<[u8]>::to_vec);
    let comment = match find(element, 6) {
        Some([0, len, rest @ ..]) => rest.get(..usize::from(*len)).and_then(as_text),
        _ => None,
    };
    Some(Element {
        key: value(1)?,
        data: value(2).unwrap_or_default(),
        comment: comment.unwrap_or_default().to_owned(),
    })
}
