//! Secrets: whether a server can use them as its certificate.

use serde_json::Value;
use weft_core::analyze::Object;
use weft_core::analyze::objects::{Head, Secret};
use x509_parser::pem::parse_x509_pem;

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
    for (name, key) in NAMES {
        let text = entry(name)?;
        if !text.is_empty() && !entry(key)?.is_empty() {
            return certificate(&text).map_err(|why| format!("`{name}`: {why}"));
        }
    }
    Err("it has neither `tls.crt` with `tls.key` nor `cert` with `key`".to_owned())
}

/// Whether the first certificate of a text can be read and is valid now.
fn certificate(text: &[u8]) -> Result<(), String> {
    let (_, block) = parse_x509_pem(text).map_err(|_| "it is not PEM".to_owned())?;
    let certificate = block.parse_x509().map_err(|_| "it is not an X.509 certificate".to_owned())?;
    let validity = certificate.validity();
    if validity.is_valid() {
        return Ok(());
    }
    Err(format!("it is valid from {} to {} only", validity.not_before, validity.not_after))
}

/// Decodes base64; white space is skipped.
fn unwrapped(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    base64(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_years(from: i32, to: i32) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example.com".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        params.self_signed(&key).unwrap().pem()
    }

    fn of_text(certificate: &str) -> Result<(), String> {
        unusable(&serde_json::json!({"stringData": {"tls.crt": certificate, "tls.key": "key"}}))
    }

    #[test]
    fn a_certificate_has_to_be_valid_now() {
        assert_eq!(of_text(&of_years(2020, 2999)), Ok(()));
        let expired = of_text(&of_years(2020, 2021)).unwrap_err();
        assert!(expired.starts_with("`tls.crt`: it is valid from Jan  1 00:00:00 2020"), "{expired}");
        assert!(of_text(&of_years(2998, 2999)).is_err());
    }

    #[test]
    fn what_is_no_certificate_says_why() {
        assert_eq!(of_text("hello"), Err("`tls.crt`: it is not PEM".to_owned()));
        let garbage = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert_eq!(of_text(garbage), Err("`tls.crt`: it is not an X.509 certificate".to_owned()));
        let broken = unusable(&serde_json::json!({"data": {"cert": "***"}}));
        assert_eq!(broken, Err("`cert` is not base64".to_owned()));
        assert!(unusable(&serde_json::json!({"data": {"tls.crt": "aGVsbG8="}})).is_err());
    }
}
