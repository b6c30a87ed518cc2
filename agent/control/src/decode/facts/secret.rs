//! Secrets: whether a server can use them as its certificate.

use serde_json::Value;
use weft_core::analyze::Object;
use weft_core::analyze::objects::{Head, Secret};

use super::super::networking::numbers::base64;
use super::super::validated::value::{get, text};

pub(super) fn secret(head: Head, value: &Value) -> Object {
    Object::Secret(Secret { head, unusable: unusable(value).err() })
}

/// Names of certificate and key, in the order in which they are looked for.
const NAMES: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];

fn unusable(value: &Value) -> Result<(), String> {
    let entry = |name: &str| -> Result<Vec<u8>, String> {
        let plain = text(get(value, "stringData"), name);
        if !plain.is_empty() {
            return Ok(plain.as_bytes().to_vec());
        }
        let encoded = text(get(value, "data"), name);
        unwrapped(encoded).ok_or_else(|| format!("`{name}` is not base64"))
    };
    for (certificate, key) in NAMES {
        let certificate_text = entry(certificate)?;
        if !certificate_text.is_empty() && !entry(key)?.is_empty() {
            return pem(&certificate_text)
                .ok_or_else(|| format!("`{certificate}` holds no certificate in PEM"));
        }
    }
    Err("it has neither `tls.crt` with `tls.key` nor `cert` with `key`".to_owned())
}

/// Whether the first block is a certificate by its looks: base64 of a DER sequence.
fn pem(text: &[u8]) -> Option<()> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let der = unwrapped(body)?;
    (der.len() > 64 && der.first() == Some(&0x30)).then_some(())
}

/// Decodes base64; white space is skipped.
fn unwrapped(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    base64(&text)
}
