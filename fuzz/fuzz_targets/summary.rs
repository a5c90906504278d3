//! Looking into an archive: whatever it says, it ends, within bounds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = arctern_image::summary::summarise_stream(data);
});
