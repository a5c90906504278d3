//! System V IPC objects of the caller's IPC namespace: shared memory, semaphores, message queues.
//!
//! Listed by `/proc/sysvipc/{shm,sem,msg}` (proc(5)), which shows the namespace of whoever reads it.
//! Objects get the number that was written to `/proc/sys/kernel/{shm,sem,msg}_next_id` before
//! (CONFIG_CHECKPOINT_RESTORE, kernel 3.8).

use std::fs::File;
use std::io;

use crate::check;
use crate::proc::ParseError;

/// What all objects have in common (`struct ipc_perm`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Key by which programs find it; 0 for none.
    pub key: i32,
    /// Its number.
    pub id: i32,
    /// Permissions, and for shared memory the flags `SHM_DEST` and `SHM_LOCKED`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
}

/// A line of `/proc/sysvipc/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Whose it is.
    pub owner: Owner,
    /// Bytes of shared memory, number of semaphores, or number of queued messages.
    pub size: u64,
}

/// The objects of a `/proc/sysvipc` text, whose columns are named in its first line.
pub fn parse(text: &str) -> Result<Vec<Listed>, ParseError> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let column = |wanted: &[&str]| {
        names
            .iter()
            .position(|name| wanted.contains(name))
            .ok_or_else(|| ParseError::new("columns of /proc/sysvipc", &names.join(" ")))
    };
    let columns = [
        column(&["key"])?,
        column(&["shmid", "semid", "msqid"])?,
        column(&["perms"])?,
        column(&["uid"])?,
        column(&["gid"])?,
        column(&["cuid"])?,
        column(&["cgid"])?,
        column(&["size", "nsems", "qnum"])?,
    ];
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let field = |index: usize| fields.get(columns[index]).copied().unwrap_or_default();
            let parsed = || -> Option<Listed> {
                Some(Listed {
                    owner: Owner {
                        key: field(0).parse().ok()?,
                        id: field(1).parse().ok()?,
                        mode: u32::from_str_radix(field(2), 8).ok()?,
                        uid: field(3).parse().ok()?,
                        gid: field(4).parse().ok()?,
                        cuid: field(5).parse().ok()?,
                        cgid: field(6).parse().ok()?,
                    },
                    size: field(7).parse().ok()?,
                })
            };
            parsed().ok_or_else(|| ParseError::new("an IPC object", line))
        })
        .collect()
}

/// A shared memory segment that is attached to this process, until it is dropped.
#[derive(Debug)]
pub struct Segment {
    address: usize,
    size: usize,
}

impl Segment {
    /// Attaches segment `id` of `size` bytes.
    pub fn attach(id: i32, size: u64) -> io::Result<Self> {
        // SAFETY: with a null address the kernel picks a free place, so nothing of ours is replaced.
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        if address.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        let page = crate::PAGE_SIZE as usize;
        Ok(Segment { address: address.addr(), size: (size as usize).next_multiple_of(page) })
    }

    /// The memory as a file.
    pub fn file(&self) -> io::Result<File> {
        let range = format!("{:x}-{:x}", self.address, self.address + self.size);
        let path = format!("/proc/self/map_files/{range}");
        File::options().read(true).write(true).open(path)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let address = std::ptr::without_provenance(self.address);
        // SAFETY: the segment is attached there, and nobody has a reference to its memory.
        unsafe { libc::shmdt(address) };
    }
}

/// Makes a shared memory segment with the next number that was asked for.
pub fn create_segment(key: i32, size: u64, mode: u32) -> io::Result<i32> {
    let flags = creation(mode);
    // SAFETY: shmget takes integers and touches no memory of ours.
    Ok(check(unsafe { libc::shmget(key, size as usize, flags) }.into())? as i32)
}

/// Makes a set of semaphores with the next number that was asked for.
pub fn create_semaphores(key: i32, count: i32, mode: u32) -> io::Result<i32> {
    // SAFETY: semget takes integers and touches no memory of ours.
    Ok(check(unsafe { libc::semget(key, count, creation(mode)) }.into())? as i32)
}

/// Makes a message queue with the next number that was asked for.
pub fn create_queue(key: i32, mode: u32) -> io::Result<i32> {
    // SAFETY: msgget takes integers and touches no memory of ours.
    Ok(check(unsafe { libc::msgget(key, creation(mode)) }.into())? as i32)
}

fn creation(mode: u32) -> i32 {
    libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32
}

/// Gives a segment its owner.
pub fn own_segment(id: i32, owner: &Owner) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid shmid_ds: it holds integers only.
    let mut state: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is a shmid_ds that lives across the call.
    check(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut state) }.into())?;
    (state.shm_perm.uid, state.shm_perm.gid) = (owner.uid, owner.gid);
    state.shm_perm.mode = (owner.mode & 0o777) as _;
    // SAFETY: as above.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut state) }.into())?;
    Ok(())
}

/// Gives a set of semaphores its owner and its values.
pub fn set_semaphores(id: i32, owner: &Owner, values: &[u16]) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid semid_ds: it holds integers only.
    let mut state: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: IPC_STAT takes a pointer to a semid_ds, which lives across the call.
    check(unsafe { libc::semctl(id, 0, libc::IPC_STAT, &raw mut state) }.into())?;
    if state.sem_nsems as usize != values.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    (state.sem_perm.uid, state.sem_perm.gid) = (owner.uid, owner.gid);
    state.sem_perm.mode = (owner.mode & 0o777) as _;
    // SAFETY: as above.
    check(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut state) }.into())?;
    // SAFETY: SETALL reads as many values as the set has semaphores, which was compared above.
    check(unsafe { libc::semctl(id, 0, libc::SETALL, values.as_ptr()) }.into())?;
    Ok(())
}

/// The values of a set of `count` semaphores. Nobody may replace the set meanwhile: its processes
/// are stopped.
pub fn semaphores(id: i32, count: u64) -> io::Result<Vec<u16>> {
    // SEMMSL, the largest set, is at most this (linux/sem.h); room for it whatever `count` says,
    // since the kernel writes as many values as the set has now.
    const LARGEST: usize = 1 << 16;
    let mut values = vec![0u16; LARGEST];
    // SAFETY: GETALL writes one value a semaphore, for which there is room.
    check(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) }.into())?;
    values.truncate(count as usize);
    Ok(values)
}

/// The largest size of a queue in bytes, as IPC_STAT tells it.
pub fn queue_limit(id: i32) -> io::Result<u64> {
    Ok(queue_state(id)?.msg_qbytes)
}

fn queue_state(id: i32) -> io::Result<libc::msqid_ds> {
    // SAFETY: all-zero bytes are a valid msqid_ds: it holds integers only.
    let mut state: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is a msqid_ds that lives across the call.
    check(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut state) }.into())?;
    Ok(state)
}

/// Gives a queue its owner and its largest size.
pub fn own_queue(id: i32, owner: &Owner, limit: u64) -> io::Result<()> {
    let mut state = queue_state(id)?;
    (state.msg_perm.uid, state.msg_perm.gid) = (owner.uid, owner.gid);
    state.msg_perm.mode = (owner.mode & 0o777) as _;
    state.msg_qbytes = limit;
    // SAFETY: `state` is a msqid_ds that lives across the call.
    check(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut state) }.into())?;
    Ok(())
}

/// A message's type and text.
pub type Message = (i64, Vec<u8>);

/// A copy of the `index`-th message of a queue (MSG_COPY); the message stays. None behind the last.
pub fn peek_message(id: i32, index: u64, largest: usize) -> io::Result<Option<Message>> {
    const MSG_COPY: i32 = 0o40000;
    let mut buffer = vec![0u64; 1 + largest.div_ceil(8)];
    let flags = MSG_COPY | libc::IPC_NOWAIT | libc::MSG_NOERROR;
    // SAFETY: the buffer has room for the type and `largest` bytes of text.
    let got = unsafe {
        libc::msgrcv(id, buffer.as_mut_ptr().cast(), largest, index as libc::c_long, flags)
    };
    if got < 0 {
        let error = io::Error::last_os_error();
        let none = error.raw_os_error() == Some(libc::ENOMSG);
        return if none { Ok(None) } else { Err(error) };
    }
    let text: Vec<u8> = buffer[1..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(Some((buffer[0] as i64, text[..got as usize].to_vec())))
}

/// Sends a message; it does not wait for room.
pub fn send_message(id: i32, kind: i64, text: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0u64; 1 + text.len().div_ceil(8)];
    buffer[0] = kind as u64;
    for (word, chunk) in buffer[1..].iter_mut().zip(text.chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(bytes);
    }
    check(
        // SAFETY: the buffer holds the type and `text.len()` bytes.
        unsafe { libc::msgsnd(id, buffer.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) }.into(),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_listed() {
        let text = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n\
                    -559038737          3  1600                  4096  1     0       0  1000   100     0     7          0          0 1700000000                     0                     0\n";
        let listed = parse(text).unwrap();
        let owner = Owner {
            key: 0xdead_beef_u32 as i32,
            id: 3,
            mode: 0o1600,
            uid: 1000,
            gid: 100,
            cuid: 0,
            cgid: 7,
        };
        assert_eq!(listed, [Listed { owner, size: 4096 }]);
        assert!(parse("key shmid\n").is_err());
        for name in ["shm", "sem", "msg"] {
            parse(&std::fs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap()).unwrap();
        }
    }

    #[test]
    fn messages_are_copied_and_stay() {
        let queue = create_queue(libc::IPC_PRIVATE, 0o600).unwrap();
        send_message(queue, 7, b"first one").unwrap();
        send_message(queue, 9, b"").unwrap();
        let all: Vec<_> = (0..3).map(|i| peek_message(queue, i, 100).unwrap()).collect();
        // SAFETY: IPC_RMID ignores the pointer.
        unsafe { libc::msgctl(queue, libc::IPC_RMID, std::ptr::null_mut()) };
        assert_eq!(all, [Some((7, b"first one".to_vec())), Some((9, Vec::new())), None]);
    }
}
