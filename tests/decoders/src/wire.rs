//! What other hosts say: registries, and the other side of a move.

use arctern_storage::registry::answer::{Challenge, complaint, token};
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
/// from being looked into, each line is a message too, and every frame is read once more with its sums
/// made right.
#[cfg(feature = "documents")]
pub fn conversation(input: &[u8]) {
    use arctern_migrate::message::{Answer, Request};
    for line in input.split(|byte| *byte == b'\n') {
        let _ = serde_json::from_slice::<Request>(line);
        let _ = serde_json::from_slice::<Answer>(line);
    }
    listen(input);
    listen(&framed(input));
}

/// Frames with right sums: of each the kind, the length in two bytes, and the payload.
#[cfg(feature = "documents")]
fn framed(mut input: &[u8]) -> Vec<u8> {
    let sum = |bytes: &[u8]| {
        let mut sum = flate2::Crc::new();
        sum.update(bytes);
        sum.sum().to_le_bytes()
    };
    let mut frames = Vec::new();
    while let [kind, low, high, rest @ ..] = input {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, after) = rest.split_at(length);
        let mut head = vec![*kind];
        head.extend((length as u32).to_le_bytes());
        head.extend(sum(payload));
        head.extend(sum(&head));
        frames.extend(head);
        frames.extend(payload);
        input = after;
    }
    frames
}

/// Reads them as the destination, as the source, and as a stream.
#[cfg(feature = "documents")]
fn listen(input: &[u8]) {
    use arctern_migrate::message::{Answer, Request};
    use arctern_migrate::wire::Receiver;
    let mut requests = Receiver::new(input);
    while let Ok(Some(request)) = requests.message::<Request>() {
        let follows = matches!(request, Request::Image | Request::Archive(_));
        if follows && requests.data().drain().is_err() {
            break;
        }
    }
    let mut answers = Receiver::new(input);
    while let Ok(Some(_)) = answers.message::<Answer>() {}
    let _ = Receiver::new(input).data().drain();
}

/// What registries and token servers say besides images.
pub fn answers(input: &[u8]) {
    let _ = token(input);
    if let Some(line) = complaint(input) {
        assert!(!line.contains(char::is_control) && line.chars().count() <= 200, "{line:?}");
    }
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = Challenge::read(text.lines());
    }
}

/// The pages of two rounds as the destination of a move takes them, and what the restore then reads.
#[cfg(feature = "documents")]
pub fn pages(input: &[u8]) {
    use std::path::Path;

    use arctern_engine::PageDirectory;
    use arctern_image::images::{ImageDir, ImageKind};
    use arctern_image::pages::{PAGE_SIZE, PagemapReader};
    use arctern_migrate::pages::read_pages;

    let dir = crate::scratch();
    let (first, last) = (dir.path().join("1"), dir.path().join("2"));
    // The first two bytes say where the second round begins.
    let [low, high, rest @ ..] = input else { return };
    let (round, end) =
        rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
    let mut sink = PageDirectory::create(&first, None).expect("directory");
    if read_pages(round, &mut sink).is_err() {
        return;
    }
    sink.conclude().expect("end");
    let mut sink = PageDirectory::last(&last, Some(Path::new("../1"))).expect("directory");
    if read_pages(end, &mut sink).is_err() {
        return;
    }
    let images = ImageDir::open(&last).expect("open");
    for (kind, id) in images.list().expect("list") {
        if kind != ImageKind::Pagemap {
            continue;
        }
        let Ok(Some(reader)) = PagemapReader::open(&images, kind, id) else { continue };
        let mut page = [0; PAGE_SIZE as usize];
        for extent in reader.extents().iter().take(64) {
            let _ = reader.read_page(extent.vaddr, &mut page);
        }
    }
}
