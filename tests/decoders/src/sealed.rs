//! Encrypted archives before their key is known to fit, and signatures with the keys that they name.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use arctern_image::archive::{Limits, verify};
use arctern_image::seal::{Keys, Recipients, Signers, Unseal, check_signature};

use crate::scratch;

/// A key that opens nothing.
fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let dir = scratch();
        let path = dir.path().join("key");
        // Of the examples in age's documentation.
        let text = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX\n";
        fs::write(&path, text).expect("write");
        Keys::read(std::slice::from_ref(&path), None).expect("a key").expect("one")
    })
}

/// The input as an encrypted archive, as a signature, and as files of keys.
pub fn sealed(input: &[u8]) {
    let unseal = Unseal { keys: Some(keys().clone()), signers: None };
    let limits = Limits { total_bytes: 4 << 20, members: 100 };
    let _ = verify(input, limits, &unseal);
    let _ = check_signature(input, b"manifest");
    let dir = scratch();
    let path: PathBuf = dir.path().join("keys");
    fs::write(&path, input).expect("write");
    let list = [path.display().to_string()];
    let _ = Signers::read(&list);
    let _ = Recipients::read(&list);
    let _ = Keys::read(&[path], None);
}
