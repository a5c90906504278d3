//! Bridge, addresses, published ports and the network lock of containers.
#![forbid(unsafe_code)]
