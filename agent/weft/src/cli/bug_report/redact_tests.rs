//! What goes in as a secret never comes out.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const TOKEN: &str =
    "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJl";
const KEY: &str =
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPlantedPlantedPlanted\n-----END EC PRIVATE KEY-----";

fn of_object(mut value: Value) -> String {
    object(&mut value);
    value.to_string()
}

#[test]
fn secrets_in_text_are_taken_out() {
    for (planted, line) in [
        (TOKEN, format!("the token {TOKEN} was refused")),
        (TOKEN, format!("{{\"msg\":\"{TOKEN}\"}}")),
        ("MHcCAQEEIPlanted", format!("key:\n{KEY}\nend")),
        ("MHcCAQEEIPlanted", format!("key: {}", KEY.replace('\n', "\\n"))),
        ("MHcCAQEEIPlanted", KEY.replace("-----END EC PRIVATE KEY-----", "")),
        ("LS0tLS1CRUdJTiBFQyBQ", "key LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0t rest".to_owned()),
        ("hunter2", "GET / authorization: Basic hunter2 more\nnext".to_owned()),
        ("hunter2", "\"Authorization\": \"Custom hunter2\"".to_owned()),
        ("hunter2", "cookie: session=hunter2; a=b".to_owned()),
        ("hunter2", "dialling postgres://me:hunter2@db:5432/x".to_owned()),
        ("hunter2", "DB_PASSWORD=hunter2".to_owned()),
        ("hunter 2", "{\"clientSecret\": \"hunter 2\"}".to_owned()),
        ("hunter2", "{\"request\":\"{\\\"api_key\\\":\\\"hunter2\\\"}\"}".to_owned()),
        ("hunter2", "x-api-key: hunter2".to_owned()),
        ("hunter2", "called with --ca-token hunter2".to_owned()),
        ("hunter2", "--token --api-key hunter2".to_owned()),
        ("hunter2", "password: token: hunter2".to_owned()),
        ("hunter2", "Basic Bearer hunter2".to_owned()),
        ("unter2", "https://me:h@unter2@host/a@b".to_owned()),
        ("aGVsbG8gd29ybGQ", "sent Bearer aGVsbG8gd29ybGQ to it".to_owned()),
    ] {
        let out = text(&line);
        assert!(!out.contains(planted), "{line}\nbecame\n{out}");
        assert!(out.contains(NOTE), "{out}");
    }
}

#[test]
fn what_is_no_secret_stays() {
    for line in [
        "pod shop/cart-1 is enrolled as spiffe://cluster.local/ns/shop/sa/cart",
        "weft_certificate_expiry_seconds{principal=\"cluster.local/ns/shop/sa/cart\"} 86123",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUI=",
        "the secretName is gateway-certificate, its volume tokens-dir",
        "GET http://10.0.0.1:8080/a?b=c 200",
    ] {
        assert_eq!(text(line), line);
    }
}

#[test]
fn secrets_in_objects_are_taken_out() {
    let planted = "plantedSecretValue";
    for value in [
        json!({"kind": "Secret", "data": {"a": planted}, "stringData": {"b": planted}}),
        json!({"kind": "List", "items": [{"kind": "ConfigMap", "data": {"password": planted}}]}),
        json!({"spec": {"containers": [{"env": [{"name": "ANYTHING", "value": planted}]}]}}),
        json!({"spec": {"jwtRules": [{"issuer": "me", "jwks": format!("{{\"keys\":[{{\"k\":\"{planted}\"}}]}}")}]}}),
        json!({"spec": {"pluginConfig": {"deep": [{"key": planted}]}}}),
        json!({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": planted}}}),
        json!({"spec": {"rules": [{"when": [{"key": "request.headers[x-api-key]", "values": [planted]}]}]}}),
        json!({"spec": {"http": [{"match": [{"headers": {"authorization": {"exact": planted}}}]}]}}),
        json!({"spec": {"http": [{"headers": {"request": {"set": {"x-token": planted}}}}]}}),
        json!({"mesh": {"defaultConfig": {"tracing": {"lightstep": {"accessToken": planted}}}}}),
        json!({"data": {"mesh": format!("tracing:\n  lightstep:\n    accessToken: {planted}\n")}}),
        json!({"data": {"mesh": format!("tracing:\n  lightstep: {{accessToken: \"{planted}\"}}\n")}}),
        json!({"metadata": {"managedFields": [{"x": planted}]}}),
    ] {
        let out = of_object(value.clone());
        assert!(!out.contains(planted), "{value}\nbecame\n{out}");
    }
}

#[test]
fn objects_stay_readable() {
    let value = json!({
        "kind": "VirtualService", "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"hosts": ["cart"], "http": [{"match": [{"headers": {"end-user": {"exact": "jason"}}}],
            "timeout": "3s", "route": [{"destination": {"host": "cart", "port": {"number": 80}}}]}]},
    });
    assert_eq!(of_object(value.clone()), value.to_string());
    let secret_names =
        json!({"spec": {"tls": {"credentialName": "shop-cert", "secretName": "s"}, "tokenPath": "/a"}});
    assert_eq!(of_object(secret_names.clone()), secret_names.to_string());
}

/// A way to write a secret down.
fn written(form: usize, secret: &str) -> String {
    match form {
        0 => format!("Authorization: Bearer {secret}"),
        1 => format!("\"authorization\":\"{secret}\""),
        2 => format!("eyJ{secret}.{secret}.{secret}"),
        3 => format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----"),
        4 => format!("-----BEGIN RSA PRIVATE KEY-----\\n{secret}\\n-----END RSA PRIVATE KEY-----\\n"),
        5 => format!("LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t{secret}"),
        6 => format!("PASSWORD={secret}"),
        7 => format!("\"client_secret\": \"{secret}\""),
        8 => format!("{{\\\"accessToken\\\": \\\"{secret}\\\"}}"),
        9 => format!("https://user:{secret}@host/path"),
        10 => format!("--api-key {secret}"),
        11 => format!("Set-Cookie: id={secret}; Path=/"),
        _ => format!("token: '{secret}'"),
    }
}

proptest! {
    #[test]
    fn planted_secrets_never_appear(
        form in 0_usize..13,
        secret in "[A-Za-z0-9_-]{12,60}",
        before in "[ -~]{0,40}[ \n]",
        after in "[ \n][ -~]{0,40}",
    ) {
        let line = format!("{before}{}{after}", written(form, &secret));
        let out = text(&line);
        prop_assert!(!out.contains(&secret), "{line}\nbecame\n{out}");
    }

    #[test]
    fn planted_secrets_never_appear_in_objects(
        form in 0_usize..13,
        secret in "[A-Za-z0-9_-]{12,60}",
        names in prop::collection::vec("[a-z]{1,8}", 0..4),
    ) {
        let mut value = json!(written(form, &secret));
        for name in names.iter().rev() {
            value = json!({name.as_str(): [value]});
        }
        let out = of_object(value);
        prop_assert!(!out.contains(&secret), "{out}");
    }

    #[test]
    fn any_text_is_survived(line in any::<String>()) {
        let once = text(&line);
        prop_assert!(once.len() <= line.len() + line.len() * NOTE.len());
    }

    #[test]
    fn a_second_pass_reveals_nothing(form in 0_usize..13, secret in "[A-Za-z0-9_-]{12,60}") {
        let out = text(&text(&written(form, &secret)));
        prop_assert!(!out.contains(&secret));
    }
}
