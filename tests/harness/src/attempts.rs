//! The commands that tests of crashes kill, and those that they run at the same time.

use crate::random::Random;

/// A command that is killed, what has to be there before, and how it may fail when it is repeated
/// because it had got through. `@` stands for the directory of the host, `%` for the registry.
#[derive(Debug)]
pub struct Attempt {
    /// Commands that make what it needs.
    pub before: &'static [&'static [&'static str]],
    /// The command.
    pub command: &'static [&'static str],
    /// What it says when it had got through.
    pub got_through: &'static [&'static str],
    /// Whether it captures container `c`, which must not be lost.
    pub captures: bool,
}

/// There is no container of the name.
pub const GONE: &str = "no container with name";
const NO_IMAGE: &str = "no image";
const TAKEN: &str = "is used by container";

type Words = &'static [&'static str];

const CREATE: Words = &["create", "--name", "c", "tiny", "sh", "-c", "while :; do sleep 1; done"];
/// A container that goes on until it is stopped.
pub const RUN: Words =
    &["run", "-d", "-p", "8080:80", "--name", "c", "tiny", "sh", "-c", "while :; do sleep 1; done"];
const WITH_VOLUME: Words =
    &["run", "-d", "-v", "v:/data", "--name", "c", "tiny", "sh", "-c", "sleep 1000"];
const CHECKED: Words =
    &["run", "-d", "--health-cmd", ":", "--name", "c", "tiny", "sh", "-c", "sleep 1000"];
const SHORT: Words = &["run", "-d", "--name", "c", "tiny", "sh", "-c", "sleep 0.3"];
const CHECKPOINT: Words = &["container", "checkpoint", "c"];
const SNAPSHOT: Words = &["container", "checkpoint", "-R", "c"];
const EXPORT: Words = &["container", "checkpoint", "c", "--file", "@/c.tar"];
const FREEZE: Words = &["container", "checkpoint", "c", "--create-image", "frozen"];
const NETWORK: Words = &["network", "create", "lan"];
const VOLUME: Words = &["volume", "create", "v"];
const TAG: Words = &["tag", "tiny", "third"];
const IMPORT: Words = &["import", "--change", "ENV A=B", "@/tiny.tar", "other"];
/// As in [`crate::registry::CREDS`].
const LOGIN: Words = &["login", "--authfile", "@/auth.json", "-u", "user", "-p", "a secret", "%"];
const SAVE: Words = &["save", "-o", "@/saved.tar", "tiny"];

const fn attempt(before: &'static [Words], command: Words, got_through: Words) -> Attempt {
    Attempt { before, command, got_through, captures: false }
}

const fn capture(before: &'static [Words], command: Words) -> Attempt {
    Attempt { before, command, got_through: &["not running"], captures: true }
}

/// Every command that changes something.
pub const ATTEMPTS: &[Attempt] = &[
    attempt(&[], CREATE, &[TAKEN]),
    attempt(&[], RUN, &[TAKEN]),
    attempt(&[], WITH_VOLUME, &[TAKEN]),
    attempt(&[], &["run", "--rm", "--name", "c", "tiny", "sh", "-c", ":"], &[TAKEN]),
    attempt(&[CREATE], &["start", "c"], &[]),
    attempt(&[RUN], &["stop", "-t", "0", "c"], &[]),
    attempt(&[RUN], &["restart", "-t", "0", "c"], &[]),
    attempt(&[RUN], &["pause", "c"], &["is paused"]),
    attempt(&[RUN, &["pause", "c"]], &["unpause", "c"], &["is not paused"]),
    attempt(&[RUN], &["kill", "c"], &["is exited, not running"]),
    attempt(&[RUN], &["rm", "-f", "-t", "0", "c"], &[GONE]),
    attempt(&[CREATE], &["rm", "c"], &[GONE]),
    attempt(&[RUN], &["rename", "c", "again"], &[GONE]),
    attempt(&[RUN], &["cp", "@/tiny.tar", "c:/x"], &[]),
    attempt(&[CREATE], &["cp", "@/tiny.tar", "c:/x"], &[]),
    attempt(&[RUN], &["cp", "c:/bin/sh", "@/copy"], &[]),
    attempt(&[CREATE], &["container", "prune", "--force"], &[]),
    attempt(&[RUN], &["exec", "c", "sh", "-c", "sleep 0.1"], &[]),
    attempt(&[RUN], &["exec", "-d", "c", "sleep", "0.1"], &[]),
    attempt(&[SHORT], &["attach", "--no-stdin", "c"], &["not running"]),
    attempt(&[SHORT], &["wait", "c"], &[]),
    attempt(&[CHECKED], &["healthcheck", "run", "c"], &[]),
    capture(&[RUN], CHECKPOINT),
    capture(&[RUN], EXPORT),
    capture(&[RUN], &["container", "checkpoint", "c", "--leave-running", "--file", "@/c.tar"]),
    capture(&[RUN], &["container", "checkpoint", "c", "-R", "--keep", "--file", "@/c.tar"]),
    capture(&[RUN], &["container", "checkpoint", "c", "--tcp-established", "--file", "@/c.tar"]),
    capture(&[WITH_VOLUME], &["container", "checkpoint", "c", "--leave-running"]),
    capture(&[RUN], FREEZE),
    attempt(&[RUN, CHECKPOINT], &["container", "restore", "c"], &["is running, not"]),
    attempt(&[RUN, CHECKPOINT], &["container", "restore", "--keep", "c"], &["is running, not"]),
    attempt(
        &[RUN, EXPORT, &["rm", "c"]],
        &["container", "restore", "--file", "@/c.tar"],
        &["exists already"],
    ),
    attempt(&[RUN, FREEZE, &["rm", "c"]], &["container", "restore", "frozen"], &["exists already"]),
    attempt(&[RUN, FREEZE, &["rm", "c"]], &["run", "-d", "--name", "again", "frozen"], &[TAKEN]),
    attempt(&[RUN, SNAPSHOT], &["checkpoint", "rm", "c"], &["has no checkpoint"]),
    attempt(&[RUN, SNAPSHOT], &["checkpoint", "prune", "--keep", "0"], &[]),
    attempt(&[RUN, CHECKPOINT], &["checkpoint", "rm", "--force", "c"], &["has no checkpoint"]),
    attempt(&[], IMPORT, &[]),
    attempt(&[], TAG, &[]),
    attempt(&[TAG], &["untag", "tiny", "third"], &[NO_IMAGE]),
    attempt(&[TAG], &["rmi", "third"], &[NO_IMAGE]),
    attempt(&[IMPORT], &["rmi", "other"], &[NO_IMAGE]),
    attempt(&[IMPORT, &["untag", "other"]], &["image", "prune", "--force"], &[]),
    attempt(&[], SAVE, &[]),
    attempt(&[SAVE], &["load", "-i", "@/saved.tar"], &[]),
    attempt(&[IMPORT], &["push", "other", "%/team/other:1"], &[]),
    attempt(&[], &["pull", "%/team/app:1"], &[]),
    attempt(
        &[],
        &["run", "-d", "--pull", "always", "--name", "c", "%/team/app:1", "cat", "/dev/stdin"],
        &[TAKEN],
    ),
    attempt(&[], LOGIN, &[]),
    attempt(&[LOGIN], &["logout", "--authfile", "@/auth.json", "%"], &["nobody is logged in"]),
    attempt(&[], NETWORK, &["network lan exists"]),
    attempt(&[NETWORK], &["network", "rm", "lan"], &["no network with name"]),
    attempt(
        &[NETWORK],
        &["run", "-d", "--network", "lan", "--name", "c", "tiny", "sleep", "100"],
        &[TAKEN],
    ),
    attempt(&[], VOLUME, &["already exists"]),
    attempt(&[VOLUME], &["volume", "rm", "v"], &["no volume"]),
    attempt(&[VOLUME], &["volume", "prune", "--force"], &[]),
    attempt(&[VOLUME], &["volume", "import", "v", "@/tiny.tar"], &[]),
    attempt(
        &[VOLUME, &["volume", "import", "v", "@/tiny.tar"]],
        &["volume", "export", "v", "-o", "@/v.tar"],
        &[],
    ),
    attempt(&[RUN], &["system", "check", "--repair"], &[]),
];

/// What commands may say when others were faster.
pub const FASTER: &[&str] = &[
    GONE,
    TAKEN,
    "exists already",
    "already exists",
    "is running",
    "is paused",
    "is not paused",
    "has ended meanwhile",
    // An `exec` is on its way in.
    "(youki:",
    "not running",
    "not stopped",
    "has no checkpoint",
    "can only go on from it",
    NO_IMAGE,
    "no volume",
    "belongs to",
    "network net exists",
    "is on network",
    "no network with name",
    "is in use",
    "is used by",
    "is a checkpoint",
];

/// A command on a few containers, images, volumes and a network that all have in common. `@` stands
/// for the directory of the host.
pub fn random_command(random: &mut Random) -> Vec<String> {
    const ALIKE: &[&[&str]] = &[
        &["run", "-d", "--name", "N", "tiny", "sleep", "1000"],
        &["run", "-d", "--name", "N", "tiny", "sleep", "1000"],
        &["run", "-d", "--name", "N", "-v", "V:/data", "tiny", "sleep", "1000"],
        &["create", "--name", "N", "tiny", "sleep", "1000"],
        &["start", "N"],
        &["stop", "-t", "0", "N"],
        &["restart", "-t", "0", "N"],
        &["kill", "N"],
        &["pause", "N"],
        &["unpause", "N"],
        &["rm", "-f", "-t", "0", "N"],
        &["rename", "N", "M"],
        &["exec", "N", "sh", "-c", ":"],
        &["exec", "-d", "N", "sh", "-c", ":"],
        &["cp", "@/tiny.tar", "N:/x"],
        &["cp", "N:/bin/sh", "@/copy-N"],
        &["top", "N"],
        &["stats", "--no-stream", "N"],
        &["container", "checkpoint", "N"],
        &["container", "restore", "N"],
        &["container", "checkpoint", "N", "--leave-running", "--file", "@/N.tar"],
        &["container", "checkpoint", "N", "-R", "--create-image", "frozen-N"],
        &["checkpoint", "rm", "N"],
        &["checkpoint", "prune", "--keep", "2"],
        &["rmi", "--force", "frozen-N"],
        &["run", "--rm", "--network", "net", "tiny", "sh", "-c", ":"],
        &["import", "@/tiny.tar", "other"],
        &["tag", "tiny", "third"],
        &["untag", "tiny", "third"],
        &["rmi", "other"],
        &["image", "prune", "--force"],
        &["save", "-o", "@/saved-N.tar", "tiny"],
        &["volume", "create", "V"],
        &["volume", "rm", "V"],
        &["network", "create", "net"],
        &["network", "rm", "net"],
        &["ps", "-a"],
        &["images"],
        &["system", "check", "--quick", "--repair"],
        &["system", "check", "--quick", "--repair"],
    ];
    let words = ALIKE[random.below(ALIKE.len() as u64) as usize];
    let (name, other) = (format!("n{}", random.below(5)), format!("n{}", random.below(5)));
    let volume = format!("v{}", random.below(2));
    let fill = |word: &str| match word {
        "V" | "V:/data" => word.replace('V', &volume),
        "M" => other.clone(),
        _ => word.replace('N', &name),
    };
    words.iter().map(|word| fill(word)).collect()
}
