//! What the files of a confined tree may not be: opened by the controller's privileges and not by
//! the tree's own.

use std::path::{Component, Path};

use arctern_image::messages::{RegFileEntry, RemapType};

use super::restore::FilesRestore;
use super::{ghost, inet};
use crate::confinement::{Confinement, NET_ADMIN};
use crate::error::{Refusal, RestoreError};

/// Files of /proc that anybody may read; the rest of what is no process shows or changes the host.
const READABLE: &[&str] = &[
    "cgroups",
    "cmdline",
    "cpuinfo",
    "devices",
    "diskstats",
    "filesystems",
    "interrupts",
    "loadavg",
    "meminfo",
    "mounts",
    "net",
    "partitions",
    "pressure",
    "self",
    "softirqs",
    "stat",
    "swaps",
    "sys",
    "thread-self",
    "uptime",
    "version",
    "vmstat",
    "zoneinfo",
];

impl FilesRestore {
    /// Refuses files that lead to devices or into the kernel, and sockets that others' packets could
    /// be steered by.
    ///
    /// # Errors
    /// An image of a deleted file cannot be read.
    pub fn check_confined(
        &self,
        confinement: &Confinement,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), RestoreError> {
        let mut refuse = |id: u32, name: &str, cause: &str, remedy: &str| {
            refusals.push(Refusal {
                subject: self.subject(id, name),
                cause: cause.to_owned(),
                remedy: remedy.into(),
            });
        };
        const TRUST: &str = "allow it with --trust, if you trust the archive";
        for (id, remap) in &self.remaps {
            let name = self.files.get(id).and_then(|file| file.reg.as_deref());
            let name = name.map_or("", |reg| reg.name.as_str());
            if remap.remap_type.is_some_and(|kind| kind != RemapType::Ghost as i32) {
                continue;
            }
            let (mode, device) = ghost::node(&self.images, remap.remap_id)?;
            if !confinement.allows_device(mode, device) {
                refuse(*id, name, "it is a device", TRUST);
            }
        }
        let more = |id: &u32| self.files[id].isk.as_deref().map_or(&[][..], |s| &s.more_opts);
        for id in self.files.keys() {
            if more(id).iter().any(|option| !inet::is_carried(option)) {
                refuse(*id, "socket", "it has an option that no capture writes", "");
            }
        }
        if confinement.trusted {
            return Ok(());
        }
        for (id, file) in &self.files {
            if let Some(reg) = file.reg.as_deref().filter(|reg| !reg.ext())
                && let Some(cause) = beyond(reg)
            {
                refuse(*id, &reg.name, cause, TRUST);
            }
            let options = [
                file.isk.as_deref().map(|socket| &socket.opts),
                file.usk.as_deref().map(|socket| &socket.opts),
            ];
            if confinement.allows(NET_ADMIN) {
                continue;
            }
            const ADD: &str = "allow it with --cap-add NET_ADMIN, if you trust the archive";
            if options.into_iter().flatten().any(|o| o.so_mark() != 0) {
                refuse(*id, "socket", "its packets carry a mark that steers them", ADD);
            }
            let foreign = [
                (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
                (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
            ];
            if more(id).iter().any(|o| foreign.contains(&(o.level, o.name)) && o.value != 0) {
                refuse(*id, "socket", "it may send under others' addresses", ADD);
            }
        }
        Ok(())
    }
}

/// What is wrong with a path.
fn beyond(reg: &RegFileEntry) -> Option<&'static str> {
    let path = Path::new(&reg.name);
    if path.components().any(|part| part == Component::ParentDir) {
        return Some("its path leads upwards");
    }
    let writes = reg.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
    if path.starts_with("/sys") && writes {
        return Some("it is open for writing to the kernel");
    }
    let below = path.strip_prefix("/proc").ok()?;
    let first = below.components().next()?.as_os_str().to_str()?;
    if first.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match READABLE.contains(&first) {
        true if first != "sys" || !writes => None,
        true => Some("it is open for writing to the kernel"),
        false => Some("it shows or changes the host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, flags: i32) -> bool {
        let reg =
            RegFileEntry { name: name.to_owned(), flags: flags as u32, ..RegFileEntry::default() };
        beyond(&reg).is_some()
    }

    #[test]
    fn the_kernels_files_are_not_opened_with_privileges() {
        for name in ["/proc/kmsg", "/proc/kcore", "/proc/sysrq-trigger", "/proc/kpageflags"] {
            assert!(refused(name, libc::O_RDONLY), "{name}");
        }
        assert!(refused("/proc/sys/kernel/core_pattern", libc::O_WRONLY));
        assert!(refused("/sys/kernel/uevent_helper", libc::O_RDWR));
        assert!(refused("/data/../proc/kmsg", libc::O_RDONLY));
        for name in ["/proc", "/proc/1/status", "/proc/meminfo", "/proc/self/maps", "/sys/fs", "/x"]
        {
            assert!(!refused(name, libc::O_RDONLY), "{name}");
        }
        assert!(!refused("/proc/7/oom_score_adj", libc::O_RDWR));
        assert!(!refused("/var/log/a", libc::O_RDWR));
    }
}
