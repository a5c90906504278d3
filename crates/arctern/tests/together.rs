//! Commands that come upon a fresh root at the same time.

use std::process::{Command, Stdio};

#[test]
fn commands_open_a_fresh_root_together() {
    for round in 0..20 {
        let dir = tempfile::tempdir().expect("directory");
        let running: Vec<_> = (0..8)
            .map(|_| {
                Command::new(env!("CARGO_BIN_EXE_arctern"))
                    .arg("--root")
                    .arg(dir.path().join("root"))
                    .arg("--runroot")
                    .arg(dir.path().join("run"))
                    .args(["ps", "-q"])
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("arctern starts")
            })
            .collect();
        for command in running {
            let output = command.wait_with_output().expect("arctern ends");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "round {round}: {error}");
        }
    }
}
