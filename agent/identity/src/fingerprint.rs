//! The fingerprint by which applications know a certificate.

use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

/// SHA-256 of a certificate (DER) in lower-case hex: what `x-forwarded-client-cert` says after `Hash=`.
pub fn fingerprint(certificate: &[u8]) -> Arc<str> {
    let mut text = String::with_capacity(64);
    for byte in digest(&SHA256, certificate).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_sha256_in_hex() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(&*fingerprint(b"abc"), known);
    }
}
