//! Facts of the machine that an archive was written on.

use std::collections::HashSet;
use std::io;

use serde::{Deserialize, Serialize};

/// What a restore elsewhere has to compare with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// As `uname -m` names it.
    pub architecture: String,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Bytes in a page.
    pub page_size: u64,
    /// Flags of the processor as `/proc/cpuinfo` names them, sorted.
    pub cpu_features: Vec<String>,
    /// Id of this boot (`/proc/sys/kernel/random/boot_id`): clocks of the images go with it.
    #[serde(default)]
    pub boot_id: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    #[serde(default)]
    pub distribution: String,
}

impl HostFacts {
    /// The facts of this machine.
    ///
    /// # Errors
    /// `/proc` cannot be read. A missing os-release leaves the distribution empty.
    pub fn gather() -> io::Result<Self> {
        let uname = nix::sys::utsname::uname()?;
        let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        Ok(Self {
            architecture: uname.machine().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            page_size: page_size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096),
            cpu_features: cpu_features(&cpuinfo),
            boot_id: boot_id.trim().to_owned(),
            distribution: pretty_name(&os_release).unwrap_or_default(),
        })
    }

    /// The processor features of this machine that `other` lacks.
    pub fn features_missing_on<'a>(&'a self, other: &HostFacts) -> Vec<&'a str> {
        let there: HashSet<&str> = other.cpu_features.iter().map(String::as_str).collect();
        self.cpu_features.iter().map(String::as_str).filter(|name| !there.contains(name)).collect()
    }
}

/// The features that every processor of a `/proc/cpuinfo` has, sorted.
fn cpu_features(cpuinfo: &str) -> Vec<String> {
    let mut common: Option<HashSet<&str>> = None;
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        if key.trim() == "flags" {
            let flags: HashSet<&str> = value.split_whitespace().collect();
            common = Some(match common {
                Some(common) => common.intersection(&flags).copied().collect(),
                None => flags,
            });
        }
    }
    let mut features: Vec<String> =
        common.unwrap_or_default().into_iter().map(str::to_owned).collect();
    features.sort_unstable();
    features
}

/// `PRETTY_NAME` of an os-release file.
fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_every_processor() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu sse2 avx\nbugs\t\t: none\n\n\
                       processor\t: 1\nflags\t\t: sse2 fpu\n";
        assert_eq!(cpu_features(cpuinfo), ["fpu", "sse2"]);
        assert!(cpu_features("").is_empty());
    }

    #[test]
    fn missing_features_are_named() {
        let host = |features: &[&str]| HostFacts {
            cpu_features: features.iter().map(|&name| name.to_owned()).collect(),
            ..Default::default()
        };
        let missing = host(&["avx512f", "sse2"]);
        assert_eq!(missing.features_missing_on(&host(&["sse2", "avx"])), ["avx512f"]);
    }

    #[test]
    fn the_distribution_is_its_pretty_name() {
        let text = "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(pretty_name(text).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = HostFacts::gather().unwrap();
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
        assert_eq!(facts.page_size, 4096);
    }
}
