//! CRIU's `fdinfo.proto`: descriptor tables and the envelope of open files (`fdinfo-%u.img` and `files.img`).

use super::{
    BpfmapFileEntry, EventfdFileEntry, EventpollFileEntry, ExtFileEntry, FanotifyFileEntry,
    FifoEntry, InetSkEntry, InotifyFileEntry, MemfdFileEntry, NetlinkSkEntry, NsFileEntry,
    PacketSockEntry, PidfdEntry, PipeEntry, RegFileEntry, SignalfdEntry, TimerfdEntry,
    TtyFileEntry, TunfileEntry, UnixSkEntry,
};

/// CRIU's `fd_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FdTypes {
    Und = 0,
    Reg = 1,
    Pipe = 2,
    Fifo = 3,
    Inetsk = 4,
    Unixsk = 5,
    Eventfd = 6,
    Eventpoll = 7,
    Inotify = 8,
    Signalfd = 9,
    Packetsk = 10,
    Tty = 11,
    Fanotify = 12,
    Netlinksk = 13,
    Ns = 14,
    Tunf = 15,
    Ext = 16,
    Timerfd = 17,
    Memfd = 18,
    Bpfmap = 19,
    Pidfd = 20,
    CtlTty = 65534,
    AutofsPipe = 65535,
}

impl super::CriuEnum for FdTypes {
    fn name(value: i32) -> Option<&'static str> {
        Some(match Self::try_from(value).ok()? {
            Self::Und => "UND",
            Self::Reg => "REG",
            Self::Pipe => "PIPE",
            Self::Fifo => "FIFO",
            Self::Inetsk => "INETSK",
            Self::Unixsk => "UNIXSK",
            Self::Eventfd => "EVENTFD",
            Self::Eventpoll => "EVENTPOLL",
            Self::Inotify => "INOTIFY",
            Self::Signalfd => "SIGNALFD",
            Self::Packetsk => "PACKETSK",
            Self::Tty => "TTY",
            Self::Fanotify => "FANOTIFY",
            Self::Netlinksk => "NETLINKSK",
            Self::Ns => "NS",
            Self::Tunf => "TUNF",
            Self::Ext => "EXT",
            Self::Timerfd => "TIMERFD",
            Self::Memfd => "MEMFD",
            Self::Bpfmap => "BPFMAP",
            Self::Pidfd => "PIDFD",
            Self::CtlTty => "CTL_TTY",
            Self::AutofsPipe => "AUTOFS_PIPE",
        })
    }
}

/// CRIU's `fdinfo_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FdinfoEntry {
    /// File_entry id.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Descriptor flags (1 = close-on-exec).
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(enumeration = "FdTypes", required, tag = "3")]
    #[serde(serialize_with = "super::readable::name::<FdTypes, _>")]
    pub r#type: i32,
    #[prost(uint32, required, tag = "4")]
    pub fd: u32,
    #[prost(string, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xattr_security_selinux: Option<String>,
}

/// CRIU's `file_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct FileEntry {
    #[prost(enumeration = "FdTypes", required, tag = "1")]
    #[serde(serialize_with = "super::readable::name::<FdTypes, _>")]
    pub r#type: i32,
    #[prost(uint32, required, tag = "2")]
    pub id: u32,
    #[prost(message, optional, boxed, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reg: Option<Box<RegFileEntry>>,
    #[prost(message, optional, boxed, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isk: Option<Box<InetSkEntry>>,
    #[prost(message, optional, boxed, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nsf: Option<Box<NsFileEntry>>,
    #[prost(message, optional, boxed, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psk: Option<Box<PacketSockEntry>>,
    #[prost(message, optional, boxed, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nlsk: Option<Box<NetlinkSkEntry>>,
    #[prost(message, optional, boxed, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub efd: Option<Box<EventfdFileEntry>>,
    #[prost(message, optional, boxed, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epfd: Option<Box<EventpollFileEntry>>,
    #[prost(message, optional, boxed, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sgfd: Option<Box<SignalfdEntry>>,
    #[prost(message, optional, boxed, tag = "11")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunf: Option<Box<TunfileEntry>>,
    #[prost(message, optional, boxed, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tfd: Option<Box<TimerfdEntry>>,
    #[prost(message, optional, boxed, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ify: Option<Box<InotifyFileEntry>>,
    #[prost(message, optional, boxed, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffy: Option<Box<FanotifyFileEntry>>,
    #[prost(message, optional, boxed, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext: Option<Box<ExtFileEntry>>,
    #[prost(message, optional, boxed, tag = "16")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usk: Option<Box<UnixSkEntry>>,
    #[prost(message, optional, boxed, tag = "17")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fifo: Option<Box<FifoEntry>>,
    #[prost(message, optional, boxed, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipe: Option<Box<PipeEntry>>,
    #[prost(message, optional, boxed, tag = "19")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<Box<TtyFileEntry>>,
    #[prost(message, optional, boxed, tag = "20")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memfd: Option<Box<MemfdFileEntry>>,
    #[prost(message, optional, boxed, tag = "21")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf: Option<Box<BpfmapFileEntry>>,
    #[prost(message, optional, boxed, tag = "22")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pidfd: Option<Box<PidfdEntry>>,
}
