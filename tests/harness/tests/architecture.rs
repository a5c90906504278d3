//! The shape of the workspace: crates depend downward only, and unsafe code has two homes.
#![forbid(unsafe_code)]

use arctern_harness::engine::source;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What each crate may depend on, of our own crates (docs/architecture.md).
const MAY_USE: [(&str, &[&str]); 9] = [
    ("arctern-sys", &[]),
    ("arctern-tracee", &["arctern-sys"]),
    ("arctern-image", &["arctern-sys"]),
    ("arctern-net", &["arctern-sys"]),
    ("arctern-storage", &["arctern-sys", "arctern-image"]),
    ("arctern-engine", &["arctern-sys", "arctern-tracee", "arctern-image"]),
    (
        "arctern-container",
        &[
            "arctern-sys",
            "arctern-tracee",
            "arctern-image",
            "arctern-net",
            "arctern-storage",
            "arctern-engine",
        ],
    ),
    (
        "arctern-migrate",
        &["arctern-sys", "arctern-image", "arctern-storage", "arctern-engine", "arctern-container"],
    ),
    (
        "arctern",
        &[
            "arctern-migrate",
            "arctern-sys",
            "arctern-image",
            "arctern-net",
            "arctern-storage",
            "arctern-engine",
            "arctern-container",
        ],
    ),
];

/// The crates that may hold unsafe code.
const UNSAFE: [&str; 2] = ["sys", "tracee"];

#[test]
fn crates_depend_downward_only() {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--no-deps", "--locked", "--format-version", "1"])
        .current_dir(source())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let may_use: BTreeMap<_, _> = MAY_USE.into();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let manifest = package["manifest_path"].as_str().expect("path");
        if !manifest.contains("/crates/") {
            continue;
        }
        let Some(allowed) = may_use.get(name) else {
            wrong.push(format!(
                "{name} has no place in the order of crates (tests/harness/tests/architecture.rs)"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let used = dependency["name"].as_str().expect("name");
            if dependency["kind"] != "dev"
                && used.starts_with("arctern")
                && !allowed.contains(&used)
            {
                wrong.push(format!("{name} must not depend on {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_lives_in_two_crates() {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(source().join("crates")).expect("crates") {
        let directory = entry.expect("entry").path();
        let name = directory.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if UNSAFE.contains(&name.as_str()) {
            continue;
        }
        for root in ["src/lib.rs", "src/main.rs"] {
            let path = directory.join(root);
            if path.is_file() && !read(&path).contains("#![forbid(unsafe_code)]") {
                wrong.push(format!("{} does not forbid unsafe code", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lints_are_expected_with_a_reason_not_allowed() {
    let mut wrong = Vec::new();
    visit(&source().join("crates"), &mut |path| {
        if path.ends_with("tests/common/mod.rs") {
            // Each test uses some of it: what is dead in one is not in the next.
            return;
        }
        for (number, line) in read(path).lines().enumerate() {
            let line = line.trim_start();
            if line.starts_with("#[allow(") || line.starts_with("#![allow(") {
                wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    });
    assert!(wrong.is_empty(), "use #[expect(lint, reason = …)]:\n{}", wrong.join("\n"));
}

fn visit(directory: &Path, see: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            visit(&path, see);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            see(&path);
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
