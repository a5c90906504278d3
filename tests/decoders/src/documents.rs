//! The documents of a container in an archive, and what its own files say.

use std::fs;

use arctern_container::checkpoint::foreign::adopt;
use arctern_container::checkpoint::policy::{Allowed, settle};
use arctern_container::checkpoint::streams;
use arctern_container::config::ContainerConfig;
use arctern_container::shim::log::LogRecord;
use arctern_container::shim::protocol;
use arctern_container::spec::user::resolve_in;

use crate::scratch;

/// `config.dump`, and what it may ask for.
pub fn documents(input: &[u8]) {
    if let Ok(mut config) = serde_json::from_slice::<ContainerConfig>(input) {
        let text = serde_json::to_vec(&config).expect("JSON");
        let again: ContainerConfig = serde_json::from_slice(&text).expect("own");
        assert_eq!(again, config);
        let _ = settle(&mut config, &Allowed::default());
    }
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = arctern_container::volumes::MountRequest::mount(text);
        let _ = text.parse::<arctern_container::config::PortMapping>();
        let _ = text.parse::<arctern_container::config::Ulimit>();
        let _ = arctern_container::time::Timestamp::parse_rfc3339(text);
    }
}

/// Podman's `config.dump` and `spec.dump`, and the names of standard streams, with a zero byte after
/// each.
pub fn podman(input: &[u8]) {
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let (config, spec) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if let Ok(config) = serde_json::from_slice(config)
        && let Ok(mut adopted) = adopt(config, spec)
    {
        let text = serde_json::to_vec(&adopted).expect("JSON");
        let again: ContainerConfig = serde_json::from_slice(&text).expect("own");
        assert_eq!(again, adopted);
        let _ = settle(&mut adopted, &Allowed::default());
    }
    if let Some(names) = parts.next() {
        let images = scratch();
        fs::write(images.path().join(streams::DESCRIPTORS), names).expect("write");
        let _ = streams::load(images.path());
    }
}

/// /etc/passwd, /etc/group and the user that an image asks for, with a zero byte after each; and the
/// lines of a log.
pub fn users(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (passwd, group, user) = (part(), part(), part());
    let _ = resolve_in(passwd, group, user);
    let _ = input.split(|byte| *byte == b'\n').map(LogRecord::parse).count();
    let mut frames = input;
    while let Ok(Some(_)) = protocol::receive(&mut frames) {}
}
