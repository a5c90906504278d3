//! The documents of a container in an archive.

use arctern_container::checkpoint::policy::{Allowed, settle};
use arctern_container::config::ContainerConfig;

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
