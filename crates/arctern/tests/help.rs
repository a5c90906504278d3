//! The help of every command is one snapshot: a change of the command line is seen in review.

use std::process::{Command, Output};

fn arctern(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arctern"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the program runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const COMMANDS: &[&str] = &[
    "run",
    "create",
    "start",
    "stop",
    "restart",
    "pause",
    "unpause",
    "kill",
    "rm",
    "rename",
    "attach",
    "cp",
    "diff",
    "top",
    "stats",
    "ps",
    "logs",
    "exec",
    "inspect",
    "wait",
    "port",
    "checkpoint",
    "restore",
    "container",
    "migrate",
    "healthcheck",
    "import",
    "images",
    "rmi",
    "tag",
    "untag",
    "pull",
    "push",
    "load",
    "save",
    "history",
    "login",
    "logout",
    "image",
    "network",
    "forward",
    "volume",
    "system",
    "info",
    "version",
    "check",
    "criu",
];

#[test]
fn help_of_all_commands() {
    let mut all = text(&arctern(&["--help"]));
    for command in COMMANDS {
        all.push_str(&format!("\n---- {command} ----\n"));
        let output = arctern(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        all.push_str(&text(&output));
    }
    all.push_str("\n---- system check ----\n");
    all.push_str(&text(&arctern(&["system", "check", "--help"])));
    insta::assert_snapshot!("help", all);
}

#[test]
fn every_command_is_in_the_list() {
    let help = text(&arctern(&["--help"]));
    let listed = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| !l.trim().is_empty())
        .filter_map(|l| l.split_whitespace().next())
        .filter(|c| *c != "help");
    for command in listed {
        assert!(COMMANDS.contains(&command), "{command} has no snapshot");
    }
}

#[test]
fn wrong_options_are_explained_and_exit_with_125() {
    for arguments in [
        &["run"][..],
        &["run", "--network", "moon", "x"],
        &["run", "-p", "0:80", "x"],
        &["ps", "--filter", "bogus=1"],
        &["restore", "--name", "x"],
        &["nonsense"],
    ] {
        let output = arctern(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        assert!(text(&output).contains("error:"), "{arguments:?}");
    }
}

#[test]
fn container_forms_are_the_same_commands() {
    for command in ["run", "stop", "checkpoint", "restore", "ps"] {
        let options = |help: String| help.split_once("Options:").map(|(_, o)| o.to_owned());
        let short = options(text(&arctern(&[command, "--help"])));
        let long = options(text(&arctern(&["container", command, "--help"])));
        assert!(short.is_some());
        assert_eq!(short, long, "{command}");
    }
}

#[test]
fn criu_answers_with_its_own_codes() {
    assert_eq!(arctern(&["criu", "dump", "--nonsense"]).status.code(), Some(1));
    assert_eq!(arctern(&["criu", "dump", "-D", "/tmp"]).status.code(), Some(1));
    assert!(text(&arctern(&["criu", "-V"])).starts_with("Version: "));
    assert_eq!(arctern(&["criu", "--help"]).status.code(), Some(0));
}

#[test]
fn unknown_containers_are_named() {
    let dir = std::env::temp_dir().join(format!("arctern-cli-{}", std::process::id()));
    let (root, run) = (dir.join("root"), dir.join("run"));
    let (root, run) = (root.to_string_lossy(), run.to_string_lossy());
    let output = arctern(&["--root", &root, "--runroot", &run, "stop", "nobody"]);
    let _ = std::fs::remove_dir_all(&dir);
    assert_eq!(output.status.code(), Some(125));
    insta::assert_snapshot!(text(&output), @r"
    error: cannot stop container `nobody`
      no container with name or id `nobody`
    hint: `arctern ps -a` lists all containers
    ");
}
