use std::time::Duration;

use super::*;
use crate::access::tests::request;

fn compiled(format: &str) -> AccessFormat {
    AccessFormat::text(format, &mut Vec::new())
}

fn line_of(format: &AccessFormat) -> String {
    let mut out = Vec::new();
    let headers = crate::access::NotedHeaders {
        request: vec![("x-team".into(), "blue \"one\"\nline".into())],
        response: vec![("server".into(), "shop".into())],
    };
    let mut entry = request();
    entry.headers = Some(&headers);
    line(&Fields::of_request(&entry), format, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn operators_print_what_they_stand_for() {
    for (format, expected) in [
        ("%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%", "GET /reviews/0?full=1 HTTP/1.1"),
        ("%REQ_WITHOUT_QUERY(:PATH)%|%REQ(:PATH):4%", "/reviews/0|/rev"),
        ("%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION%", "200 - 0 379 7003"),
        ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% %RESP(SERVER?X)% %RESP(:STATUS)%", "6999 shop 200"),
        ("%REQ(X-TEAM)%|%REQ(X-NOBODY?X-TEAM):4%|%REQ(X-NOBODY)%", "blue \\\"one\\\"\\nline|blue|-"),
        (
            "%UPSTREAM_HOST% %UPSTREAM_CLUSTER%",
            "10.8.1.9:9080 outbound|9080|v2|reviews.books.svc.cluster.local",
        ),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT%", "10.8.0.5 9080"),
        ("%UPSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_URI_SAN%", "spiffe://cluster.local/ns/books/sa/reviews -"),
        ("%START_TIME% %START_TIME(%s.%3f)%", "2026-09-21T14:13:20.123Z 1790000000.123"),
        ("%START_TIME(%Y %E3S)% %START_TIME(%!)%", "2026 20.123 -"),
        ("%ROUTE_NAME% %TRAFFIC_DIRECTION% %CEL(a)% 100%%", "default outbound - 100%"),
    ] {
        assert_eq!(line_of(&compiled(format)), expected, "{format}");
    }
}

#[test]
fn json_keeps_numbers_and_absence() {
    let template = |text: &str| Value::Template(Template::new(text, &mut Vec::new()));
    let members = vec![
        ("code".into(), template("%RESPONSE_CODE%")),
        ("none".into(), template("%REQUESTED_SERVER_NAME%")),
        ("text".into(), template("%REQ(:METHOD)% took %DURATION% ms, %REQUESTED_SERVER_NAME%")),
        ("team".into(), Value::Array(vec![template("%REQ(X-TEAM)%"), Value::Literal("true".into())])),
    ];
    let line = line_of(&AccessFormat::Json(Value::Object(members)));
    let expected =
        r#"{"code":200,"none":null,"text":"GET took 7003 ms, -","team":["blue \"one\"\nline",true]}"#;
    assert_eq!(line, expected);
    assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
}

#[test]
fn headers_that_every_line_has_are_not_noted_again() {
    let wanted = |format: &str| WantedHeaders::of(&compiled(format));
    assert_eq!(wanted("%REQ(:PATH)% %REQ(USER-AGENT)% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"), None);
    let some = wanted("%REQ(X-A?USER-AGENT)% %RESP(SERVER)%").unwrap();
    assert_eq!((some.request, some.response), (vec!["x-a".into()], vec!["server".into()]));
}

#[test]
fn times_before_anything_are_printed_too() {
    let mut entry = request();
    entry.start = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    let mut out = Vec::new();
    line(&Fields::of_request(&entry), &compiled("%START_TIME(%s)%"), &mut out);
    assert_eq!(out, b"-1");
}
