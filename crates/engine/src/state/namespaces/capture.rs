//! Capture of namespaces: which ones the tree has, refusals, and their images.

use std::collections::HashMap;
use std::io;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    NdType, NetDeviceEntry, NetnsEntry, PidnsEntry, TaskKobjIdsEntry, UtsnsEntry,
};
use arctern_image::pages::PagesIds;
use arctern_sys::namespace::{self, Kind};
use arctern_sys::{Pid, proc};

use super::clocks::Clocks;
use super::ipc::IpcCollector;
use crate::error::{CaptureError, Refusal};
use crate::options::External;
use crate::state::mount::MountCollector;
use crate::tree::{FrozenTask, FrozenTree};

/// What the caller says about namespaces.
#[derive(Debug)]
pub struct NamespaceOptions<'a> {
    /// Things that stay outside: mounts, network and pid namespaces among them.
    pub externals: &'a [External],
}

/// The namespaces of a frozen tree.
#[derive(Debug)]
pub struct NamespaceCollector {
    /// Inode numbers of the controller's own namespaces, in the order of [`Kind::ALL`].
    own: [Option<u64>; 8],
    /// The root task's.
    root: [Option<u64>; 8],
    /// CRIU's numbers: those of the controller's namespaces first.
    numbers: HashMap<(Kind, u64), u32>,
    /// The key of the network namespace if it stays outside.
    external_net: Option<String>,
    /// The key of the pid namespace if it stays outside.
    external_pid: Option<String>,
    /// Host and domain name, if the namespace is the tree's own.
    uts: Option<UtsnsEntry>,
    /// The loopback device, if the network namespace is the tree's own.
    loopback: Option<NetDeviceEntry>,
    /// System V objects, if the namespace is the tree's own.
    ipc: Option<IpcCollector>,
    /// The mounts, if the namespace is the tree's own.
    mounts: Option<MountCollector>,
}

fn inodes(pid: Pid) -> io::Result<[Option<u64>; 8]> {
    let mut inodes = [None; 8];
    for (inode, kind) in inodes.iter_mut().zip(Kind::ALL) {
        *inode = proc::namespace(pid, kind.name())?;
    }
    Ok(inodes)
}

impl NamespaceCollector {
    /// Looks at the namespaces of every task and refuses what is not carried.
    pub fn collect(
        tree: &mut FrozenTree,
        options: &NamespaceOptions<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Self, CaptureError> {
        let task = tree.tasks.first().ok_or(CaptureError::NoSuchProcess(Pid(0)))?;
        let own = inodes(Pid(std::process::id() as i32))
            .map_err(task.failed("", "read the controller's namespaces"))?;
        let root = inodes(task.pid).map_err(task.failed("", "read its namespaces"))?;
        let mut numbers = HashMap::new();
        for inodes in [own, root] {
            for (kind, inode) in Kind::ALL.into_iter().zip(inodes) {
                let next = numbers.len() as u32 + 1;
                if let Some(inode) = inode {
                    numbers.entry((kind, inode)).or_insert(next);
                }
            }
        }
        let mut collector = NamespaceCollector {
            own,
            root,
            numbers,
            external_net: None,
            external_pid: None,
            uts: None,
            loopback: None,
            ipc: None,
            mounts: None,
        };
        for external in options.externals {
            match external {
                External::NetNs { ino, name } if Some(*ino) == collector.inode(Kind::Net) => {
                    collector.external_net = Some(name.clone());
                }
                External::PidNs { ino, name } if Some(*ino) == collector.inode(Kind::Pid) => {
                    collector.external_pid = Some(name.clone());
                }
                _ => {}
            }
        }
        collector.refuse_strays(tree, refusals)?;
        let root = &tree.tasks[0];
        collector.look_inside(root, refusals)?;
        if collector.is_nested(Kind::Mount) {
            let mounts = MountCollector::collect(root, options.externals, refusals)?;
            collector.mounts = Some(mounts);
        }
        Ok(collector)
    }

    fn inode(&self, kind: Kind) -> Option<u64> {
        self.root[kind as usize]
    }

    /// Whether the root task's namespace of this kind is not the controller's.
    pub fn is_nested(&self, kind: Kind) -> bool {
        self.own[kind as usize] != self.root[kind as usize]
    }

    /// CRIU's number of the root task's namespace of this kind.
    pub fn number(&self, kind: Kind) -> Option<u32> {
        self.numbers.get(&(kind, self.inode(kind)?)).copied()
    }

    fn refuse_strays(
        &self,
        tree: &FrozenTree,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CaptureError> {
        for task in tree.tasks.iter().filter(|task| !task.is_zombie()) {
            let theirs = inodes(task.pid).map_err(task.failed("", "read its namespaces"))?;
            for (kind, inode) in Kind::ALL.into_iter().zip(theirs) {
                if inode != self.inode(kind) {
                    refusals.push(task.refuse(
                        format!("{} namespace", kind.name()),
                        "it is not in the namespace of the tree's root task",
                        "namespaces inside of the captured tree are not carried",
                    ));
                }
            }
            for (kind, link) in [(Kind::Pid, "pid_for_children"), (Kind::Time, "time_for_children")]
            {
                let children = proc::namespace(task.pid, link)
                    .map_err(task.failed("", "read its namespaces"))?;
                if children != self.inode(kind) {
                    refusals.push(task.refuse(
                        format!("{} namespace", kind.name()),
                        "it has unshared the namespace for its next children",
                        "let it start its child first",
                    ));
                }
            }
        }
        if !self.is_nested(Kind::Ipc) {
            for task in &tree.tasks {
                for mapping in task.mappings.iter().filter(|m| m.name.starts_with("/SYSV")) {
                    refusals.push(task.refuse(
                        format!("mapping {:x}-{:x} ({})", mapping.start, mapping.end, mapping.name),
                        "System V shared memory of an IPC namespace outside of the tree",
                        "run it in an IPC namespace of its own (unshare --ipc)",
                    ));
                }
            }
        }
        let root = &tree.tasks[0];
        if self.is_nested(Kind::User) {
            refusals.push(root.refuse(
                "user namespace",
                "a user namespace of its own is not carried",
                "run it without a user namespace",
            ));
        }
        if self.is_nested(Kind::Pid) && self.external_pid.is_none() && root.inner_pid != 1 {
            refusals.push(root.refuse(
                "pid namespace",
                format!("it is process {} of its pid namespace, not the first", root.inner_pid),
                "capture the first process of the pid namespace and all below it",
            ));
        }
        Ok(())
    }

    /// Reads what is in the namespaces and can be refused.
    fn look_inside(
        &mut self,
        root: &FrozenTask,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CaptureError> {
        if self.is_nested(Kind::Uts) {
            let uts = namespace::inside(root.pid, &[Kind::Uts], names);
            self.uts = Some(uts.map_err(root.failed("uts namespace", "read its names"))?);
        }
        if self.is_nested(Kind::Ipc) {
            let ipc = IpcCollector::collect(root)?;
            ipc.check(root, refusals);
            self.ipc = Some(ipc);
        }
        if self.is_nested(Kind::Net) && self.external_net.is_none() {
            let failed = || root.failed("net namespace", "list its devices");
            let devices = proc::read(root.pid, "net/dev").map_err(failed())?;
            let devices = device_names(&devices);
            let routes = proc::read(root.pid, "net/fib_trie").map_err(failed())?;
            self.loopback = Some(loopback(routes.contains("127.0.0.1")));
            let others: Vec<&str> = devices.into_iter().filter(|name| *name != "lo").collect();
            if !others.is_empty() {
                let ino = self.inode(Kind::Net).unwrap_or_default();
                refusals.push(root.refuse(
                    "net namespace",
                    format!("its network devices ({}) are not carried", others.join(", ")),
                    format!("keep the namespace outside with --external net[{ino}]:NAME"),
                ));
            }
        }
        Ok(())
    }

    /// Sets the namespace numbers of a task's `ids-PID.img`.
    pub fn fill_ids(&self, _task: usize, ids: &mut TaskKobjIdsEntry) {
        // Every task has the root task's namespaces, or the capture was refused.
        self.fill(&self.root, ids);
    }

    /// The controller's own ids, as `inventory.img` holds them: a task's namespace with such a
    /// number is not in the images.
    pub fn root_ids(&self) -> TaskKobjIdsEntry {
        let mut ids = TaskKobjIdsEntry {
            vm_id: 1,
            files_id: 1,
            fs_id: 1,
            sighand_id: 1,
            ..TaskKobjIdsEntry::default()
        };
        self.fill(&self.own, &mut ids);
        ids
    }

    fn fill(&self, inodes: &[Option<u64>; 8], ids: &mut TaskKobjIdsEntry) {
        let number = |kind: Kind| {
            inodes[kind as usize].and_then(|inode| self.numbers.get(&(kind, inode)).copied())
        };
        ids.pid_ns_id = number(Kind::Pid);
        ids.net_ns_id = number(Kind::Net);
        ids.ipc_ns_id = number(Kind::Ipc);
        ids.uts_ns_id = number(Kind::Uts);
        ids.time_ns_id = number(Kind::Time);
        ids.mnt_ns_id = number(Kind::Mount);
        ids.user_ns_id = number(Kind::User);
        ids.cgroup_ns_id = number(Kind::Cgroup);
    }

    /// Writes the images of the namespaces that are the tree's own. The tasks are still frozen.
    pub fn write(
        &mut self,
        tree: &mut FrozenTree,
        images: &ImageDir,
        pages: &PagesIds,
    ) -> Result<(), CaptureError> {
        let root = &tree.tasks[0];
        let id = |kind| self.number(kind).filter(|_| self.is_nested(kind)).map(u64::from);
        if let (Some(id), Some(uts)) = (id(Kind::Uts), &self.uts) {
            images.write_one(ImageKind::Utsns, id, uts)?;
        }
        if let Some(id) = id(Kind::Net) {
            self.write_net(id, images)?;
        }
        if let (Some(id), Some(ipc)) = (id(Kind::Ipc), &self.ipc) {
            ipc.write(id, images, pages)?;
        }
        if let (Some(id), Some(mounts)) = (id(Kind::Mount), &self.mounts) {
            mounts.write(root, id, images)?;
        }
        if let (Some(id), Some(key)) = (id(Kind::Pid), &self.external_pid) {
            images.write_one(ImageKind::Pidns, id, &PidnsEntry { ext_key: Some(key.clone()) })?;
        }
        let clocks = Clocks::of(root.pid).map_err(root.failed("", "read its clocks"))?;
        let time_id = id(Kind::Time).unwrap_or_default();
        images.write_one(ImageKind::Timens, time_id, &clocks.to_entry())?;
        Ok(())
    }

    fn write_net(&self, id: u64, images: &ImageDir) -> Result<(), CaptureError> {
        let entry = NetnsEntry { ext_key: self.external_net.clone(), ..NetnsEntry::default() };
        images.write_one(ImageKind::Netns, id, &entry)?;
        if let Some(loopback) = &self.loopback {
            images.write_one(ImageKind::Netdev, id, loopback)?;
        }
        Ok(())
    }
}

fn names() -> io::Result<UtsnsEntry> {
    let names = nix::sys::utsname::uname()?;
    Ok(UtsnsEntry {
        nodename: names.nodename().to_string_lossy().into_owned(),
        domainname: names.domainname().to_string_lossy().into_owned(),
    })
}

/// The devices of a `/proc/PID/net/dev` text.
fn device_names(text: &str) -> Vec<&str> {
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim())).collect()
}

/// The loopback device of a fresh network namespace: always number 1.
fn loopback(up: bool) -> NetDeviceEntry {
    let up = if up { libc::IFF_UP | libc::IFF_RUNNING } else { 0 };
    NetDeviceEntry {
        r#type: NdType::Loopback as i32,
        ifindex: 1,
        mtu: 65536,
        flags: (libc::IFF_LOOPBACK | up) as u32,
        name: "lo".to_owned(),
        ..NetDeviceEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed() {
        let text = "Inter-|   Receive\n face |bytes\n    lo:       0       0\n  eth0: 1 2\n";
        assert_eq!(device_names(text), ["lo", "eth0"]);
    }
}
