//! Restore of namespaces: the clone of the root task and what is done in it afterwards.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    InventoryEntry, NetDeviceEntry, NetnsEntry, PidnsEntry, TaskKobjIdsEntry, UtsnsEntry,
};
use arctern_sys::clone::spawn_stub;
use arctern_sys::namespace::{self, Kind};
use arctern_sys::{Pid, proc};
use arctern_tracee::Batch;
use arctern_tracee::stub::Stub;
use nix::sched::{CloneFlags, setns};

use super::clocks::Clocks;
use super::ipc::IpcRestore;
use crate::confinement::Confinement;
use crate::error::{Refusal, Remedy, RestoreError};
use crate::options::{Event, Events, External};
use crate::restore_context::{RestoreContext, TaskNode, failed, subject};
use crate::state::cgroup::Entrance;
use crate::state::mount::MountRestore;

/// What the caller says about namespaces.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceRestoreOptions<'a> {
    /// Root of the restored mount namespace on the host; None for the host's own root.
    pub root: Option<&'a Path>,
    /// Where external mounts are found here.
    pub externals: &'a [External],
    /// Descriptors by key: external namespaces among them.
    pub inherit_fds: &'a [(String, OwnedFd)],
    /// Pseudo terminals, by index, whose masters are made with the tree's devpts.
    pub terminals: &'a [u32],
    /// What the tree may have at most.
    pub confinement: Option<&'a Confinement>,
    /// Namespaces that are joined instead of made, whatever the images say.
    pub join: &'a [(Kind, OwnedFd)],
}

impl<'a> NamespaceRestoreOptions<'a> {
    fn inherited(&self, key: &str) -> Option<BorrowedFd<'a>> {
        self.inherit_fds.iter().find(|(name, _)| name == key).map(|(_, fd)| fd.as_fd())
    }
}

/// Where a namespace of the restored tree comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// The controller's.
    Host,
    /// Made with the root task.
    Made,
    /// Among the inherited descriptors under this key.
    External(String),
    /// Given by the caller.
    Joined,
}

/// The namespaces that a restore makes.
#[derive(Debug)]
pub struct NamespaceRestore<'a> {
    options: NamespaceRestoreOptions<'a>,
    root: TaskNode,
    /// In the order of [`Kind::ALL`].
    origins: [Origin; 8],
    uts: Option<UtsnsEntry>,
    loopback_up: bool,
    clocks: Option<Clocks>,
    ipc: Option<IpcRestore>,
    mounts: Option<MountRestore>,
}

impl<'a> NamespaceRestore<'a> {
    /// Reads the images.
    pub fn load(
        images: &ImageDir,
        root: &TaskNode,
        options: &NamespaceRestoreOptions<'a>,
    ) -> Result<Self, RestoreError> {
        let inventory: InventoryEntry = images.read_one(ImageKind::Inventory, 0)?;
        let host = inventory.root_ids.unwrap_or_default();
        let mut restore = NamespaceRestore {
            options: *options,
            root: root.clone(),
            origins: Kind::ALL.map(|kind| {
                if options.join.iter().any(|(joined, _)| *joined == kind) {
                    Origin::Joined
                } else if number(&root.ids, kind) != number(&host, kind) {
                    Origin::Made
                } else {
                    Origin::Host
                }
            }),
            uts: None,
            loopback_up: false,
            clocks: None,
            ipc: None,
            mounts: None,
        };
        if let Some(id) = restore.made(Kind::Pid) {
            let entry: Option<PidnsEntry> = images.read_optional(ImageKind::Pidns, id)?;
            if let Some(key) = entry.and_then(|entry| entry.ext_key) {
                restore.origins[Kind::Pid as usize] = Origin::External(key);
            }
        }
        if let Some(id) = restore.made(Kind::Net) {
            let entry: Option<NetnsEntry> = images.read_optional(ImageKind::Netns, id)?;
            if let Some(key) = entry.and_then(|entry| entry.ext_key) {
                restore.origins[Kind::Net as usize] = Origin::External(key);
            }
        }
        if let Some(id) = restore.made(Kind::Net) {
            restore.load_devices(images, id)?;
        }
        if let Some(id) = restore.made(Kind::Uts) {
            restore.uts = images.read_optional(ImageKind::Utsns, id)?;
        }
        if let Some(id) = restore.made(Kind::Ipc) {
            restore.ipc = Some(IpcRestore::load(images, id)?);
        }
        restore.load_clocks(images)?;
        if let Some(id) = restore.made(Kind::Mount) {
            let mounts = MountRestore::load(
                images,
                id,
                root,
                options.root,
                options.externals,
                options.terminals,
                options.confinement,
            )?;
            restore.mounts = Some(mounts);
        }
        Ok(restore)
    }

    fn origin(&self, kind: Kind) -> &Origin {
        &self.origins[kind as usize]
    }

    /// CRIU's number of a namespace that this restore makes.
    fn made(&self, kind: Kind) -> Option<u64> {
        let number = number(&self.root.ids, kind).map(u64::from);
        number.filter(|_| *self.origin(kind) == Origin::Made)
    }

    fn load_devices(&mut self, images: &ImageDir, id: u64) -> Result<(), RestoreError> {
        let devices: Vec<NetDeviceEntry> = images.read_all(ImageKind::Netdev, id)?;
        let up = libc::IFF_UP as u32;
        // Without a list the devices are the caller's (CRIU's --empty-ns); it expects a loopback
        // device that works.
        self.loopback_up =
            devices.is_empty() || devices.iter().any(|d| d.name == "lo" && d.flags & up != 0);
        if let Some(device) = devices.iter().find(|device| device.name != "lo") {
            return Err(RestoreError::Refused(vec![self.refuse(
                "net namespace",
                format!("its network device {} is not carried", device.name),
                "capture it with --external net[INO]:NAME and give a namespace under that name",
            )]));
        }
        Ok(())
    }

    fn load_clocks(&mut self, images: &ImageDir) -> Result<(), RestoreError> {
        if matches!(self.origin(Kind::Time), Origin::Joined) {
            return Ok(());
        }
        // Without a time namespace of its own, a dump keeps the clocks under number 0.
        let id = self.made(Kind::Time).unwrap_or_default();
        let Some(entry) = images.read_optional(ImageKind::Timens, id)? else { return Ok(()) };
        self.clocks = Some(Clocks::from_entry(&entry).ok_or_else(|| {
            RestoreError::Inconsistent("the clocks in timens are beyond any clock's range".into())
        })?);
        Ok(())
    }

    fn refuse(&self, part: &str, cause: impl Into<String>, remedy: impl Into<Remedy>) -> Refusal {
        let subject = subject(self.root.pid, &self.root.comm, part);
        Refusal { subject, cause: cause.into(), remedy: remedy.into() }
    }

    fn failed(&self, part: &str, what: &str) -> impl FnOnce(io::Error) -> RestoreError + use<> {
        failed(subject(self.root.pid, &self.root.comm, part), what.to_owned())
    }

    /// Refuses what cannot be made here.
    pub fn check(&self, refusals: &mut Vec<Refusal>) {
        for (kind, origin) in Kind::ALL.into_iter().zip(&self.origins) {
            let part = format!("{} namespace", kind.name());
            match origin {
                Origin::External(key) if self.options.inherited(key).is_none() => {
                    refusals.push(self.refuse(
                        &part,
                        format!("the namespace that was kept outside as {key} is not given"),
                        format!("give a descriptor of it under the key {key}"),
                    ));
                }
                Origin::Made if kind == Kind::User => refusals.push(self.refuse(
                    &part,
                    "a user namespace of its own is not carried",
                    "capture a tree without a user namespace",
                )),
                _ => {}
            }
        }
        if let Some(mounts) = &self.mounts {
            mounts.check(refusals);
        }
        if *self.origin(Kind::Pid) == Origin::Made && self.root.pid != 1 {
            refusals.push(self.refuse(
                "pid namespace",
                format!("process {} is not the first of its pid namespace", self.root.pid),
                "capture the first process of the pid namespace and all below it",
            ));
        }
    }

    /// Refuses namespaces of the host, and mounts that show more of it than the tree may see.
    pub fn check_confined(&self, confinement: &Confinement, refusals: &mut Vec<Refusal>) {
        if confinement.trusted {
            return;
        }
        for kind in [Kind::Pid, Kind::Ipc, Kind::Uts, Kind::Mount, Kind::Cgroup] {
            if *self.origin(kind) != Origin::Made {
                refusals.push(self.refuse(
                    &format!("{} namespace", kind.name()),
                    "it is the host's, not one of the container's own",
                    "allow it with --trust, if you trust the archive",
                ));
            }
        }
        let network = match &confinement.network {
            Some(key) => Origin::External(key.clone()),
            None => Origin::Host,
        };
        if *self.origin(Kind::Net) != network {
            refusals.push(self.refuse(
                "net namespace",
                "it is not in the network that the container's configuration asks for",
                "allow it with --trust, if you trust the archive",
            ));
        }
        if let Some(mounts) = &self.mounts {
            mounts.check_confined(confinement, refusals);
        }
    }

    /// The order in which mounts are made, for dry runs; None where no mount namespace is made.
    pub fn mounts(&self) -> Option<&MountRestore> {
        self.mounts.as_ref()
    }

    /// Clones the root task, with id `pid` in its innermost pid namespace. It is a stub that nobody
    /// traces yet. With `sibling` it is the caller's sibling instead of its child.
    pub fn spawn_root(
        &mut self,
        sibling: bool,
        pid: i32,
        entrance: &Entrance,
    ) -> Result<Pid, RestoreError> {
        // Time and cgroup namespaces are entered later, by the task itself.
        let with_clone = [Kind::Pid, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Mount];
        let made = with_clone.into_iter().filter(|&kind| *self.origin(kind) == Origin::Made);
        let mut flags = made.fold(0, |flags, kind| flags | kind.flag());
        let exit_signal = if sibling { 0 } else { libc::SIGCHLD };
        if sibling {
            flags |= libc::CLONE_PARENT as u64;
        }
        let failed = || match entrance.unified_path() {
            None => {
                let what = format!("create the process with pid {pid}, which may be in use");
                self.failed("", &what)
            }
            Some(group) => {
                let group = group.display();
                let what =
                    format!("create the process with pid {pid}, which may be in use, in {group}");
                self.failed("", &what)
            }
        };
        let Some(outside) = self.given(Kind::Pid) else {
            return spawn_stub(flags, exit_signal, &[pid], entrance.unified()).map_err(failed());
        };
        // Children are born into the joined pid namespace; we stay where we are.
        let own = namespace::open(Pid(std::process::id() as i32), Kind::Pid)
            .map_err(self.failed("pid namespace", "open the controller's"))?;
        setns(outside, CloneFlags::CLONE_NEWPID)
            .map_err(|e| self.failed("pid namespace", "join the external one")(e.into()))?;
        let spawned = spawn_stub(flags, exit_signal, &[pid], entrance.unified());
        setns(own, CloneFlags::CLONE_NEWPID)
            .map_err(|e| self.failed("pid namespace", "return to the controller's")(e.into()))?;
        spawned.map_err(failed())
    }

    /// The descriptor of a namespace that somebody gave us.
    fn given(&self, kind: Kind) -> Option<BorrowedFd<'a>> {
        match self.origin(kind) {
            Origin::External(key) => self.options.inherited(key),
            Origin::Joined => self
                .options
                .join
                .iter()
                .find(|(joined, _)| *joined == kind)
                .map(|(_, fd)| fd.as_fd()),
            Origin::Host | Origin::Made => None,
        }
    }

    /// Fills the namespaces by remote calls in the root task, which was adopted and is already in
    /// its control groups. The result are the masters of [`NamespaceRestoreOptions::terminals`].
    pub fn build(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        events: &mut dyn Events,
    ) -> Result<Vec<OwnedFd>, RestoreError> {
        let given: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|&kind| kind != Kind::Pid && self.given(kind).is_some())
            .collect();
        for kind in given {
            self.join(ctx, stub, kind)?;
        }
        let mut batch = Batch::new();
        if *self.origin(Kind::Cgroup) == Origin::Made {
            batch.call(libc::SYS_unshare, &[Kind::Cgroup.flag().into()]);
        }
        if let Some(uts) = &self.uts {
            for (nr, name) in
                [(libc::SYS_sethostname, &uts.nodename), (libc::SYS_setdomainname, &uts.domainname)]
            {
                let text = batch.bytes(name.as_bytes());
                batch.call(nr, &[text.into(), name.len().into()]);
            }
        }
        if self.loopback_up {
            raise_loopback(&mut batch);
        }
        stub.run_all(
            &mut batch,
            "name the host, raise the loopback device, enter a cgroup namespace",
        )?;
        self.enter_time(ctx, stub)?;
        if let Some(ipc) = &self.ipc {
            ipc.build(stub.tid(), events)?;
        }
        // Last: afterwards the host is out of sight.
        let own_cgroups = *self.origin(Kind::Cgroup) == Origin::Made;
        if let Some(mounts) = &mut self.mounts {
            let masters = mounts.build(stub, own_cgroups)?;
            for loss in mounts.losses() {
                events.event(Event::Warning(loss));
            }
            return Ok(masters);
        }
        Ok(Vec::new())
    }

    fn join(&self, ctx: &mut RestoreContext, stub: &Stub, kind: Kind) -> Result<(), RestoreError> {
        let Some(fd) = self.given(kind) else { return Ok(()) };
        let at = ctx.temporary();
        ctx.inject(stub, fd, at)?;
        let mut batch = Batch::new();
        batch.call(libc::SYS_setns, &[at.into(), kind.flag().into()]);
        batch.call(libc::SYS_close, &[at.into()]);
        Ok(stub.run_all(&mut batch, &format!("join the {} namespace", kind.name()))?)
    }

    /// Lets the clocks go on from where they were: the task unshares a time namespace, the controller
    /// sets its offsets while it is empty, the task enters it.
    fn enter_time(&self, ctx: &mut RestoreContext, stub: &Stub) -> Result<(), RestoreError> {
        let Some(clocks) = self.clocks else { return Ok(()) };
        let mut batch = Batch::new();
        batch.call(libc::SYS_unshare, &[Kind::Time.flag().into()]);
        stub.run_all(&mut batch, "unshare a time namespace")?;
        let part = "time namespace";
        let host = Clocks::host().map_err(self.failed(part, "read the clocks"))?;
        std::fs::write(proc::path(stub.tid(), "timens_offsets"), clocks.offsets_text(host))
            .map_err(self.failed(part, "set its offsets"))?;
        let entered = std::fs::File::open(proc::path(stub.tid(), "ns/time_for_children"))
            .map_err(self.failed(part, "open it"))?;
        let at = ctx.temporary();
        ctx.inject(stub, entered.as_fd(), at)?;
        let mut batch = Batch::new();
        batch.call(libc::SYS_setns, &[at.into(), Kind::Time.flag().into()]);
        batch.call(libc::SYS_close, &[at.into()]);
        Ok(stub.run_all(&mut batch, "enter the time namespace")?)
    }
}

/// The number of a namespace in an ids message.
fn number(ids: &TaskKobjIdsEntry, kind: Kind) -> Option<u32> {
    match kind {
        Kind::Pid => ids.pid_ns_id,
        Kind::Net => ids.net_ns_id,
        Kind::Ipc => ids.ipc_ns_id,
        Kind::Uts => ids.uts_ns_id,
        Kind::Time => ids.time_ns_id,
        Kind::Mount => ids.mnt_ns_id,
        Kind::User => ids.user_ns_id,
        Kind::Cgroup => ids.cgroup_ns_id,
    }
}

/// `ifconfig lo up` in calls: the kernel gives the device its addresses by itself.
fn raise_loopback(batch: &mut Batch) {
    // struct ifreq: 16 bytes of name, then the flags.
    let mut request = [0; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&((libc::IFF_UP | libc::IFF_RUNNING) as u16).to_ne_bytes());
    let request = batch.bytes(&request);
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    let socket = batch.call(libc::SYS_socket, &[libc::AF_INET.into(), kind.into(), 0.into()]);
    batch.call(libc::SYS_ioctl, &[socket.into(), libc::SIOCSIFFLAGS.into(), request.into()]);
    batch.call(libc::SYS_close, &[socket.into()]);
}
