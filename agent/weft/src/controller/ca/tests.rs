use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::Secret;
use weft_identity::{Ca, CaMaterial};

use super::reviews::found;
use super::secret::material;

fn secret(entries: &[(&str, &str)]) -> Secret {
    let data = entries.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
    Secret { data: Some(data.collect()), ..Secret::default() }
}

#[test]
fn both_sets_of_names_are_understood() {
    let made = CaMaterial::generate("cluster.local").unwrap();
    let (cert, key) = (made.certificate_pem.as_str(), made.key_pem.as_str());
    let other = CaMaterial::generate("cluster.local").unwrap().roots_pem;
    for (entries, roots) in [
        (
            vec![
                ("ca-cert.pem", cert),
                ("ca-key.pem", key),
                ("root-cert.pem", cert),
                ("cert-chain.pem", cert),
            ],
            1,
        ),
        (vec![("tls.crt", cert), ("tls.key", key), ("ca.crt", cert)], 1),
        (vec![("tls.crt", cert), ("tls.key", key), ("ca.crt", cert), ("root-cert.pem", other.as_str())], 2),
    ] {
        let material = material(&secret(&entries)).unwrap();
        let ca = Ca::from_material(&material, "cluster.local").unwrap();
        assert_eq!(ca.root_pem().matches("BEGIN CERTIFICATE").count(), roots);
    }
}

#[test]
fn what_is_missing_is_named() {
    let made = CaMaterial::generate("cluster.local").unwrap();
    let (cert, key) = (made.certificate_pem.as_str(), made.key_pem.as_str());
    for (entries, expected) in [
        (vec![], "it has neither ca-cert.pem and ca-key.pem nor tls.crt and tls.key"),
        (vec![("ca-cert.pem", cert), ("ca-key.pem", key)], "no root certificate: root-cert.pem or ca.crt"),
        (vec![("ca-cert.pem", cert), ("root-cert.pem", cert)], "the key ca-key.pem is missing"),
        (vec![("tls.key", key), ("ca.crt", cert)], "the key tls.crt is missing"),
    ] {
        let error = material(&secret(&entries)).err().unwrap();
        assert!(error.contains(expected), "{error}");
    }
    let mut bytes = secret(&[("ca-cert.pem", cert), ("root-cert.pem", cert)]);
    bytes.data.as_mut().unwrap().insert("ca-key.pem".to_owned(), ByteString(vec![0xff]));
    assert_eq!(material(&bytes).err().unwrap(), "the key ca-key.pem holds no text");
}

fn review(audiences: Option<&[&str]>, username: &str, extra: &[(&str, &[&str])]) -> TokenReviewStatus {
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let extra: BTreeMap<_, _> =
        extra.iter().map(|(key, values)| ((*key).to_owned(), strings(values))).collect();
    let user = UserInfo { username: Some(username.to_owned()), extra: Some(extra), ..UserInfo::default() };
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: audiences.map(strings),
        user: Some(user),
        error: None,
    }
}

#[test]
fn a_review_says_who_asks_from_where() {
    let extra: &[(&str, &[&str])] = &[
        ("authentication.kubernetes.io/pod-name", &["weft-agent-x"]),
        ("authentication.kubernetes.io/pod-uid", &["1-2-3"]),
        ("authentication.kubernetes.io/node-name", &["node-a"]),
    ];
    let status = review(Some(&["weft-ca"]), "system:serviceaccount:weft-system:weft-agent", extra);
    let found = found(status, "weft-ca").unwrap();
    assert_eq!(found.caller.to_string(), "weft-system/weft-agent (weft-agent-x)");
    assert_eq!(found.caller.node.as_deref(), Some("node-a"));
    assert_eq!(found.pod_uid.as_deref(), Some("1-2-3"));
}

#[test]
fn a_review_that_does_not_say_enough_is_a_refusal() {
    let agent = "system:serviceaccount:weft-system:weft-agent";
    let denied = TokenReviewStatus {
        authenticated: Some(false),
        error: Some("token expired".to_owned()),
        ..TokenReviewStatus::default()
    };
    for (status, expected) in [
        (denied, "token expired"),
        (TokenReviewStatus::default(), "does not accept it"),
        (review(None, agent, &[]), "not made for the audience `weft-ca`"),
        (review(Some(&["istio-ca"]), agent, &[]), "not made for the audience `weft-ca`"),
        (review(Some(&["weft-ca"]), "admin", &[]), "it belongs to `admin`"),
        (review(Some(&["weft-ca"]), "system:serviceaccount:x", &[]), "no service account"),
    ] {
        let error = found(status, "weft-ca").unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let two: &[(&str, &[&str])] = &[("authentication.kubernetes.io/node-name", &["a", "b"])];
    assert_eq!(found(review(Some(&["weft-ca"]), agent, two), "weft-ca").unwrap().caller.node, None);
}
