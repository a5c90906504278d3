//! Every decoder over what fuzzing found interesting so far (`fuzz/corpus/NAME/`).
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use arctern_decoders::TARGETS;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

#[test]
fn the_corpus_is_decoded_without_harm() {
    for (name, target) in TARGETS {
        let corpus = root().join("corpus").join(name);
        let mut count = 0;
        for entry in fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display())) {
            let bytes = fs::read(entry.expect("entry").path()).expect("read");
            target(&bytes);
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
}

#[test]
fn every_decoder_has_a_program() {
    for (name, _) in TARGETS {
        let program = root().join("fuzz_targets").join(format!("{name}.rs"));
        assert!(program.is_file(), "{} is missing", program.display());
    }
}
