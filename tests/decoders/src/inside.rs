//! What programs in a container can put in front of us while they are looked at: their names in
//! /proc, and the files that they have mapped.

use std::fs::File;
use std::io::Write;

use arctern_engine::state::files::build_id;
use arctern_sys::proc::{
    cgroup, fdinfo, limits, locks, mountinfo, smaps, stat, status, timers, wait,
};

use crate::scratch;

/// Files of /proc: names of programs, mounts, mappings and files in them are what programs made them.
pub fn proc(input: &[u8]) {
    // As /proc is read.
    let text = String::from_utf8_lossy(input);
    let _ = (stat::parse(&text), status::parse(&text), limits::parse(&text));
    let _ = (cgroup::parse(&text), fdinfo::parse(&text), timers::parse(&text));
    let _ = (wait::parse_call(&text), wait::parse_sched(&text));
    for line in text.lines() {
        let _ = locks::parse_line(line);
    }
    let _ = mountinfo::parse(&text);
    for mapping in smaps::parse(&text).unwrap_or_default() {
        assert!(mapping.start <= mapping.end, "{mapping:?}");
    }
}

/// The file of a mapping, of which the build id is kept.
pub fn elf(input: &[u8]) {
    let dir = scratch();
    let path = dir.path().join("program");
    let mut file = File::create_new(&path).expect("make");
    file.write_all(input).expect("write");
    let id = build_id::read(&File::open(&path).expect("open"));
    assert!(id.len() <= 16 << 10, "{} words", id.len());
}
