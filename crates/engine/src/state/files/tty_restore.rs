//! Terminals: restore. See [`super::tty`].

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{TtyFileEntry, TtyInfoEntry, TtyType};
use arctern_sys::fd::{self, Termios};
use arctern_tracee::stub::Stub;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::groups::{Bond, Group};
use super::restore::FilesRestore;
use super::table::Opener;
use super::tty::termios_of;
use crate::error::{Refusal, RestoreError, Subject};
use crate::restore_context::RestoreContext;

/// Pseudo terminals that are opened to reach an index.
const MAX_INDEX: u32 = 4096;

const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCEXCL: u64 = 0x540c;
const TIOCPKT: u64 = 0x5420;
const TIOCSLCKTRMIOS: u64 = 0x5457;
const TCSETS: u64 = 0x5402;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTN: u64 = 0x8004_5430;

/// Indices of the pseudo terminals in the images whose master nobody of the tree had, ascending.
///
/// # Errors
/// The image is damaged.
pub fn orphans(images: &ImageDir) -> Result<Vec<u32>, RestoreError> {
    let infos: Vec<TtyInfoEntry> = images.read_all(ImageKind::TtyInfo, 0)?;
    let has_master = |index| {
        infos.iter().any(|i| i.id & 1 == 1 && i.pty.as_ref().is_some_and(|p| p.index == index))
    };
    let slaves = infos.iter().filter(|i| i.r#type == TtyType::Pty as i32 && i.id & 1 == 0);
    let mut orphans: Vec<u32> = slaves
        .filter_map(|info| Some(info.pty.as_ref()?.index))
        .filter(|index| !has_master(*index))
        .collect();
    orphans.sort_unstable();
    orphans.dedup();
    match orphans.last() {
        Some(index) if *index > MAX_INDEX => {
            Err(RestoreError::Inconsistent(format!("pseudo terminal {index}")))
        }
        _ => Ok(orphans),
    }
}

impl FilesRestore {
    fn terminal(&self, id: u32) -> Option<(&TtyFileEntry, &TtyInfoEntry)> {
        let tty = self.files.get(&id)?.tty.as_deref()?;
        Some((tty, self.terminals.get(&tty.tty_info_id)?))
    }

    /// Ties both sides of pseudo terminals together.
    pub(super) fn terminal_bonds(&self, bonds: &mut Vec<(Bond, u32)>) {
        for id in self.holders.keys() {
            if let Some((_, TtyInfoEntry { pty: Some(pty), .. })) = self.terminal(*id) {
                bonds.push((Bond::Pty(pty.index), *id));
            }
        }
    }

    /// Whether a description is `/dev/tty`, which leads to the terminal of its opener's session.
    pub(super) fn is_controlling_terminal(&self, id: u32) -> bool {
        self.terminal(id).is_some_and(|(_, info)| info.r#type == TtyType::Ctty as i32)
    }

    /// Terminals that cannot be restored.
    pub(super) fn check_terminals(&self, refusals: &mut Vec<Refusal>) {
        for id in self.holders.keys() {
            let Some(tty) = &self.files[id].tty else { continue };
            let (cause, remedy) = match self.terminals.get(&tty.tty_info_id) {
                None => {
                    ("the images do not describe the terminal".to_owned(), "dump again".to_owned())
                }
                Some(info) => match TtyType::try_from(info.r#type) {
                    Ok(TtyType::Ctty) => continue,
                    Ok(TtyType::Pty) if self.has_master(info) || self.own_terminal().is_some() => {
                        continue;
                    }
                    Ok(TtyType::Pty) => (
                        "the program behind this terminal is outside of the images".to_owned(),
                        "restore from a terminal with --shell-job".to_owned(),
                    ),
                    Ok(TtyType::ExtTty) if self.inherited(&key(info)).is_some() => continue,
                    Ok(TtyType::ExtTty) => (
                        format!("it stands for `{}`, which lives outside of the images", key(info)),
                        format!("hand it in with --inherit-fd fd[N]:{}", key(info)),
                    ),
                    _ => (
                        "a console or serial line cannot be restored".to_owned(),
                        "start the program on a pseudo terminal".to_owned(),
                    ),
                },
            };
            let remedy = remedy.into();
            refusals.push(Refusal { subject: self.named_subject(*id), cause, remedy });
        }
    }

    fn has_master(&self, info: &TtyInfoEntry) -> bool {
        let index = info.pty.as_ref().map(|pty| pty.index);
        index.is_some_and(|index| self.masters.contains(&index))
    }

    /// The restorer's own terminal, where the caller allows its use.
    fn own_terminal(&self) -> Option<OwnedFd> {
        if !self.options.shell_job {
            return None;
        }
        let own = [
            std::io::stdin().as_fd().try_clone_to_owned(),
            std::io::stderr().as_fd().try_clone_to_owned(),
        ];
        own.into_iter().flatten().find(|fd| fd::terminal(fd).is_ok())
    }

    /// Makes the terminals of a group: ids with their numbers.
    pub(super) fn make_terminals(
        &mut self,
        o: &mut Opener<'_>,
        group: &Group,
    ) -> Result<Vec<(u32, i32)>, RestoreError> {
        let mut made = Vec::new();
        let is_master = |info: &TtyInfoEntry| info.pty.is_some() && info.id & 1 == 1;
        let mut members = Vec::new();
        for id in &group.ids {
            match self.terminal(*id) {
                Some((tty, info)) => members.push((*id, tty.clone(), info.clone())),
                None => {
                    return Err(RestoreError::Inconsistent(format!(
                        "terminal {id} is not in tty-info.img"
                    )));
                }
            }
        }
        members.sort_by_key(|(_, _, info)| !is_master(info));
        let mut modes_set = false;
        for (id, tty, info) in &members {
            let path = tty
                .regf_id
                .and_then(|regf| self.files.get(&regf)?.reg.as_deref())
                .map(|reg| self.path_of(reg));
            let fd = if is_master(info) {
                let path = path.unwrap_or_else(|| b"/dev/ptmx".to_vec());
                let fd = open_master(o, &path, tty.flags, info)?;
                self.made_masters.extend(info.pty.as_ref().map(|pty| pty.index));
                fd
            } else if info.r#type == TtyType::Pty as i32 && self.has_master(info) {
                let index = info.pty.as_ref().map_or(0, |pty| pty.index);
                let path = path.unwrap_or_else(|| format!("/dev/pts/{index}").into_bytes());
                let fd = open_path(o, &path, tty.flags);
                let owner = [fd.into(), info.uid().into(), info.gid().into()];
                o.call(libc::SYS_fchown, &owner, "give the terminal its owner");
                fd
            } else {
                let outside = match self.inherited(&key(info)) {
                    Some(fd) => fd.try_clone().ok(),
                    None => self.own_terminal(),
                };
                let Some(outside) = outside else {
                    return Err(self.missing_external(*id, &key(info)));
                };
                let again = reopen(&outside, tty.flags).unwrap_or(outside);
                o.inject(again.as_fd())?
            };
            if !std::mem::replace(&mut modes_set, true) {
                set_modes(o, fd, info, self.has_master(info))?;
            }
            made.push((*id, fd));
        }
        Ok(made)
    }

    /// Gives sessions their controlling terminals and foreground groups.
    pub(super) fn set_controlling_terminals(
        &self,
        stubs: &[(usize, Stub)],
    ) -> Result<(), RestoreError> {
        let mut done = HashSet::new();
        for info in self.terminals.values() {
            // The master's info repeats its slave's session.
            let outside = info.r#type == TtyType::Pty as i32 && !self.has_master(info);
            if info.sid == 0 || info.r#type == TtyType::Ctty as i32 || !done.insert(info.sid) {
                continue;
            }
            let leader = self.tasks.iter().position(|task| task.pid == info.sid as i32);
            let stub = leader.and_then(|leader| stubs.iter().find(|(task, _)| *task == leader));
            let Some((leader, stub)) = stub else { continue };
            if outside && self.inherited(&key(info)).is_none() {
                // The restorer's own terminal stays with its session.
                continue;
            }
            self.take_terminal(*leader, stub, info)?;
        }
        Ok(())
    }

    /// Gives a task that has just become a session leader its terminal, so that the children which
    /// it is going to be given inherit it. Call after its [`FilesRestore::open_shared`].
    ///
    /// # Errors
    /// The kernel refuses the terminal to the session.
    pub fn session_started(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        task: usize,
    ) -> Result<(), RestoreError> {
        let pid = self.tasks[task].pid as u32;
        let ours = |info: &&TtyInfoEntry| info.sid == pid && info.r#type != TtyType::Ctty as i32;
        let Some(info) = self.terminals.values().find(ours) else { return Ok(()) };
        let outside = match (&info.pty, self.inherited(&key(info))) {
            (_, Some(fd)) => Some(fd),
            // Its master is not made yet: nobody but the leader can have it open.
            (Some(pty), None) if !self.made_masters.contains(&pty.index) => return Ok(()),
            (Some(_), None) => None,
            (None, None) => return Ok(()),
        };
        let mut batch = arctern_tracee::Batch::new();
        let at = ctx.temporary();
        let fd = match (outside, &info.pty) {
            (Some(fd), _) => {
                ctx.inject(stub, fd.as_fd(), at)?;
                arctern_tracee::Arg::from(at)
            }
            (None, pty) => {
                let index = pty.as_ref().map_or(0, |pty| pty.index);
                let path = batch.c_string(format!("/dev/pts/{index}").as_bytes());
                let flags = libc::O_RDWR | libc::O_NOCTTY;
                let args = [libc::AT_FDCWD.into(), path.into(), flags.into()];
                batch.call(libc::SYS_openat, &args).into()
            }
        };
        batch.call(libc::SYS_ioctl, &[fd, TIOCSCTTY.into(), 0.into()]);
        batch.call(libc::SYS_close, &[fd]);
        Ok(stub.run_all(&mut batch, "give the session its terminal")?)
    }

    /// Makes a terminal the controlling one of session leader `leader`.
    fn take_terminal(
        &self,
        leader: usize,
        stub: &Stub,
        info: &TtyInfoEntry,
    ) -> Result<(), RestoreError> {
        let index = info.pty.as_ref().map(|pty| pty.index);
        let is_it = |id: u32| {
            self.terminal(id).is_some_and(|(_, other)| match (&other.pty, index) {
                (Some(pty), Some(index)) => pty.index == index && other.id & 1 == 0,
                _ => other.id == info.id,
            })
        };
        let wanted = &self.wanted[&self.tasks[leader].ids.files_id];
        let open = wanted.iter().find(|d| is_it(d.id)).map(|d| d.fd as i32);
        let mut batch = arctern_tracee::Batch::new();
        let fd = match (open, index) {
            (Some(fd), _) => arctern_tracee::Arg::from(fd),
            (None, Some(index)) => {
                let path = batch.c_string(format!("/dev/pts/{index}").as_bytes());
                let flags = libc::O_RDWR | libc::O_NOCTTY;
                let args = [libc::AT_FDCWD.into(), path.into(), flags.into()];
                batch.call(libc::SYS_openat, &args).into()
            }
            (None, None) => return Ok(()),
        };
        let take = batch.call(libc::SYS_ioctl, &[fd, TIOCSCTTY.into(), 0.into()]);
        let group = (info.pgrp != 0).then(|| {
            let group = batch.bytes(&info.pgrp.to_ne_bytes());
            batch.call(libc::SYS_ioctl, &[fd, TIOCSPGRP.into(), group.into()])
        });
        if open.is_none() {
            batch.call(libc::SYS_close, &[fd]);
        }
        stub.run(&mut batch)?;
        let failed = |what: &str| {
            let task = &self.tasks[leader];
            let part = format!("terminal {}", index.unwrap_or(info.id));
            let subject = Subject { pid: task.pid, comm: task.comm.clone(), part };
            let what = what.to_owned();
            move |source| RestoreError::Kernel { subject, what, source }
        };
        batch.result(take).map_err(failed("make it the controlling terminal"))?;
        if let Some(group) = group {
            batch.result(group).map_err(failed("set its foreground group"))?;
        }
        Ok(())
    }
}

/// CRIU's key of a terminal that lives outside.
fn key(info: &TtyInfoEntry) -> String {
    format!("tty[{:x}:{:x}]", info.rdev, info.dev())
}

fn open_path(o: &mut Opener<'_>, path: &[u8], flags: u32) -> i32 {
    let path = o.c_string(path);
    let flags = flags & !libc::O_ASYNC as u32 | libc::O_NOCTTY as u32;
    let args = [libc::AT_FDCWD.into(), path.into(), flags.into()];
    o.create(libc::SYS_openat, &args, "open the terminal")
}

/// Opens masters until the wanted index comes up: the kernel gives the lowest that is free.
fn open_master(
    o: &mut Opener<'_>,
    path: &[u8],
    flags: u32,
    info: &TtyInfoEntry,
) -> Result<i32, RestoreError> {
    let wanted = info.pty.as_ref().map_or(0, |pty| pty.index);
    if wanted > MAX_INDEX {
        return Err(RestoreError::Inconsistent(format!("pseudo terminal {wanted}")));
    }
    let mut passed = Vec::new();
    let fd = loop {
        let fd = open_path(o, path, flags);
        let number = o.batch().reserve(4);
        let args = [fd.into(), TIOCGPTN.into(), number.into()];
        o.call(libc::SYS_ioctl, &args, "read the index of the terminal");
        let batch = o.run_collected()?;
        let bytes = batch.memory(number).try_into();
        let index = bytes.map(u32::from_ne_bytes).unwrap_or(u32::MAX);
        if index == wanted {
            break fd;
        }
        if index > wanted {
            return Err(o.failed_here(&format!(
                "open pseudo terminal {wanted} again: the number is taken here and the next is {index}"
            ))(nix::Error::EBUSY.into()));
        }
        passed.push(fd);
    };
    for fd in passed {
        o.close(fd);
    }
    let unlocked = o.bytes(&u32::from(info.locked).to_ne_bytes());
    o.call(
        libc::SYS_ioctl,
        &[fd.into(), TIOCSPTLCK.into(), unlocked.into()],
        "unlock the terminal",
    );
    if info.packet_mode {
        let on = o.bytes(&1u32.to_ne_bytes());
        o.call(libc::SYS_ioctl, &[fd.into(), TIOCPKT.into(), on.into()], "set packet mode");
    }
    Ok(fd)
}

/// Modes belong to both sides; the size only to terminals that are made anew.
fn set_modes(
    o: &mut Opener<'_>,
    fd: i32,
    info: &TtyInfoEntry,
    anew: bool,
) -> Result<(), RestoreError> {
    if let Some(termios) = &info.termios {
        let bytes = o.bytes(&termios_of(termios).to_bytes());
        o.call(libc::SYS_ioctl, &[fd.into(), TCSETS.into(), bytes.into()], "set its modes");
    }
    if !anew {
        return Ok(());
    }
    if let Some(locked) = &info.termios_locked {
        let locked = termios_of(locked);
        if locked != Termios::default() {
            let bytes = o.bytes(&locked.to_bytes());
            let args = [fd.into(), TIOCSLCKTRMIOS.into(), bytes.into()];
            o.call(libc::SYS_ioctl, &args, "lock its modes");
        }
    }
    if let Some(size) = &info.winsize {
        let words = [size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel];
        let bytes: Vec<u8> = words.iter().flat_map(|word| (*word as u16).to_ne_bytes()).collect();
        let bytes = o.bytes(&bytes);
        o.call(libc::SYS_ioctl, &[fd.into(), TIOCSWINSZ.into(), bytes.into()], "set its size");
    }
    if info.exclusive {
        o.call(libc::SYS_ioctl, &[fd.into(), TIOCEXCL.into()], "make it exclusive");
    }
    Ok(())
}

/// A description of its own of a terminal that the controller has.
fn reopen(fd: &OwnedFd, flags: u32) -> std::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let access = flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK);
    let flags = OFlag::from_bits_retain(access | libc::O_NOCTTY | libc::O_CLOEXEC);
    Ok(nix::fcntl::open(path.as_str(), flags, Mode::empty()).map(File::from)?.into())
}
