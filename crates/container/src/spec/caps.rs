//! Capabilities of a container: Podman's default set, `--cap-add`, `--cap-drop`, `--privileged`.

use std::collections::BTreeSet;
use std::str::FromStr;

use arctern_sys::capability::NAMES as ALL;
use oci_spec::runtime::{Capabilities, Capability};

use crate::error::{Error, Result};

/// What a container has unless it is told otherwise: the default of Podman (containers.conf).
const DEFAULT: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The name of a capability as the spec has it: `net_admin` is `CAP_NET_ADMIN`.
pub fn normalize(name: &str) -> Result<String> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(upper);
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if ALL.contains(&full.as_str()) {
        Ok(full)
    } else {
        Err(Error::Invalid(format!("`{name}` is no capability")))
    }
}

/// The bounding set of a container. What this process does not have itself cannot be given and is
/// left out of `ALL` and of `--privileged`.
pub fn bounding(
    add: &[String],
    drop: &[String],
    privileged: bool,
) -> Result<BTreeSet<&'static str>> {
    let ours = own_bounding();
    let held = |name: &&str| {
        let number = ALL.iter().position(|n| n == name);
        number.is_some_and(|n| ours & (1 << n) != 0)
    };
    let all = || ALL.iter().copied().filter(held).collect::<BTreeSet<_>>();
    let mut set = if privileged { all() } else { DEFAULT.iter().copied().collect() };
    let find = |name: &str| ALL.iter().copied().find(|n| *n == name);
    let (add, drop) = (normalize_all(add)?, normalize_all(drop)?);
    if drop.iter().any(|n| n == "ALL") {
        set.clear();
    }
    if add.iter().any(|n| n == "ALL") {
        set = all();
    }
    set.extend(add.iter().filter_map(|n| find(n)));
    for name in &drop {
        set.remove(name.as_str());
    }
    Ok(set)
}

/// Names as a set of the kernel's numbers.
pub fn bits<'a>(names: impl IntoIterator<Item = &'a &'static str>) -> u64 {
    names
        .into_iter()
        .filter_map(|name| ALL.iter().position(|known| known == name))
        .fold(0, |set, number| set | 1 << number)
}

/// Capabilities that were added to the default set, by their full names.
pub fn beyond_default(add: &[String]) -> Result<Vec<String>> {
    let mut names = normalize_all(add)?;
    names.retain(|name| !DEFAULT.contains(&name.as_str()));
    Ok(names)
}

fn normalize_all(names: &[String]) -> Result<Vec<String>> {
    names.iter().map(|n| normalize(n)).collect()
}

/// Names as the spec library wants them.
pub fn to_spec<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Capabilities> {
    names
        .into_iter()
        .map(|n| {
            Capability::from_str(n.trim_start_matches("CAP_"))
                .map_err(|_| Error::Invalid(format!("`{n}` is no capability")))
        })
        .collect()
}

fn own_bounding() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(parse_bounding)
        .unwrap_or(u64::MAX)
}

fn parse_bounding(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn default_set_has_eleven() {
        assert_eq!(bounding(&[], &[], false).expect("caps").len(), 11);
    }

    #[test]
    fn drop_all_then_add() {
        let set = bounding(&strings(&["net_raw"]), &strings(&["all"]), false).expect("caps");
        assert_eq!(set.into_iter().collect::<Vec<_>>(), ["CAP_NET_RAW"]);
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(bounding(&strings(&["bogus"]), &[], false).is_err());
        assert_eq!(normalize("net_admin").expect("name"), "CAP_NET_ADMIN");
    }

    #[test]
    fn every_name_is_known_to_the_spec_library() {
        assert_eq!(to_spec(ALL.iter().copied()).expect("all").len(), ALL.len());
    }

    #[test]
    fn bounding_line_is_parsed() {
        assert_eq!(parse_bounding("Name:\tx\nCapBnd:\t000001ff\n"), Some(0x1ff));
    }
}
