//! The checkpoints that are kept with containers, and what is shown of checkpoints.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::engine::built;
use arctern_harness::host::Host;
use arctern_harness::skips::judge;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).context(text.to_owned())
}

#[test]
fn checkpoints_are_listed_shown_and_removed() -> Result<(), String> {
    judge("checkpoints::kept", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        for name in ["a", "b"] {
            let script = "sleep 1000 & exec sh -c 'read line < /dev/zero'";
            let run =
                ["run", "-d", "--network", "none", "--name", name, "nginx", "sh", "-c", script];
            host.arctern(&run)?;
        }
        host.arctern(&["checkpoint", "--leave-running", "a"])?;
        host.arctern(&["checkpoint", "b"])?;
        let list = json(&host.arctern(&["checkpoint", "ls", "--json"])?)?;
        let names: Vec<_> = list.as_array().into_iter().flatten().map(|k| &k["Name"]).collect();
        ensure!(names == ["b", "a"], "{list}");
        ensure!(list[0]["Size"].as_u64() > Some(10_000), "{list}");

        let shown = json(&host.arctern(&["checkpoint", "inspect", "--json", "b"])?)?;
        let commands: Vec<_> =
            shown["processes"].as_array().into_iter().flatten().map(|p| &p["command"][0]).collect();
        ensure!(commands.len() == 2 && commands.iter().any(|c| *c == "sleep"), "{shown}");

        // What can only go on from it keeps it.
        let refused = host.attempt(&["checkpoint", "rm", "b"])?;
        ensure!(String::from_utf8_lossy(&refused.stderr).contains("can only go on"), "{refused:?}");
        host.arctern(&["checkpoint", "prune", "--keep", "0"])?;
        ensure!(host.arctern(&["checkpoint", "ls", "-q"])? == "b", "the wrong ones were removed");
        ensure!(!host.attempt(&["checkpoint", "inspect", "a"])?.status.success(), "it is gone");
        host.arctern(&["restore", "b"])?;
        host.arctern(&["checkpoint", "b"])?;
        host.arctern(&["checkpoint", "rm", "--force", "b"])?;
        ensure!(!host.attempt(&["restore", "b"])?.status.success(), "restored from nothing");
        host.arctern(&["start", "b"])?;
        host.arctern(&["rm", "-f", "-t", "0", "a", "b"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn a_checkpoint_to_a_file_is_kept_beside_the_container_if_asked() -> Result<(), String> {
    judge("checkpoints::keep", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        let run = ["run", "-d", "--network", "none", "--name", "a", "nginx", "sleep", "1000"];
        host.arctern(&run)?;
        let file = |name: &str| host.dir().join(name).to_string_lossy().into_owned();
        let kept = || host.arctern(&["checkpoint", "ls", "-q"]);
        let id = host.arctern(&["inspect", "--format", "{{.Id}}", "a"])?;
        let directory = host.dir().join("root/containers").join(id).join("checkpoint");

        // The file has all of it; nothing stays beside a container that goes on.
        host.arctern(&["checkpoint", "-R", "-e", &file("plain.tar"), "a"])?;
        ensure!(kept()?.is_empty() && !directory.exists(), "kept without --keep");
        host.arctern(&["checkpoint", "-R", "--keep", "-e", &file("kept.tar"), "a"])?;
        ensure!(kept()? == "a", "not kept with --keep");
        for name in ["pstree.img", "inventory.img"] {
            let found = directory.join(name).exists();
            ensure!(found, "{name} is not kept in {}", directory.display());
        }
        let same = host.arctern(&["checkpoint", "diff", &file("kept.tar"), "a"])?;
        ensure!(!same.contains("+ ") && !same.contains("- "), "not what is in the file: {same}");
        // The next one replaces it.
        host.arctern(&["checkpoint", "--keep", "-e", &file("last.tar"), "a"])?;
        ensure!(kept()? == "a", "not kept when it was stopped");
        host.arctern(&["restore", "--keep", "a"])?;
        ensure!(kept()? == "a", "not kept by the restore");
        host.arctern(&["stop", "-t", "0", "a"])?;
        ensure!(kept()? == "a", "gone with the stop");
        host.arctern(&["checkpoint", "rm", "a"])?;
        host.arctern(&["rm", "-f", "-t", "0", "a"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn files_are_shown_and_compared_by_anybody() -> Result<(), String> {
    judge("checkpoints::files", || {
        let host = Host::new()?;
        host.image("python", &[])?;
        let program = "import mmap, os, time\n\
                       block = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
                       for i in range(1024): block[i << 12] = 1\nos.mkdir('/ready')\n\
                       while not os.path.exists('/go'): time.sleep(0.01)\n\
                       for i in range(1024): block[i << 12] = 2\nextra = open('/etc/hostname')\n\
                       os.mkdir('/went')\ntime.sleep(1000)";
        let run = ["run", "-d", "--name", "a", "--network", "none", "python", "python3", "-c"];
        host.arctern(&[&run[..], &[program]].concat())?;
        let file = |name: &str| host.dir().join(name).to_string_lossy().into_owned();
        let (first, second) = (file("first.tar.gz"), file("second.tar"));
        host.arctern(&["exec", "a", "sh", "-c", "until test -e /ready; do sleep 0.05; done"])?;
        host.arctern(&["checkpoint", "-R", "-e", &first, "a"])?;
        let go = "touch /go; until test -e /went; do sleep 0.05; done";
        host.arctern(&["exec", "a", "sh", "-c", go])?;
        host.arctern(&["checkpoint", "-R", "-e", &second, "a"])?;

        // Without root, without a store.
        let anybody = |arguments: &[&str]| -> Result<std::process::Output> {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
            command.arg(built("ARCTERN", "arctern")).args([
                "--root",
                "/nowhere",
                "--runroot",
                "/nowhere",
            ]);
            Ok(command.args(arguments).output()?)
        };
        std::fs::set_permissions(host.dir(), PermissionsExt::from_mode(0o755))?;
        for file in [&first, &second] {
            std::fs::set_permissions(file, PermissionsExt::from_mode(0o644))?;
        }
        let program = built("ARCTERN", "arctern");
        if Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "--regid", "65534"])
            .arg(&program)
            .arg("version")
            .output()
            .is_ok_and(|output| output.status.success())
        {
            let shown = anybody(&["checkpoint", "inspect", "-v", &first])?;
            let text = String::from_utf8_lossy(&shown.stdout);
            ensure!(shown.status.success(), "{shown:?}");
            ensure!(text.contains("compressed with gzip") && text.contains("python3 -c"), "{text}");
        }
        let difference =
            json(&host.arctern(&["checkpoint", "diff", "--json", &first, &second])?)?;
        let process = &difference["changed"][0];
        let pages = process["pages_changed"].as_u64().unwrap_or(0);
        ensure!((1024..1200).contains(&pages), "{pages} pages have changed: {difference}");
        ensure!(process["added_files"][0]["about"] == "/etc/hostname", "{difference}");
        ensure!(difference["config"] == serde_json::json!([]), "{difference}");

        // A cut file is an error that says what is missing.
        let whole = std::fs::read(&second)?;
        std::fs::write(file("cut.tar"), &whole[..whole.len() / 2])?;
        let refused = host.attempt(&["checkpoint", "inspect", &file("cut.tar")])?;
        let text = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && text.contains("checkpoint/"), "{text}");
        host.arctern(&["rm", "-f", "-t", "0", "a"])?;
        Ok(())
    })
}
