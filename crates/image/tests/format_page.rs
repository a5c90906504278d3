//! docs/format.md describes what the code does.

use arctern_image::images::ImageKind;
use arctern_image::manifest::FormatVersion;

const PAGE: &str = include_str!("../../../docs/format.md");

#[test]
fn every_kind_of_image_is_on_the_page() {
    for &kind in ImageKind::ALL {
        // A name with an id stands on the page as its pattern.
        let name = kind.file_name(7777);
        let pattern = name.replace("7777", "%u").replace("1e61", "%x");
        assert!(PAGE.contains(&format!("`{pattern}`")), "{pattern}");
        if kind.type_word() != 0 {
            let word = format!("{:08x}", kind.type_word());
            assert!(PAGE.contains(&word), "{pattern} {word}");
        }
    }
}

#[test]
fn the_current_version_has_a_row() {
    assert!(PAGE.contains(&format!("| {} |", FormatVersion::CURRENT)));
}
