//! Images, layers, overlay root file systems and checkpoint archives at rest.
#![forbid(unsafe_code)]
