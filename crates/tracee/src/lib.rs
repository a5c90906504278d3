//! Stopped threads, remote system calls and remote memory, over ptrace.
