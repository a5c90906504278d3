//! Terminals: pseudo terminals with both sides, `/dev/tty`, terminals that belong to somebody
//! outside. This is the capture; the restore is in [`super::tty_restore`].
//!
//! A pseudo terminal has one set of modes and a size, one session and one foreground group, whoever
//! looks; session and group are read from the stat lines of the tree's tasks, since a slave tells
//! them to its own session only. Restore opens masters until the wanted index comes up, then slaves
//! by path; sessions get their terminal when all tasks are there, and `/dev/tty` is opened after
//! that.
//!
//! A slave whose master is outside of the tree is kept with `--shell-job` (it becomes the restorer's
//! own terminal), as an external `tty[RDEV:DEV]` (handed in at restore), or as an orphan of the tree's
//! own devpts (restore makes a new master and hands it to its caller). Refused: consoles, serial
//! lines, and unread data, which cannot be looked at without taking it.

use std::collections::{BTreeMap, HashSet};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    FdTypes, FileEntry, TermiosEntry, TtyDataEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry,
    TtyType, WinsizeEntry,
};
use arctern_sys::fd::{self, Terminal, Termios};
use arctern_sys::proc;
use nix::sys::stat::{FileStat, major, minor};

use super::capture::{FileCollector, write_or_remove};
use super::descriptor::{Descriptor, entry};
use crate::error::{CaptureError, Refusal, Remedy};
use crate::options::External;
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

/// Whether a character device is a terminal.
pub(super) fn is_terminal(major: u64) -> bool {
    matches!(major, 4 | TTYAUX_MAJOR | SLAVE_MAJOR..=143)
}

/// Terminals of one capture.
#[derive(Debug, Default)]
pub(super) struct Collected {
    infos: BTreeMap<u32, TtyInfoEntry>,
    /// Who has a slave, for refusals: info, task, part, device of its devpts.
    slaves: Vec<(u32, usize, String, u64)>,
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
                self.terminals.slaves.push((info.id, d.index, d.part(), d.stat.st_dev));
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
                Remedy::try_again("when the program has read them"),
            ));
            // It is known all the same, so that its other side is not refused for the lack of it.
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
        // The devpts in which a restore can make masters anew.
        let own = nix::sys::stat::stat(&proc::path(tree.tasks[0].pid, "root/dev/pts"));
        let own = own.ok().filter(|_| self.options.orphan_terminals).map(|stat| stat.st_dev);
        let mut seen = HashSet::new();
        for (slave, index, part, device) in &self.terminals.slaves {
            if own == Some(*device) {
                continue;
            }
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

pub(super) fn termios_of(entry: &TermiosEntry) -> Termios {
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
