//! What other hosts say: registries, and the other side of a move.

use arctern_storage::registry::manifest::{Description, Format, convert, format_of};
use arctern_storage::registry::{Conf, Platform, Reference};

/// Descriptions of images as registries send them.
pub fn registry(input: &[u8]) {
    let _ = Description::parse(input, None);
    let _ = format_of(input);
    for format in [Format::Oci, Format::Docker] {
        if let Ok(converted) = convert(input, format) {
            assert_eq!(format_of(&converted), format);
        }
    }
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = text.parse::<Platform>();
        let _ = Reference::candidates(text, &Conf::default());
    }
}

/// Frames of a conversation between two hosts, as either side reads them. Since sums keep damaged frames
/// from being looked into, each line is a message too.
#[cfg(feature = "documents")]
pub fn conversation(input: &[u8]) {
    use arctern_migrate::message::{Answer, Request};
    use arctern_migrate::wire::Receiver;
    for line in input.split(|byte| *byte == b'\n') {
        let _ = serde_json::from_slice::<Request>(line);
        let _ = serde_json::from_slice::<Answer>(line);
    }
    let mut requests = Receiver::new(input);
    while let Ok(Some(request)) = requests.message::<Request>() {
        let follows = matches!(request, Request::Image | Request::Archive);
        if follows && requests.data().drain().is_err() {
            break;
        }
    }
    let mut answers = Receiver::new(input);
    while let Ok(Some(_)) = answers.message::<Answer>() {}
    let _ = Receiver::new(input).data().drain();
}
