//! `make install` puts the program with its man pages and completions where packagers want them, and
//! `make uninstall` takes all of it away.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use arctern_harness::engine::{built, source};
use arctern_harness::host::run;
use arctern_harness::skips::judge;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

#[test]
fn everything_is_installed_and_uninstalled() -> Result<(), String> {
    judge("install", || {
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let make = |target: &str| {
            let mut make = Command::new("make");
            make.current_dir(source()).args(["-s", target, "PREFIX=/usr"]);
            make.arg(format!("DESTDIR={}", dir.path().display()));
            make.arg(format!("BINARY={}", built("ARCTERN", "arctern").display()));
            run(&mut make)
        };
        make("install")?;
        let usr = dir.path().join("usr");
        run(Command::new(usr.join("bin/arctern")).arg("version"))?;
        for page in ["arctern.1", "arctern-run.1", "arctern-container-checkpoint.1"] {
            let text = fs::read_to_string(usr.join("share/man/man1").join(page))?;
            ensure!(text.contains(".SH OPTIONS"), "{page}: {text}");
        }
        let page = fs::read_to_string(usr.join("share/man/man1/arctern-pause.1"))?;
        ensure!(page.contains("arctern pause \\-\\-all"), "no example in {page}");
        ensure!(!usr.join("share/man/man1/arctern-internal.1").exists());
        for (file, word) in [
            ("bash-completion/completions/arctern", "checkpoint"),
            ("zsh/site-functions/_arctern", "#compdef arctern"),
            ("fish/vendor_completions.d/arctern.fish", "checkpoint"),
        ] {
            let text = fs::read_to_string(usr.join("share").join(file))?;
            ensure!(text.contains(word), "{file} does not know `{word}`");
        }
        run(Command::new("bash")
            .arg("-n")
            .arg(usr.join("share/bash-completion/completions/arctern")))?;
        make("uninstall")?;
        let left = files(dir.path())?;
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
}
