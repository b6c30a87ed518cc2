//! Tokens as the API server makes them, and such as it would never make.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use super::world::Token;

/// What varies in a token.
pub(crate) struct Claims {
    /// Seconds since 1970.
    pub(crate) issued: u64,
    pub(crate) expires: u64,
    pub(crate) pod_uid: String,
}

impl Claims {
    /// Valid for an hour from now on.
    pub(crate) fn now(pod_uid: String) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(Self { issued: now, expires: now + 3600, pod_uid })
    }

    /// Signs with a PKCS#8 key, PEM.
    pub(crate) fn sign(&self, token: Token<'_>, account_uid: &str, key_pem: &str) -> Result<String> {
        let claims = json!({
            "aud": [token.audience],
            "exp": self.expires,
            "iat": self.issued,
            "nbf": self.issued,
            "iss": "https://kubernetes.default.svc",
            "sub": format!("system:serviceaccount:{}:{}", token.namespace, token.account),
            "kubernetes.io": {
                "namespace": token.namespace,
                "serviceaccount": {"name": token.account, "uid": account_uid},
                "pod": {"name": token.pod, "uid": self.pod_uid},
                "node": {"name": "node-a", "uid": "11111111-1111-1111-1111-111111111111"},
            },
        });
        let header = json!({"alg": "ES256", "typ": "JWT"});
        let text = format!("{}.{}", url(header.to_string().as_bytes()), url(claims.to_string().as_bytes()));
        let key = PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes())?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der())
            .ok()
            .context("a P-256 key")?;
        let signature = key.sign(&SystemRandom::new(), text.as_bytes()).ok().context("a signature")?;
        Ok(format!("{text}.{}", url(signature.as_ref())))
    }
}

/// Base64 for URLs, without padding.
fn url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            let sextet = (bits >> (18 - 6 * place)) as usize & 63;
            text.extend(ALPHABET.get(sextet).copied().map(char::from));
        }
    }
    text
}
