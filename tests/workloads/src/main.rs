//! Programs that check themselves: each sets some kernel state up, says that it is ready, and on
//! SIGUSR1 compares what it finds with what it made. In between it may be captured and restored.
//!
//! `workload list` prints the names, `workload refused` those of programs that must be refused, with
//! what must be said, and `workload kinds` which kinds of state each proves; `workload run NAME DIR`
//! runs one. In DIR there must be a FIFO
//! `ready`, where the program writes `ready` or `skip REASON`. Exit codes: 0 all equal, 1 something
//! differs (on stderr), 3 the state could not be set up, 77 this machine cannot hold it.

mod attributes;
mod busy;
mod calls;
mod datagrams;
mod descriptors;
mod dirty;
mod events;
mod files;
mod identity;
mod ipc;
mod jobs;
mod kinds;
mod list;
mod listening;
mod load;
mod memory;
mod outside;
mod pipes;
mod refused;
mod sequences;
mod shell;
mod signals;
mod sockets;
mod stage;
mod tcp;
mod threads;
mod timers;
mod unix_peers;
mod unix_queues;

use list::{Body, LOST, WITH_OTHERS, WORKLOADS};
use refused::REFUSED;
use stage::{Checks, Stage};
use std::path::PathBuf;

fn main() {
    // Descriptors of whoever started this are no part of a workload.
    must!(libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0));
    // A tree is a session of its own. Fails harmlessly where the runner made one.
    // SAFETY: plain call.
    unsafe { libc::setsid() };
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match arguments.as_slice() {
        ["list"] => {
            for (name, ..) in WORKLOADS {
                println!("{name}");
            }
        }
        ["lost"] => {
            for (name, ..) in LOST {
                println!("{name}");
            }
        }
        ["refused"] => {
            for refused in REFUSED {
                let when = if refused.frozen { "frozen" } else { "running" };
                println!("{}\t{when}\t{}", refused.name, refused.says.join("\t"));
            }
        }
        ["kinds"] => print_kinds(),
        ["run", name, dir] => {
            let all = WORKLOADS
                .iter()
                .chain(LOST)
                .chain(WITH_OTHERS)
                .map(|(name, flags, body, _)| (*name, *flags, *body));
            let mut all = all.chain(REFUSED.iter().map(|r| (r.name, r.namespaces, r.body)));
            let Some((name, namespaces, body)) = all.find(|(known, ..)| known == name) else {
                eprintln!("no workload is called {name} (see `workload list`)");
                std::process::exit(64);
            };
            run(name, namespaces, body, PathBuf::from(dir));
        }
        ["load", kind, count, dir] => {
            let count = count.parse().unwrap_or_else(|_| {
                eprintln!("{count} is not a number");
                std::process::exit(64)
            });
            load::load(kind, count, &Stage::new(PathBuf::from(dir)));
        }
        _ => {
            eprintln!(
                "usage: workload list | workload run NAME DIR | workload load KIND COUNT DIR"
            );
            std::process::exit(64);
        }
    }
}

/// Prints groups (`# GROUP`), kinds (`NAME TEXT NOTE TEST…`) and what workloads claim (`! carried|refused|lost
/// WORKLOAD KIND…`), with tabs between.
fn print_kinds() {
    for (group, kinds) in kinds::GROUPS {
        println!("#\t{group}");
        for kind in *kinds {
            let fields = [kind.name, kind.text, kind.note];
            let fields: Vec<&str> = fields.iter().chain(kind.tests).copied().collect();
            println!("{}", fields.join("\t"));
        }
    }
    for (name, _, _, kinds) in WORKLOADS {
        println!("!\tcarried\t{name}\t{}", kinds.join("\t"));
    }
    for (name, _, _, kinds) in LOST {
        println!("!\tlost\t{name}\t{}", kinds.join("\t"));
    }
    for refused in REFUSED {
        println!("!\trefused\t{}\t{}", refused.name, refused.kinds.join("\t"));
    }
}

/// Runs one workload; does not return. A workload with namespaces of its own runs in a child, whose
/// pid is written to DIR/pid, and this process waits for it outside of the tree.
fn run(name: &str, namespaces: i32, body: Body, dir: PathBuf) {
    if namespaces != 0 {
        let mut told = [0; 2];
        must!(libc::pipe(told.as_mut_ptr()));
        must!(libc::unshare(namespaces));
        let pid = must!(libc::fork());
        if pid != 0 {
            std::fs::write(dir.join("pid"), format!("{pid}\n"))
                .expect("the directory can be written");
            must!(libc::write(told[1], b"t".as_ptr().cast(), 1));
            let status = stage::wait_status(pid).expect("the child can be waited for");
            let code = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            };
            std::process::exit(code);
        }
        let mut byte = [0u8; 1];
        must!(libc::read(told[0], byte.as_mut_ptr().cast(), 1));
        must!(libc::close(told[0]));
        must!(libc::close(told[1]));
        // The child leads a session of its own, as the outer process does.
        must!(libc::setsid());
    }
    let stage = Stage::new(dir);
    let mut checks = Checks::default();
    body(&stage, &mut checks);
    std::process::exit(checks.finish(name));
}
