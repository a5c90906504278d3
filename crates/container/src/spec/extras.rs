//! What only some containers have in their runtime spec: devices of the host, and a program that is
//! pid 1 in place of the command.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use crate::config::{ContainerConfig, Device};
use crate::error::{Error, Result};

/// Where the program of `--init` is in the container.
pub const INIT: &str = "/dev/init";

/// Programs that serve as pid 1, in Debian's packages catatonit and tini: static ones, because they
/// run with the container's libraries.
const INIT_PROGRAMS: &[&str] =
    &["/usr/bin/catatonit", "/usr/libexec/podman/catatonit", "/usr/bin/tini-static"];

/// The program for `--init`: the one that was asked for, or the first that is here.
pub fn find_init(asked: Option<PathBuf>) -> Result<PathBuf> {
    let is_program = |path: &Path| path.is_file();
    match asked {
        Some(path) if is_program(&path) => Ok(path),
        Some(path) => Err(Error::Invalid(format!("there is no program {}", path.display()))),
        None => {
            INIT_PROGRAMS.iter().map(PathBuf::from).find(|path| is_program(path)).ok_or_else(|| {
                Error::Invalid(format!(
                    "--init needs a program that is pid 1, and none of {} is here: install the \
                     package catatonit or tini, or name one with --init-path",
                    INIT_PROGRAMS.join(", ")
                ))
            })
        }
    }
}

/// What pid 1 executes.
#[must_use]
pub fn args(config: &ContainerConfig) -> Vec<String> {
    let mut args = match config.init_path {
        Some(_) => vec![INIT.to_owned(), "--".to_owned()],
        None => Vec::new(),
    };
    args.extend(config.args());
    args
}

/// The devices that were asked for, as the host has them, and what may be done with them.
pub fn devices(config: &ContainerConfig) -> Result<(Vec<LinuxDevice>, Vec<LinuxDeviceCgroup>)> {
    let both = config.devices.iter().map(device).collect::<Result<Vec<_>>>()?;
    Ok(both.into_iter().unzip())
}

fn device(device: &Device) -> Result<(LinuxDevice, LinuxDeviceCgroup)> {
    let path = &device.host;
    let facts = std::fs::metadata(path).map_err(Error::io("inspect", path))?;
    let kind = match facts.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Err(Error::Invalid(format!("{} is no device", path.display()))),
    };
    let number = |part: u32| i64::from(part);
    let major = number(rustix::fs::major(facts.rdev()));
    let minor = number(rustix::fs::minor(facts.rdev()));
    let node = LinuxDeviceBuilder::default()
        .path(&device.container)
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(facts.mode() & 0o7777)
        .uid(facts.uid())
        .gid(facts.gid())
        .build()?;
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .major(major)
        .minor(minor)
        .access(device.permissions.clone())
        .build()?;
    Ok((node, rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_those_of_the_host() {
        let null: Device = "/dev/null:/dev/nil:rw".parse().expect("device");
        let (node, rule) = device(&null).expect("node");
        assert_eq!((node.major(), node.minor()), (1, 3));
        assert_eq!(node.path(), Path::new("/dev/nil"));
        assert_eq!(rule.access().as_deref(), Some("rw"));
        let file: Device = "/etc/passwd".parse().expect("path");
        assert!(device(&file).is_err());
    }
}
