//! See `arctern_decoders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| arctern_decoders::run("pages", bytes));
