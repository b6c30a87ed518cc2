use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use aws_lc_rs::{hmac, rsa};
use proptest::prelude::*;
use serde_json::{Value, json};
use weft_core::decide::request_authentication::Claim;
use weft_core::resource::request_authentication::KeySource;

use super::base64::encode;
use super::*;

const NOW: i64 = 1_800_000_000;

fn rule(issuer: &str, audiences: &[&str]) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: audiences.iter().map(|text| Arc::from(*text)).collect(),
        keys: KeySource::Discovery,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        output_claim_to_headers: Vec::new(),
        forward_original_token: false,
        timeout: Duration::from_secs(5),
        space_delimited_claims: Vec::new(),
        required: false,
    }
}

/// A key pair of each type that signs what it is given.
struct Signer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    secret: Vec<u8>,
}

impl Signer {
    fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
            secret: b"a secret of thirty-two bytes !!!".to_vec(),
        }
    }

    fn set(&self) -> Value {
        let public: rsa::PublicKey = self.rsa.public_key().clone();
        let (n, e) = (
            public.modulus().big_endian_without_leading_zero(),
            public.exponent().big_endian_without_leading_zero(),
        );
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "kid": "rsa", "n": encode(n), "e": encode(e)},
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": encode(self.ed.public_key().as_ref())},
            {"kty": "oct", "kid": "oct", "k": encode(&self.secret)},
            {"kty": "magic", "kid": "ignored"},
            {"kty": "RSA", "use": "enc", "n": encode(n), "e": encode(e)},
        ]})
    }

    fn keys(&self) -> JwkSet {
        JwkSet::parse(&self.set().to_string()).unwrap()
    }

    fn sign(&self, header: &Value, payload: &Value) -> String {
        let signed =
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(payload.to_string().as_bytes()));
        let message = signed.as_bytes();
        let random = SystemRandom::new();
        let signature = match header["alg"].as_str() {
            Some("RS256") => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Some("ES256") => self.ec.sign(&random, message).unwrap().as_ref().to_vec(),
            Some("EdDSA") => self.ed.sign(message).as_ref().to_vec(),
            Some("HS256") => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.secret), message).as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{signed}.{}", encode(&signature))
    }
}

fn payload() -> Value {
    json!({"iss": "me", "sub": "x", "exp": NOW + 100, "aud": ["a", "https://b/"], "n": 7, "deep": {"list": ["p", "q"]}})
}

#[test]
fn every_type_of_key_verifies_its_own_algorithm_only() {
    let signer = Signer::new();
    let keys = signer.keys();
    let types = [("RS256", "rsa"), ("ES256", "ec"), ("EdDSA", "ed"), ("HS256", "oct")];
    for (algorithm, kid) in types {
        for (_, named) in types {
            let token = signer.sign(&json!({"alg": algorithm, "kid": named}), &payload());
            let answer = verify(&rule("me", &[]), &keys, &token, NOW);
            match named == kid {
                true => assert_eq!(answer.unwrap().principal().as_deref(), Some("me/x"), "{algorithm}"),
                false => assert_eq!(answer, Err(JwtFailure::KeyNotFound), "{algorithm} by {named}"),
            }
        }
        let nameless = signer.sign(&json!({"alg": algorithm}), &payload());
        assert!(verify(&rule("me", &[]), &keys, &nameless, NOW).is_ok(), "{algorithm}");
    }
}

#[test]
fn claims_are_read() {
    let signer = Signer::new();
    let token = signer.sign(&json!({"alg": "ES256"}), &payload());
    let claims = verify(&rule("", &[]), &signer.keys(), &token, NOW).unwrap();
    assert_eq!(claims.at(["n"]), Some(&Claim::Number("7".into())));
    let list: Vec<&str> = claims.at(["deep", "list"]).unwrap().texts().collect();
    assert_eq!(list, ["p", "q"]);
    assert_eq!(claims.payload, token.split('.').nth(1).unwrap());
}

#[test]
fn a_public_key_is_no_secret() {
    // RFC 8725 2.1: HS256 with the RSA key's own text as the secret.
    let signer = Signer::new();
    let mut set = signer.set();
    set["keys"].as_array_mut().unwrap().truncate(1);
    let keys = JwkSet::parse(&set.to_string()).unwrap();
    let header = encode(json!({"alg": "HS256", "kid": "rsa"}).to_string().as_bytes());
    let signed = format!("{header}.{}", encode(payload().to_string().as_bytes()));
    let public: rsa::PublicKey = signer.rsa.public_key().clone();
    for secret in [public.as_ref(), set.to_string().as_bytes()] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        let token = format!("{signed}.{}", encode(tag.as_ref()));
        assert_eq!(verify(&rule("me", &[]), &keys, &token, NOW), Err(JwtFailure::KeyNotFound));
    }
}

#[test]
fn a_keys_own_algorithm_binds_it() {
    let signer = Signer::new();
    let mut set = signer.set();
    set["keys"][0]["alg"] = "RS512".into();
    let keys = JwkSet::parse(&set.to_string()).unwrap();
    let token = signer.sign(&json!({"alg": "RS256", "kid": "rsa"}), &payload());
    assert_eq!(verify(&rule("me", &[]), &keys, &token, NOW), Err(JwtFailure::KeyNotFound));
    set["keys"] = json!([{"kty": "oct", "alg": "RS256", "k": "AAAA"}]);
    assert_eq!(JwkSet::parse(&set.to_string()).unwrap_err(), InvalidJwkSet::NoKey);
}

#[test]
fn tokens_that_are_no_tokens() {
    let signer = Signer::new();
    let keys = signer.keys();
    let part = |value: Value| encode(value.to_string().as_bytes());
    let good = part(json!({"alg": "RS256"}));
    let (body, huge) = (part(payload()), "A".repeat(1 << 20));
    let cases = [
        ("", JwtFailure::Form),
        ("a.b", JwtFailure::Form),
        ("a.b.c.d", JwtFailure::Form),
        (&*format!("{good}.{huge}.x"), JwtFailure::Form),
        ("a+b.c.d", JwtFailure::HeaderEncoding),
        (&*format!("{}.x.y", encode(b"{")), JwtFailure::HeaderJson),
        (&*format!("{}.x.y", encode(b"[]")), JwtFailure::HeaderJson),
        (&*format!("{}.x.y", part(json!({}))), JwtFailure::AlgorithmMissing),
        (&*format!("{}.x.y", part(json!({"alg": 7}))), JwtFailure::AlgorithmMissing),
        (&*format!("{}.{body}.", part(json!({"alg": "none"}))), JwtFailure::AlgorithmUnsupported),
        (&*format!("{}.{body}.", part(json!({"alg": "NONE"}))), JwtFailure::AlgorithmUnsupported),
        (
            &*format!("{}.{body}.", part(json!({"alg": "RS256", "crit": ["b64"]}))),
            JwtFailure::AlgorithmUnsupported,
        ),
        (&*format!("{}.{body}.", part(json!({"alg": "RS256", "kid": 1}))), JwtFailure::KeyId),
        (&*format!("{good}.=.y"), JwtFailure::PayloadEncoding),
        (&*format!("{good}.{}.y", encode(b"nothing")), JwtFailure::PayloadJson),
        (&*format!("{good}.{}.y", encode("[".repeat(9000).as_bytes())), JwtFailure::PayloadJson),
        (&*format!("{good}.{}.AA", part(json!({"iss": 1}))), JwtFailure::PayloadField("iss")),
        (&*format!("{good}.{}.AA", part(json!({"aud": [1]}))), JwtFailure::PayloadField("aud")),
        (&*format!("{good}.{}.AA", part(json!({"exp": "soon"}))), JwtFailure::PayloadField("exp")),
        (&*format!("{good}.{}.AA", part(json!({"exp": 1e300}))), JwtFailure::PayloadField("exp")),
        (&*format!("{good}.{body}.="), JwtFailure::SignatureEncoding),
        (&*format!("{good}.{body}."), JwtFailure::Signature),
        (&*format!("{good}.{body}.AAAA"), JwtFailure::Signature),
    ];
    for (token, expected) in cases {
        let shown: String = token.chars().take(60).collect();
        assert_eq!(verify(&rule("me", &[]), &keys, token, NOW), Err(expected), "{shown}");
    }
}

#[test]
fn time_issuer_and_audience() {
    let signer = Signer::new();
    let keys = signer.keys();
    let judge = |rule: &JwtRule, change: Value| {
        let mut payload = payload();
        for (key, value) in change.as_object().unwrap() {
            payload[key] = value.clone();
        }
        verify(rule, &keys, &signer.sign(&json!({"alg": "EdDSA"}), &payload), NOW).map(drop)
    };
    let me = rule("me", &[]);
    assert_eq!(judge(&me, json!({"exp": NOW - 59})), Ok(()));
    assert_eq!(judge(&me, json!({"exp": NOW - 61})), Err(JwtFailure::Expired));
    assert_eq!(judge(&me, json!({"exp": i64::MAX, "nbf": i64::MIN})), Ok(()));
    assert_eq!(judge(&me, json!({"nbf": NOW + 59})), Ok(()));
    assert_eq!(judge(&me, json!({"nbf": NOW as f64 + 61.5})), Err(JwtFailure::NotYetValid));
    assert_eq!(judge(&rule("you", &[]), json!({})), Err(JwtFailure::Issuer));
    assert_eq!(judge(&rule("me", &["c", "b"]), json!({})), Ok(()));
    assert_eq!(judge(&rule("me", &["http://a"]), json!({"aud": "a"})), Ok(()));
    assert_eq!(judge(&rule("me", &["c"]), json!({})), Err(JwtFailure::Audience));
    assert_eq!(judge(&rule("me", &["c"]), json!({"aud": []})), Err(JwtFailure::Audience));
}

#[test]
fn sets_that_are_no_sets() {
    for (text, expected) in [
        ("", InvalidJwkSet::Json),
        ("{}", InvalidJwkSet::Json),
        ("{\"keys\": {}}", InvalidJwkSet::Json),
        ("{\"keys\": []}", InvalidJwkSet::NoKey),
        (
            "{\"keys\": [1, {\"kty\": \"RSA\"}, {\"kty\": \"EC\", \"crv\": \"P-256\", \"x\": \"AA\", \"y\": \"AA\"}]}",
            InvalidJwkSet::NoKey,
        ),
    ] {
        assert_eq!(JwkSet::parse(text).unwrap_err(), expected, "{text}");
    }
}

proptest! {
    /// One changed letter anywhere makes a token invalid.
    #[test]
    fn no_changed_token_is_valid(at in 0usize..1000, letter in "[A-Za-z0-9_.-]") {
        thread_local!(static SIGNER: Signer = Signer::new());
        SIGNER.with(|signer| {
            let token = signer.sign(&json!({"alg": "EdDSA"}), &payload());
            let at = at % token.len();
            let changed = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
            prop_assume!(changed != token);
            prop_assert!(verify(&rule("me", &[]), &signer.keys(), &changed, NOW).is_err());
            Ok(())
        })?;
    }

    #[test]
    fn nothing_panics(token in any::<String>(), dotted in r"[A-Za-z0-9_-]{0,20}\.[A-Za-z0-9_-]{0,20}\.[A-Za-z0-9_-]{0,20}") {
        let keys = JwkSet::parse(r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#).unwrap();
        prop_assert!(verify(&rule("", &[]), &keys, &token, NOW).is_err());
        prop_assert!(verify(&rule("", &[]), &keys, &dotted, NOW).is_err());
        let _ = JwkSet::parse(&token);
    }
}
