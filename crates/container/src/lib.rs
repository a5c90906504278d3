//! Container lifecycle: create, start, exec, logs, the shim, state, checkpoint and restore.
#![forbid(unsafe_code)]
