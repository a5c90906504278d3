//! The manifest: what is read is written so that it is read the same.
#![no_main]

use arctern_image::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(manifest) = Manifest::from_json(input) {
        assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
    }
});
