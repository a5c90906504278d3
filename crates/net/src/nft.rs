//! nf_tables over netlink: transactions, and the few expressions that our rules are made of.
//!
//! Everything of one transaction goes to the kernel in one datagram between a begin and an end
//! mark, and takes effect as a whole or not at all. Numbers are those of
//! `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`. A rule is a list of expressions that
//! pass values on in 32-bit registers.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

pub use crate::expr::{Expr, meta};
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

/// Which packets of a device a chain sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What arrives (`NF_NETDEV_INGRESS`).
    In = 0,
    /// What leaves (`NF_NETDEV_EGRESS`, kernel 5.16).
    Out = 1,
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

    /// Makes a base chain of type `filter` that sees what passes one device.
    pub fn device_chain(&mut self, name: &str, device: &str, way: Way) -> &mut Self {
        self.message(NEWCHAIN, CREATE, |m, table| {
            m.text(1, table).text(3, name);
            let nested = m.nest(4);
            m.be32(1, way as u32).be32(2, 0).text(3, device);
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

/// An interface name as a register holds it.
pub fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// Whether the kernel refused something because it does not know it.
pub fn is_unsupported(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::OPNOTSUPP, Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT]
        .iter()
        .any(|e| code == Some(e.raw_os_error()))
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
