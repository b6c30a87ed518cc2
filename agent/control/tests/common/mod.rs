//! Shared by the tests of this crate.

use std::sync::Arc;

use weft_control::decode::documents::{self, Format};
use weft_control::decode::{Decoded, Decoder, Trust};
use weft_core::problem::Origin;

/// Decodes a whole file.
pub(crate) fn decode(text: &[u8], format: Format) -> Vec<Decoded> {
    let file: Arc<str> = "test.yaml".into();
    let mut decoder = Decoder::new(Trust::Files);
    let mut decoded = Vec::new();
    documents::read(&mut &*text, format, &mut |document| {
        let origin = Origin { file: file.clone(), document: document.number, line: document.line };
        decoder.document(document, &origin, &mut decoded);
    })
    .unwrap();
    decoded
}
