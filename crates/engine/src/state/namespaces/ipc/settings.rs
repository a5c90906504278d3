//! The settings of an IPC namespace, in `/proc/sys/kernel` and `/proc/sys/fs/mqueue`.

use std::fs;
use std::io;

use arctern_image::messages::IpcVarEntry;

const SEM: &str = "kernel/sem";

/// One setting: its file, and its value in the message.
type Setting = (&'static str, fn(&IpcVarEntry) -> Option<u64>);

/// Every setting but `kernel/sem`, which holds four numbers.
const SETTINGS: &[Setting] = &[
    ("kernel/msgmax", |v| Some(v.msg_ctlmax.into())),
    ("kernel/msgmnb", |v| Some(v.msg_ctlmnb.into())),
    ("kernel/msgmni", |v| Some(v.msg_ctlmni.into())),
    ("kernel/auto_msgmni", |v| Some(v.auto_msgmni.into())),
    ("kernel/shmmax", |v| Some(v.shm_ctlmax)),
    ("kernel/shmall", |v| Some(v.shm_ctlall)),
    ("kernel/shmmni", |v| Some(v.shm_ctlmni.into())),
    ("kernel/shm_rmid_forced", |v| Some(v.shm_rmid_forced.into())),
    ("fs/mqueue/queues_max", |v| Some(v.mq_queues_max.into())),
    ("fs/mqueue/msg_max", |v| Some(v.mq_msg_max.into())),
    ("fs/mqueue/msgsize_max", |v| Some(v.mq_msgsize_max.into())),
    ("fs/mqueue/msg_default", |v| v.mq_msg_default.map(u64::from)),
    ("fs/mqueue/msgsize_default", |v| v.mq_msgsize_default.map(u64::from)),
];

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}

fn number<T: std::str::FromStr>(name: &str) -> io::Result<T> {
    let text = fs::read_to_string(path(name))?;
    text.trim().parse().map_err(|_| arctern_sys::proc::ParseError::new("a setting", &text).into())
}

/// Reads the settings of the caller's namespace.
pub fn read() -> io::Result<IpcVarEntry> {
    let sem = fs::read_to_string(path(SEM))?;
    let sem = sem.split_ascii_whitespace().filter_map(|word| word.parse().ok());
    Ok(IpcVarEntry {
        sem_ctls: sem.collect(),
        msg_ctlmax: number("kernel/msgmax")?,
        msg_ctlmnb: number("kernel/msgmnb")?,
        msg_ctlmni: number("kernel/msgmni")?,
        auto_msgmni: number("kernel/auto_msgmni").unwrap_or_default(),
        shm_ctlmax: number("kernel/shmmax")?,
        shm_ctlall: number("kernel/shmall")?,
        shm_ctlmni: number("kernel/shmmni")?,
        shm_rmid_forced: number("kernel/shm_rmid_forced")?,
        mq_queues_max: number("fs/mqueue/queues_max")?,
        mq_msg_max: number("fs/mqueue/msg_max")?,
        mq_msgsize_max: number("fs/mqueue/msgsize_max")?,
        mq_msg_default: number("fs/mqueue/msg_default").ok(),
        mq_msgsize_default: number("fs/mqueue/msgsize_default").ok(),
        msg_next_id: None,
        sem_next_id: None,
        shm_next_id: None,
    })
}

/// Gives the caller's namespace these settings. Returns what could not be set.
pub fn write(settings: &IpcVarEntry) -> Vec<String> {
    let mut unset = Vec::new();
    let mut set = |name: &str, value: String| {
        let now = fs::read_to_string(path(name)).unwrap_or_default();
        if now.split_ascii_whitespace().eq(value.split_ascii_whitespace()) {
            return;
        }
        if let Err(error) = fs::write(path(name), &value) {
            unset.push(format!("cannot set {} to {value}: {error}", name.replace('/', ".")));
        }
    };
    if settings.sem_ctls.len() == 4 {
        let words: Vec<String> = settings.sem_ctls.iter().map(u32::to_string).collect();
        set(SEM, words.join(" "));
    }
    for (name, value) in SETTINGS {
        if let Some(value) = value(settings) {
            set(name, value.to_string());
        }
    }
    unset
}

/// Asks for the number of the next object of a kind: `shm`, `sem` or `msg`.
pub fn next_number(kind: &str, id: i32) -> io::Result<()> {
    fs::write(path(&format!("kernel/{kind}_next_id")), id.to_string())
}
