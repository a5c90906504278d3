//! `check`

use std::path::Path;

use arctern_container::cgroup::Hierarchies;
use serde_json::json;

use crate::report::{Cannot, CommandResult};

/// Check what this machine can do
///
/// Lists what containers and checkpoints need of the kernel, and whether it is there. Fails when
/// something is missing without which nothing works.
///
///   arctern check
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: text or json
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    pub format: String,
}

/// One thing that was looked for.
struct Finding {
    name: &'static str,
    /// Nothing works without it.
    needed: bool,
    present: bool,
    /// What it is for, or how to get it.
    note: &'static str,
}

/// Runs the command.
pub fn run(args: Args) -> CommandResult {
    let findings = probe();
    let failed = findings.iter().any(|f| f.needed && !f.present);
    if args.json || args.format == "json" {
        let list: Vec<_> = findings
            .iter()
            .map(|f| json!({ "name": f.name, "needed": f.needed, "present": f.present, "note": f.note }))
            .collect();
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
    } else {
        for f in &findings {
            let state = match (f.present, f.needed) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "absent",
            };
            outln!("{:<26} {state:<8} {}", f.name, f.note);
        }
    }
    Ok(u8::from(failed))
}

/// Whether something is missing without which nothing works.
pub fn failed() -> bool {
    probe().iter().any(|f| f.needed && !f.present)
}

fn probe() -> Vec<Finding> {
    let exists = |path: &str| Path::new(path).exists();
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let filesystem =
        |name: &str| filesystems.lines().any(|l| l.split_whitespace().last() == Some(name));
    let groups = Hierarchies::of_machine().ok();
    let controller = |name: &str| groups.as_ref().is_some_and(|g| g.has(name));
    let finding = |name, needed, present, note| Finding { name, needed, present, note };
    vec![
        finding("root", true, rustix::process::geteuid().is_root(), "run it as root"),
        finding(
            "overlayfs",
            true,
            filesystem("overlay"),
            "root file systems of containers: modprobe overlay",
        ),
        finding("network namespaces", true, exists("/proc/self/ns/net"), "own networks"),
        finding(
            "pid namespaces",
            true,
            exists("/proc/self/ns/pid"),
            "restored processes keep their pids",
        ),
        finding(
            "time namespaces",
            false,
            exists("/proc/self/ns/time"),
            "monotonic clocks go on after a move",
        ),
        finding(
            "map_files",
            true,
            exists("/proc/self/map_files"),
            "CONFIG_CHECKPOINT_RESTORE: shared and deleted mapped files",
        ),
        finding(
            "cgroups",
            true,
            groups.as_ref().is_some_and(|g| g.version() != "none"),
            "mount a cgroup hierarchy",
        ),
        finding(
            "freezer",
            false,
            groups.as_ref().is_some_and(|g| g.freezer("x").is_some()),
            "stops all processes at once",
        ),
        finding("memory controller", false, controller("memory"), "--memory"),
        finding("cpu controller", false, controller("cpu"), "--cpus"),
        finding("pids controller", false, controller("pids"), "--pids-limit"),
        finding(
            "userfaultfd",
            false,
            exists("/dev/userfaultfd") || exists("/proc/sys/vm/unprivileged_userfaultfd"),
            "write tracking",
        ),
    ]
}
