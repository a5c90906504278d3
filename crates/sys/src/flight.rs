//! How much of a connection may be on its way at once (its congestion window), of connections in
//! repair mode.
//!
//! The kernel gives a connection that it rebuilds the window of a new one, ten segments. Were there
//! more on their way, it sends nothing until it hears of them, and if they were lost nobody says so:
//! its timer has to fire, a second later. `TCP_BPF_IW` sets the window before the first segment is sent;
//! only BPF programs may ask for it, among them those that iterate over TCP sockets (kernel 5.15).

use std::io;

use crate::bpf::{Instruction, SKC_TO_TCP_SOCK, iterate};
use crate::btf::Btf;

const SETSOCKOPT: i32 = 49;
const TCP_BPF_IW: i32 = 1001;

/// Segments beyond those on their way, as many as a new connection may send: the byte that asks for news,
/// and what the program writes before the answer comes.
const MORE: i32 = 10;

/// Lets each connection of the calling thread's network namespace that is in repair mode, and whose
/// window is full, send ten segments more. An error where the kernel does not describe itself, or
/// does not run the program: nothing has changed then.
pub fn widen_full_windows() -> io::Result<()> {
    let btf = Btf::load()?;
    let at = |field| Ok::<_, io::Error>(btf.offset("tcp_sock", field)? as i16);
    let (repair, mask) = btf.flag("tcp_sock", "repair")?;
    let program = program(repair as i16, mask, at("packets_out")?, at("snd_cwnd")?);
    iterate(btf.function("bpf_iter_tcp")?, &program).map(drop)
}

/// The context (struct bpf_iter__tcp): pointer to the meta data, pointer to the socket.
fn program(repair: i16, mask: u8, on_their_way: i16, window: i16) -> Vec<Instruction> {
    vec![
        (0x79, 6, 1, 8, 0),                 // r6 = socket
        (0x15, 6, 0, 18, 0),                // if r6 == 0: end
        (0xbf, 1, 6, 0, 0),                 // r1 = socket
        (0x85, 0, 0, 0, SKC_TO_TCP_SOCK),   // r0 = skc_to_tcp_sock(r1)
        (0x15, 0, 0, 15, 0),                // if r0 == 0: end
        (0x71, 1, 0, repair, 0),            // r1 = its flags
        (0x57, 1, 0, 0, mask.into()),       // r1 &= mask
        (0x15, 1, 0, 12, 0),                // if r1 == 0: end
        (0x61, 2, 0, on_their_way, 0),      // r2 = segments on their way
        (0x61, 3, 0, window, 0),            // r3 = window
        (0xad, 2, 3, 9, 0),                 // if r2 < r3: end
        (0x07, 2, 0, 0, MORE),              // r2 += MORE
        (0x63, 10, 2, -8, 0),               // on the stack: r2
        (0xbf, 1, 6, 0, 0),                 // r1 = socket
        (0xb7, 2, 0, 0, libc::IPPROTO_TCP), // r2 = level
        (0xb7, 3, 0, 0, TCP_BPF_IW),        // r3 = name
        (0xbf, 4, 10, 0, 0),                // r4 = stack
        (0x07, 4, 0, 0, -8),                // r4 -= 8
        (0xb7, 5, 0, 0, 4),                 // r5 = 4
        (0x85, 0, 0, 0, SETSOCKOPT),        // setsockopt(r1, r2, r3, r4, r5)
        (0xb7, 0, 0, 0, 0),                 // end: r0 = 0
        (0x95, 0, 0, 0, 0),                 // return
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::{Queue, Repair, info};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_full_window_of_a_connection_in_repair_mode_is_widened() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let full = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        let before = info(&other).unwrap().congestion_window;
        let Ok(repair) = Repair::enter(&full) else {
            eprintln!("skip: repair mode needs CAP_NET_ADMIN");
            return;
        };
        let segment = vec![7; 32 * 1024];
        while info(&full).unwrap().unacknowledged < info(&full).unwrap().congestion_window + 5 {
            repair.fill(Queue::Send, &segment).unwrap();
        }
        if let Err(error) = widen_full_windows() {
            eprintln!("skip: the kernel does not widen windows: {error}");
            return;
        }
        let widened = info(&full).unwrap();
        assert_eq!(widened.congestion_window, widened.unacknowledged + MORE as u32);
        assert_eq!(info(&other).unwrap().congestion_window, before);
    }
}
