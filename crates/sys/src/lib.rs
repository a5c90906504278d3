//! Typed handles and parsers over the Linux kernel: /proc, pidfd, pagemap, mount API, netlink diag, feature probe.
