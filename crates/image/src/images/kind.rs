//! The table of image files: which magic and which file name belong to which kind.

/// What stands before the records of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Head word of ordinary images, then the type word.
    Common,
    /// Head word of service files (statistics, caches), then the type word.
    Service,
    /// The type word alone (`inventory.img`).
    Plain,
    /// Nothing at all: not a list of records.
    Raw,
}

impl Head {
    /// The head word of format V1.1, where there is one.
    pub fn word(self) -> Option<u32> {
        match self {
            Self::Common => Some(0x5456_4319),
            Self::Service => Some(0x5510_5940),
            Self::Plain | Self::Raw => None,
        }
    }
}

/// What one row of the table says.
#[derive(Clone, Copy)]
struct Row {
    head: Head,
    type_word: u32,
    /// `%u` and `%x` stand for the id in decimal and hexadecimal.
    pattern: &'static str,
}

macro_rules! kinds {
    ($($name:ident $head:ident $word:literal $pattern:literal $doc:literal;)*) => {
        /// A kind of image file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ImageKind {
            $(#[doc = concat!("`", $pattern, "`: ", $doc, ".")] $name,)*
        }

        impl ImageKind {
            /// Every kind, those of old CRIU versions included.
            pub const ALL: &'static [ImageKind] = &[$(Self::$name,)*];

            const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row { head: Head::$head, type_word: $word, pattern: $pattern },)*
                }
            }
        }
    };
}

kinds! {
    Inventory Plain 0x5831_3116 "inventory.img" "the first file to be read";
    Pstree Common 0x5027_3030 "pstree.img" "the process tree, parents first";
    Core Common 0x5505_3847 "core-%u.img" "a thread, by its tid";
    Ids Common 0x5443_2030 "ids-%u.img" "which kernel objects a task has, by its pid";
    Mm Common 0x5749_2820 "mm-%u.img" "an address space, by pid";
    Fs Common 0x5140_3912 "fs-%u.img" "root, working directory and umask, by pid";
    Creds Common 0x5402_3547 "creds-%u.img" "credentials in old images, by pid";
    Pagemap Common 0x5608_4025 "pagemap-%u.img" "runs of stored pages of a task, by pid";
    PagemapShmem Common 0x5608_4025 "pagemap-shmem-%u.img" "runs of stored pages of a shared object, by its inode or IPC id";
    Fdinfo Common 0x5621_3732 "fdinfo-%u.img" "a descriptor table, by files id";
    Files Common 0x5630_3138 "files.img" "open files of every kind";
    PipesData Common 0x5645_3709 "pipes-data.img" "bytes in pipes";
    FifoData Common 0x5933_3054 "fifo-data.img" "bytes in named pipes";
    SkQueues Common 0x5626_4026 "sk-queues.img" "packets in datagram and unix sockets";
    Datagrams Common 0x4152_5544 "arctern-datagrams.img" "unread UDP datagrams; CRIU does not look for it";
    UnixPeers Common 0x4152_5043 "arctern-unix-peers.img" "whom unix sockets show as their peer; CRIU does not look for it";
    UnixPending Common 0x4152_5055 "arctern-unix-pending.img" "unix connections that wait to be accepted; CRIU does not look for it";
    TcpStream Common 0x5146_5506 "tcp-stream-%x.img" "a TCP connection, by socket inode";
    TtyInfo Common 0x5945_3036 "tty-info.img" "terminals";
    TtyData Common 0x5941_3026 "tty-data.img" "bytes in terminals";
    RemapFpath Common 0x5913_3954 "remap-fpath.img" "paths that need help before they can be opened";
    GhostFile Common 0x5258_3605 "ghost-file-%x.img" "a deleted file, by ghost id";
    Memfd Common 0x4845_3499 "memfd.img" "memfd inodes";
    BpfmapData Common 0x6432_4033 "bpfmap-data.img" "contents of BPF maps";
    Filelocks Common 0x5432_3616 "filelocks.img" "file locks";
    Seccomp Common 0x6441_3049 "seccomp.img" "seccomp filters";
    Apparmor Common 0x5942_3047 "apparmor.img" "AppArmor policy";
    Cgroup Common 0x5938_3330 "cgroup.img" "cgroup sets and properties";
    Mountpoints Common 0x5556_3928 "mountpoints-%u.img" "the mounts of a namespace";
    Utsns Common 0x5447_3203 "utsns-%u.img" "host name";
    Userns Common 0x5547_4906 "userns-%u.img" "id mappings";
    Timens Common 0x4311_4433 "timens-%u.img" "clock offsets; id 0 holds the clocks themselves";
    Pidns Common 0x6115_7326 "pidns-%u.img" "an external pid namespace";
    IpcnsVar Common 0x5311_5007 "ipcns-var-%u.img" "settings of an IPC namespace";
    IpcnsShm Common 0x4628_3044 "ipcns-shm-%u.img" "SysV shared memory";
    IpcnsMsg Common 0x5545_3737 "ipcns-msg-%u.img" "SysV message queues";
    IpcnsSem Common 0x5957_3019 "ipcns-sem-%u.img" "SysV semaphores";
    Netns Common 0x5593_3752 "netns-%u.img" "a network namespace";
    Netdev Common 0x5737_3951 "netdev-%u.img" "network devices";
    Autofs Common 0x4935_3943 "autofs-%u.img" "an autofs mount, by its device";
    BinfmtMisc Common 0x6734_3323 "binfmt-misc.img" "binfmt_misc registrations";
    Cpuinfo Common 0x6140_4013 "cpuinfo.img" "processor capabilities";
    StatsDump Service 0x5709_3306 "stats-dump" "what the dump took";
    StatsRestore Service 0x5709_3306 "stats-restore" "what the restore took";
    IrmapCache Service 0x5700_4059 "irmap-cache" "inode to path cache of a pre-dump";
    OldRegFiles Common 0x5036_3636 "reg-files.img" "old: regular files";
    OldExtFiles Common 0x5925_5641 "ext-files.img" "old: plugin files";
    OldNsFiles Common 0x6139_4011 "ns-files.img" "old: namespace files";
    OldEventfd Common 0x4452_3722 "eventfd.img" "old: eventfds";
    OldEventpoll Common 0x4502_3858 "eventpoll.img" "old: epoll files";
    OldEventpollTfd Common 0x4443_3746 "eventpoll-tfd.img" "old: epoll targets";
    OldSignalfd Common 0x5732_3820 "signalfd.img" "old: signalfds";
    OldInotify Common 0x4842_4431 "inotify.img" "old: inotify files";
    OldInotifyWd Common 0x5456_2009 "inotify-wd.img" "old: inotify watches";
    OldFanotify Common 0x5509_6122 "fanotify.img" "old: fanotify files";
    OldFanotifyMark Common 0x5650_6035 "fanotify-mark.img" "old: fanotify marks";
    OldPipes Common 0x5651_3555 "pipes.img" "old: pipes";
    OldFifo Common 0x5836_4939 "fifo.img" "old: named pipes";
    OldUnixsk Common 0x5437_3943 "unixsk.img" "old: unix sockets";
    OldInetsk Common 0x5644_3851 "inetsk.img" "old: inet sockets";
    OldPacketsk Common 0x6045_4618 "packetsk.img" "old: packet sockets";
    OldNetlinksk Common 0x5800_5614 "netlinksk.img" "old: netlink sockets";
    OldTty Common 0x5943_3025 "tty.img" "old: terminals";
    OldTunfile Common 0x5714_3751 "tunfile.img" "old: tun files";
    OldTimerfd Common 0x5049_3712 "timerfd.img" "old: timerfds";
    OldPidfd Common 0x5443_5556 "pidfd.img" "old: pidfds";
    OldBpfmapFile Common 0x5750_6142 "bpfmap-file.img" "old: BPF maps";
    OldSigacts Common 0x5534_4201 "sigacts-%u.img" "old: signal actions";
    OldVmas Common 0x5412_3737 "vmas-%u.img" "old: mappings";
    OldItimers Common 0x5746_4056 "itimers-%u.img" "old: interval timers";
    OldPosixTimers Common 0x5260_3957 "posix-timers-%u.img" "old: POSIX timers";
    OldRlimit Common 0x5711_3925 "rlimit-%u.img" "old: resource limits";
    OldSignalShared Common 0x5925_5647 "signal-s-%u.img" "old: signals queued to a process";
    OldSignalPrivate Common 0x5925_5647 "signal-p-%u.img" "old: signals queued to a thread";
    Pages Raw 0 "pages-%u.img" "page bytes, by the pages id in the pagemap's head";
    Ifaddr Raw 0 "ifaddr-%u.img" "addresses, as `ip addr save` writes them";
    Route Raw 0 "route-%u.img" "IPv4 routes";
    Route6 Raw 0 "route6-%u.img" "IPv6 routes";
    Rule Raw 0 "rule-%u.img" "routing rules";
    Iptables Raw 0 "iptables-%u.img" "`iptables-save` text";
    Ip6tables Raw 0 "ip6tables-%u.img" "`ip6tables-save` text";
    Nftables Raw 0 "nftables-%u.img" "an nftables ruleset as text";
    NetnsCt Raw 0 "netns-ct-%u.img" "conntrack entries as netlink messages";
    NetnsExp Raw 0 "netns-exp-%u.img" "conntrack expectations as netlink messages";
    TmpfsDev Raw 0 "tmpfs-dev-%u.tar.gz.img" "contents of a tmpfs, by its device";
    Tmpfs Raw 0 "tmpfs-%u.tar.gz.img" "old name of the same, by mount id";
}

impl ImageKind {
    /// What stands before the records.
    pub fn head(self) -> Head {
        self.row().head
    }

    /// The word that names the kind of file; 0 for raw files.
    pub fn type_word(self) -> u32 {
        self.row().type_word
    }

    /// The name of the file with this id. Kinds of which there is one file ignore the id.
    pub fn file_name(self, id: u64) -> String {
        let pattern = self.row().pattern;
        if let Some((before, after)) = pattern.split_once("%u") {
            format!("{before}{id}{after}")
        } else if let Some((before, after)) = pattern.split_once("%x") {
            format!("{before}{id:x}{after}")
        } else {
            pattern.to_owned()
        }
    }

    /// The kind and id that a file name stands for, None if it is no image.
    pub fn from_file_name(name: &str) -> Option<(Self, u64)> {
        Self::ALL.iter().find_map(|&kind| Some((kind, kind.id_in(name)?)))
    }

    /// The id in `name` if it is a name of this kind.
    fn id_in(self, name: &str) -> Option<u64> {
        let pattern = self.row().pattern;
        let (marker, radix) = if pattern.contains("%u") {
            ("%u", 10)
        } else if pattern.contains("%x") {
            ("%x", 16)
        } else {
            return (pattern == name).then_some(0);
        };
        let (before, after) = pattern.split_once(marker)?;
        let digits = name.strip_prefix(before)?.strip_suffix(after)?;
        let id = u64::from_str_radix(digits, radix).ok()?;
        // Exactly the name that would be written: no sign, no leading zero, no capitals.
        (self.file_name(id) == name).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_convert_both_ways() {
        for &kind in ImageKind::ALL {
            let name = kind.file_name(0xabc);
            let (found, id) = ImageKind::from_file_name(&name).expect(&name);
            assert_eq!((found, kind.file_name(id)), (kind, name));
        }
        assert_eq!(
            ImageKind::from_file_name("pagemap-shmem-7.img"),
            Some((ImageKind::PagemapShmem, 7))
        );
        assert_eq!(
            ImageKind::from_file_name("ghost-file-1f.img"),
            Some((ImageKind::GhostFile, 31))
        );
    }

    #[test]
    fn similar_names_are_no_images() {
        for name in [
            "core-.img",
            "core-+1.img",
            "core-01.img",
            "core-1.img.bak",
            "parent",
            "ghost-file-A.img",
        ] {
            assert_eq!(ImageKind::from_file_name(name), None, "{name}");
        }
    }
}
