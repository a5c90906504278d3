//! Terminals: pseudo terminals with both sides, `/dev/tty`, terminals that belong to somebody
//! outside.
//!
//! A pseudo terminal has one set of modes and a size, one session and one foreground group, whoever
//! looks; session and group are read from the stat lines of the tree's tasks, since a slave tells
//! them to its own session only. Restore opens masters until the wanted index comes up, then slaves
//! by path; sessions get their terminal when all tasks are there, and `/dev/tty` is opened after
//! that.
//!
//! A slave whose master is outside of the tree is kept with `--shell-job` (it becomes the restorer's
//! own terminal) or as an external `tty[RDEV:DEV]` (handed in at restore). Refused: consoles, serial
//! lines, and unread data, which cannot be looked at without taking it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    FdTypes, FileEntry, TermiosEntry, TtyDataEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry,
    TtyType, WinsizeEntry,
};
use arctern_sys::fd::{self, Terminal, Termios};
use arctern_tracee::stub::Stub;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, major, minor};

use super::capture::{FileCollector, write_or_remove};
use super::descriptor::{Descriptor, entry};
use super::groups::{Bond, Group};
use super::restore::FilesRestore;
use super::table::Opener;
use crate::error::{CaptureError, Refusal, RestoreError, Subject};
use crate::options::External;
use crate::restore_context::RestoreContext;
use crate::tree::FrozenTree;

/// Major number of `/dev/tty`, `/dev/console` and `/dev/ptmx`, and their minors.
const TTYAUX_MAJOR: u64 = 5;
const CTTY: u64 = 0;
const PTMX: u64 = 2;
/// First major number of pseudo terminal slaves.
const SLAVE_MAJOR: u64 = 136;
/// Infos of `/dev/tty` and of external terminals are numbered from here; those of pseudo terminals
/// are twice the index, plus 1 for the master.
const OTHER_IDS: u32 = 2012;
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

/// Whether a character device is a terminal.
pub(super) fn is_terminal(major: u64) -> bool {
    matches!(major, 4 | TTYAUX_MAJOR | SLAVE_MAJOR..=143)
}

/// Terminals of one capture.
#[derive(Debug, Default)]
pub(super) struct Collected {
    infos: BTreeMap<u32, TtyInfoEntry>,
    /// Who has a slave, for refusals: info, task, part.
    slaves: Vec<(u32, usize, String)>,
}

impl FileCollector {
    /// A descriptor of a terminal.
    pub(super) fn terminal(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let (major, minor) = (major(d.stat.st_rdev), minor(d.stat.st_rdev));
        let external = External::Tty { rdev: d.stat.st_rdev, dev: d.stat.st_dev };
        let external = self.options.externals.contains(&external);
        let terminal = fd::terminal(&d.file).map_err(d.failed("read the terminal's modes"))?;
        let mut info = info_of(&terminal, &d.stat);
        if external {
            info.id = self.other_terminal(|known| {
                known.r#type == TtyType::ExtTty as i32
                    && (known.rdev, known.dev) == (info.rdev, info.dev)
            });
            info.r#type = TtyType::ExtTty as i32;
        } else if (major, minor) == (TTYAUX_MAJOR, CTTY) {
            let stat = &d.task().stat;
            (info.sid, info.pgrp) = session_of(d.tree, |nr| nr == stat.tty_nr);
            info.r#type = TtyType::Ctty as i32;
            info.id = self.other_terminal(|known| {
                known.r#type == TtyType::Ctty as i32 && known.sid == info.sid
            });
        } else if (major, minor) == (TTYAUX_MAJOR, PTMX) || major >= SLAVE_MAJOR {
            let index = if major == TTYAUX_MAJOR {
                let (index, locked, packets) =
                    fd::terminal_master(&d.file).map_err(d.failed("read the terminal's index"))?;
                (info.locked, info.packet_mode) = (locked, packets);
                info.id = index * 2 + 1;
                index
            } else {
                let index = ((major - SLAVE_MAJOR) * 256 + minor) as u32;
                info.id = index * 2;
                self.terminals.slaves.push((info.id, d.index, d.part()));
                index
            };
            (info.sid, info.pgrp) = session_of(d.tree, |nr| slave_index(nr) == Some(index));
            info.pty = Some(TtyPtyEntry { index });
        } else {
            refusals.push(d.refuse(
                format!("the terminal {major}:{minor} is a console or a serial line, which cannot be carried"),
                "start the program on a pseudo terminal, or declare it with --external tty[RDEV:DEV]",
            ));
            return Ok(None);
        }
        let unread = fd::readable(&d.file).unwrap_or(0);
        if unread != 0 && info.pty.is_some() {
            refusals.push(d.refuse(
                format!("{unread} bytes wait to be read from the terminal"),
                "try again when the program has read them",
            ));
            return Ok(None);
        }
        let Some(regf_id) = self.path_of(d, refusals)? else { return Ok(None) };
        let (id, tty_info_id) = (self.new_id(), info.id);
        self.terminals.infos.entry(tty_info_id).or_insert(info);
        Ok(Some(FileEntry {
            tty: Some(Box::new(TtyFileEntry {
                id,
                tty_info_id,
                flags: d.flags(),
                fown: d.fown.clone(),
                regf_id: Some(regf_id),
            })),
            ..entry(FdTypes::Tty, id)
        }))
    }

    /// The id of a terminal that is no pseudo terminal of the tree's: the known one, or a new one.
    fn other_terminal(&self, is_it: impl Fn(&TtyInfoEntry) -> bool) -> u32 {
        let others = self.terminals.infos.range(OTHER_IDS..);
        match others.clone().find(|(_, info)| info.pty.is_none() && is_it(info)) {
            Some((id, _)) => *id,
            None => others.last().map_or(OTHER_IDS, |(id, _)| id + 2),
        }
    }

    /// Refuses slaves whose master nobody in the tree has, when every descriptor is known.
    pub(super) fn resolve_terminals(&mut self, tree: &FrozenTree, refusals: &mut Vec<Refusal>) {
        if self.options.shell_job {
            return;
        }
        let mut seen = HashSet::new();
        for (slave, index, part) in &self.terminals.slaves {
            if !self.terminals.infos.contains_key(&(slave + 1)) && seen.insert((slave, index)) {
                refusals.push(tree.tasks[*index].refuse(
                    part.clone(),
                    "the program behind this terminal is outside of the tree",
                    "pass --shell-job to use the restorer's own terminal, or \
                     --external tty[RDEV:DEV] to hand one in",
                ));
            }
        }
    }

    /// Writes the terminals.
    pub(super) fn write_terminals(&self, images: &ImageDir) -> Result<(), CaptureError> {
        let infos: Vec<TtyInfoEntry> = self.terminals.infos.values().cloned().collect();
        write_or_remove(images, ImageKind::TtyInfo, &infos)?;
        write_or_remove::<TtyDataEntry>(images, ImageKind::TtyData, &[])
    }
}

/// Index of the slave with device number `nr` of a stat line.
fn slave_index(nr: i32) -> Option<u32> {
    // Bits 8 to 19 are the major number, the others the minor.
    let nr = nr as u32;
    let (major, minor) = ((nr >> 8 & 0xfff) as u64, nr & 0xff | nr >> 12 & 0xf_ff00);
    major.checked_sub(SLAVE_MAJOR).filter(|m| *m < 8).map(|m| m as u32 * 256 + minor)
}

/// Session and foreground group of the controlling terminal that `is_it` picks, by inner ids; 0
/// where the tree has none.
fn session_of(tree: &FrozenTree, is_it: impl Fn(i32) -> bool) -> (u32, u32) {
    let Some(task) =
        tree.tasks.iter().find(|task| task.stat.tty_nr != 0 && is_it(task.stat.tty_nr))
    else {
        return (0, 0);
    };
    let sid = task.status.ns_sid.last().copied().unwrap_or(0);
    let group = tree
        .tasks
        .iter()
        .find(|other| other.status.ns_pgid.first() == Some(&task.stat.tpgid))
        .and_then(|other| other.status.ns_pgid.last().copied());
    (sid.max(0) as u32, group.unwrap_or(0).max(0) as u32)
}

fn info_of(terminal: &Terminal, stat: &FileStat) -> TtyInfoEntry {
    let [ws_row, ws_col, ws_xpixel, ws_ypixel] = terminal.size.map(u32::from);
    TtyInfoEntry {
        id: 0,
        r#type: TtyType::Pty as i32,
        locked: false,
        exclusive: terminal.exclusive,
        packet_mode: false,
        sid: 0,
        pgrp: 0,
        rdev: stat.st_rdev as u32,
        termios: Some(termios_entry(&terminal.termios)),
        termios_locked: Some(termios_entry(&terminal.locked)),
        winsize: Some(WinsizeEntry { ws_row, ws_col, ws_xpixel, ws_ypixel }),
        pty: None,
        dev: Some(stat.st_dev as u32),
        uid: Some(stat.st_uid),
        gid: Some(stat.st_gid),
    }
}

/// CRIU's form: the 19 characters stand in the first words of 19, four a word.
fn termios_entry(termios: &Termios) -> TermiosEntry {
    let [c_iflag, c_oflag, c_cflag, c_lflag] = termios.flags;
    let mut bytes = [0; 76];
    bytes[..19].copy_from_slice(&termios.characters);
    let word = |chunk: &[u8]| chunk.try_into().map(u32::from_ne_bytes).unwrap_or_default();
    TermiosEntry {
        c_iflag,
        c_oflag,
        c_cflag,
        c_lflag,
        c_line: termios.line.into(),
        c_ispeed: 0,
        c_ospeed: 0,
        c_cc: bytes.chunks(4).map(word).collect(),
    }
}

fn termios_of(entry: &TermiosEntry) -> Termios {
    let mut characters = [0; 19];
    let bytes = entry.c_cc.iter().flat_map(|word| word.to_ne_bytes());
    for (character, byte) in characters.iter_mut().zip(bytes) {
        *character = byte;
    }
    Termios {
        flags: [entry.c_iflag, entry.c_oflag, entry.c_cflag, entry.c_lflag],
        line: entry.c_line as u8,
        characters,
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
                open_path(o, &path, tty.flags)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_of_stat_lines() {
        assert_eq!(slave_index(34816), Some(0));
        assert_eq!(slave_index(34817 + 5), Some(6));
        assert_eq!(slave_index(0x0010_8803), Some(0x103));
        assert_eq!(slave_index(1280), None);
        assert_eq!(slave_index(0), None);
    }

    #[test]
    fn characters_survive_the_words() {
        let mut termios = Termios { flags: [1, 2, 3, 4], line: 5, characters: [0; 19] };
        for (i, c) in termios.characters.iter_mut().enumerate() {
            *c = i as u8 + 1;
        }
        let entry = termios_entry(&termios);
        assert_eq!(entry.c_cc.len(), 19);
        // As CRIU writes `^C ^\ DEL ^U`.
        let words = termios_entry(&Termios {
            characters: *b"\x03\x1c\x7f\x15\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..Termios::default()
        });
        assert_eq!(words.c_cc[0], 0x157f_1c03);
        assert_eq!(termios_of(&entry), termios);
    }
}
