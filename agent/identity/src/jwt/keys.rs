//! JWK Sets (RFC 7517), and which key verifies what.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;
use weft_core::decide::request_authentication::JwtFailure;

use super::base64;
use super::token::{Algorithm, Token};

/// More keys than this in one set are not looked at.
const MAX_KEYS: usize = 100;

/// Text that is no JWK Set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJwkSet {
    /// It is no JSON object with a list `keys`.
    #[error("it is no JSON object with a list `keys`")]
    Json,
    /// None of its keys can be used to verify a signature.
    #[error("it has no key with which a signature can be verified")]
    NoKey,
}

/// The keys of one issuer.
#[derive(Debug)]
pub struct JwkSet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// `alg`: the only algorithm that the key may be used with.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: Curve, point: Vec<u8> },
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

impl fmt::Debug for Material {
    /// Never the key itself: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rsa { .. } => "RSA",
            Self::Ec { .. } => "EC",
            Self::Ed25519(_) => "Ed25519",
            Self::Secret(_) => "secret",
        })
    }
}

#[derive(Deserialize)]
struct SetWire {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct KeyWire {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl JwkSet {
    /// Reads a JWK Set. Keys of unknown types, and keys for encryption, are left out.
    ///
    /// # Errors
    ///
    /// Text of another form, and sets without a key that could verify anything.
    pub fn parse(text: &str) -> Result<Self, InvalidJwkSet> {
        let wire: SetWire = serde_json::from_str(text).map_err(|_| InvalidJwkSet::Json)?;
        let wires = wire.keys.into_iter().take(MAX_KEYS);
        let keys: Vec<Key> =
            wires.filter_map(|value| Key::read(serde_json::from_value(value).ok()?)).collect();
        if keys.is_empty() { Err(InvalidJwkSet::NoKey) } else { Ok(Self { keys }) }
    }

    /// Whether a key of the set verifies the token's signature.
    pub(super) fn verify(&self, token: &Token<'_>) -> Result<(), JwtFailure> {
        let mut fitting = self.keys.iter().filter(|key| key.fits(token)).peekable();
        if fitting.peek().is_none() {
            return Err(JwtFailure::KeyNotFound);
        }
        if fitting.any(|key| key.verifies(token)) { Ok(()) } else { Err(JwtFailure::Signature) }
    }
}

impl Key {
    fn read(wire: KeyWire) -> Option<Self> {
        if wire.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let algorithm = match wire.alg.as_deref() {
            None => None,
            Some(name) => Some(Algorithm::parse(name)?),
        };
        let part = |part: &Option<String>| base64::decode(part.as_deref()?).filter(|bytes| !bytes.is_empty());
        let material = match wire.kty.as_str() {
            "RSA" => Material::Rsa { n: unsigned(part(&wire.n)?), e: unsigned(part(&wire.e)?) },
            "EC" => ec(wire.crv.as_deref()?, &part(&wire.x)?, &part(&wire.y)?)?,
            "OKP" if wire.crv.as_deref() == Some("Ed25519") => {
                Material::Ed25519(part(&wire.x).filter(|key| key.len() == 32)?)
            }
            "oct" => Material::Secret(part(&wire.k)?),
            _ => return None,
        };
        let key = Self { id: wire.kid, algorithm, material };
        key.algorithm.is_none_or(|algorithm| key.material.takes(algorithm)).then_some(key)
    }

    /// Whether the key may be tried at all.
    fn fits(&self, token: &Token<'_>) -> bool {
        let named = match (&self.id, &token.key_id) {
            (Some(own), Some(wanted)) => own == wanted,
            (Some(_) | None, _) => true,
        };
        named
            && self.algorithm.is_none_or(|algorithm| algorithm == token.algorithm)
            && self.material.takes(token.algorithm)
    }

    fn verifies(&self, token: &Token<'_>) -> bool {
        let (message, signature) = (token.signed.as_bytes(), token.signature.as_slice());
        match &self.material {
            Material::Rsa { n, e } => rsa_parameters(token.algorithm).is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }),
            Material::Ec { curve, point } => {
                UnparsedPublicKey::new(curve.parameters(), point).verify(message, signature).is_ok()
            }
            Material::Ed25519(key) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
            }
            Material::Secret(secret) => hmac_algorithm(token.algorithm).is_some_and(|algorithm| {
                hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).is_ok()
            }),
        }
    }
}

impl Material {
    /// The algorithms of a type of key; no token can widen the list.
    fn takes(&self, algorithm: Algorithm) -> bool {
        match self {
            Self::Rsa { .. } => rsa_parameters(algorithm).is_some(),
            Self::Ec { curve, .. } => algorithm == curve.algorithm(),
            Self::Ed25519(_) => algorithm == Algorithm::EdDsa,
            Self::Secret(_) => hmac_algorithm(algorithm).is_some(),
        }
    }
}

impl Curve {
    fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }

    /// RFC 7518 3.4: two numbers of fixed length.
    fn parameters(self) -> &'static signature::EcdsaVerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::P521 => &signature::ECDSA_P521_SHA512_FIXED,
        }
    }

    fn coordinate_length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

fn ec(curve: &str, x: &[u8], y: &[u8]) -> Option<Material> {
    let curve = match curve {
        "P-256" => Curve::P256,
        "P-384" => Curve::P384,
        "P-521" => Curve::P521,
        _ => return None,
    };
    let length = curve.coordinate_length();
    if x.len() != length || y.len() != length {
        return None;
    }
    // SEC 1, 2.3.3: an uncompressed point.
    let point = [&[4u8][..], x, y].concat();
    Some(Material::Ec { curve, point })
}

/// A number without leading zeros.
fn unsigned(mut number: Vec<u8>) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.drain(..zeros);
    number
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::Hs256
        | Algorithm::Hs384
        | Algorithm::Hs512
        | Algorithm::Es256
        | Algorithm::Es384
        | Algorithm::Es512
        | Algorithm::EdDsa => None,
    }
}

fn hmac_algorithm(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::Hs256 => Some(hmac::HMAC_SHA256),
        Algorithm::Hs384 => Some(hmac::HMAC_SHA384),
        Algorithm::Hs512 => Some(hmac::HMAC_SHA512),
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512
        | Algorithm::Es256
        | Algorithm::Es384
        | Algorithm::Es512
        | Algorithm::EdDsa => None,
    }
}
