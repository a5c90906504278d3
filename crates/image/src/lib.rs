//! CRIU-compatible images, the page store, checkpoint archives and the manifest: bytes, no kernel.
#![forbid(unsafe_code)]
