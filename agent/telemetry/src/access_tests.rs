use std::sync::mpsc;

use proptest::prelude::*;
use weft_core::resource::Kind;

use super::*;
use crate::lines::{BATCH, QUEUE, QUEUE_BYTES};

const LIMIT: Duration = Duration::from_secs(30);

fn line() -> ConnectionLog {
    ConnectionLog {
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
        duration: Duration::from_micros(61_999),
        direction: Direction::Outbound,
        flags: "-",
        details: None,
        bytes_received: 1033,
        bytes_sent: 3015,
        downstream_remote: "10.8.0.5:41232".parse().unwrap(),
        downstream_local: "10.96.0.7:443".parse().unwrap(),
        upstream_remote: Some("10.8.1.9:8443".parse().unwrap()),
        upstream_local: Some("10.8.0.5:41234".parse().unwrap()),
        upstream_cluster: "outbound|443||stock.shop.svc.cluster.local".into(),
        path: "hbone",
        source_principal: Some("spiffe://cluster.local/ns/shop/sa/cart".into()),
        destination_principal: Some("spiffe://cluster.local/ns/shop/sa/stock".into()),
        source_pod: Some("shop/cart-1".into()),
        destination_pod: Some("shop/stock-1".into()),
        policy: None,
        audit: None,
    }
}

fn denied() -> ConnectionLog {
    ConnectionLog {
        direction: Direction::Inbound,
        flags: "DENY",
        details: Some("AuthorizationPolicy shop/stock, rule 0, denies \"cart\"".into()),
        upstream_remote: None,
        upstream_local: None,
        upstream_cluster: "inbound|8443||".into(),
        downstream_local: "[fd00::9]:8443".parse().unwrap(),
        downstream_remote: "[fd00::5]:41232".parse().unwrap(),
        policy: Some("ns[shop]-policy[stock]-rule[0]".into()),
        ..line()
    }
}

fn unidentified() -> ConnectionLog {
    ConnectionLog {
        flags: "UF",
        details: Some("connection refused".into()),
        source_principal: None,
        destination_principal: None,
        source_pod: None,
        destination_pod: None,
        ..line()
    }
}

/// An output whose writes come out at the receiver; a write waits until somebody receives it.
struct Pipe(mpsc::SyncSender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn pipe() -> (AccessLog, mpsc::Receiver<Vec<u8>>) {
    let (sender, receiver) = mpsc::sync_channel(0);
    (AccessLog::to(Box::new(Pipe(sender))), receiver)
}

/// Their lines.
fn printed(entries: &[Fields<'_>], format: &AccessLogFormat) -> String {
    let mut out = Vec::new();
    entries.iter().for_each(|entry| format::line(entry, format, &mut out));
    String::from_utf8(out).unwrap()
}

fn rendered(format: AccessLogFormat) -> String {
    let entries = [line(), denied(), unidentified()];
    printed(&entries.each_ref().map(Fields::of_connection), &format)
}

#[test]
fn text_is_istios() {
    insta::assert_snapshot!(rendered(AccessLogFormat::Text));
}

#[test]
fn json_has_istios_keys_and_ours() {
    insta::assert_snapshot!(rendered(AccessLogFormat::Json));
}

#[test]
fn only_failures_are_written_unless_everything_was_asked_for() {
    let (log, receiver) = pipe();
    log.write(line());
    log.write(denied());
    let first = String::from_utf8(receiver.recv_timeout(LIMIT).unwrap()).unwrap();
    assert_eq!(first.lines().count(), 1);
    assert!(first.contains("DENY"));
    log.configure(true, AccessLogFormat::Json);
    log.write(line());
    let second = String::from_utf8(receiver.recv_timeout(LIMIT).unwrap()).unwrap();
    assert!(second.starts_with('{') && second.contains("\"response_flags\":\"-\""), "{second}");
}

#[test]
fn a_full_queue_loses_ordinary_lines_first_and_counts_them() {
    let (log, receiver) = pipe();
    log.configure(true, AccessLogFormat::Text);
    // The writer takes some lines and then waits in its write: from there on the queue fills.
    for _ in 0..QUEUE + BATCH + 1 {
        log.write(line());
    }
    let lost = log.lost();
    assert!(lost >= 1);
    log.write(denied());
    assert_eq!(log.lost(), lost, "there is room for failures");
    drop(log);
    let all: Vec<u8> = receiver.iter().flatten().collect();
    let text = String::from_utf8(all).unwrap();
    assert!(text.lines().last().unwrap().contains("DENY"), "what was queued is written when the log ends");
    assert_eq!(text.lines().count() as u64, (QUEUE + BATCH + 2) as u64 - lost);
}

#[test]
fn an_output_that_fails_counts_as_loss() {
    let (log, receiver) = pipe();
    drop(receiver);
    log.write(denied());
    log.flush(LIMIT);
    assert_eq!(log.lost(), 1);
}

proptest! {
    #[test]
    fn nothing_breaks_out_of_its_line(details in "\\PC*|[\"\\\\\n\r\t\u{85} ]{1,20}") {
        let entry = ConnectionLog { details: Some(details.clone()), ..denied() };
        let fields = Fields::of_connection(&entry);
        for format in [AccessLogFormat::Text, AccessLogFormat::Json] {
            let out = printed(std::slice::from_ref(&fields), &format);
            prop_assert_eq!(out.chars().filter(|c| *c < ' ').count(), 1, "only the line's end");
        }
        let out = printed(&[fields], &AccessLogFormat::Json);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(json["upstream_transport_failure_reason"].as_str(), Some(details.as_str()));
    }
}

pub(crate) fn request() -> RequestLog<'static> {
    RequestLog {
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
        duration: Duration::from_micros(7_003_999),
        direction: Direction::Outbound,
        method: "GET",
        path: "/reviews/0?full=1",
        protocol: "HTTP/1.1",
        response_code: 200,
        flags: "-",
        response_code_details: Some("via_upstream"),
        termination_details: None,
        transport_failure: None,
        bytes_received: 0,
        bytes_sent: 379,
        upstream_service_time: Some(Duration::from_micros(6_999_500)),
        x_forwarded_for: None,
        user_agent: Some(b"curl/8.5.0"),
        request_id: Some(b"cb3e4a38-0d5a-9e5c-8f8e-7c9b9b7b3f10"),
        authority: Some(b"reviews:9080"),
        upstream_host: Some("10.8.1.9:9080".parse().unwrap()),
        upstream_cluster: Some(LogText::Plain("outbound|9080|v2|reviews.books.svc.cluster.local")),
        upstream_local: Some("10.8.0.5:41234".parse().unwrap()),
        downstream_local: "10.96.0.7:9080".parse().unwrap(),
        downstream_remote: "10.8.0.5:41232".parse().unwrap(),
        requested_server_name: None,
        route_name: Some("default"),
        mesh_path: "hbone",
        source_principal: Some("spiffe://cluster.local/ns/books/sa/productpage"),
        destination_principal: Some("spiffe://cluster.local/ns/books/sa/reviews"),
        source_pod: Some(LogText::Plain("books/productpage-1")),
        destination_pod: Some(LogText::Plain("books/reviews-v2-1")),
        policy: None,
        audit: None,
        grpc_status: None,
        headers: None,
        refused: false,
    }
}

fn forbidden() -> RequestLog<'static> {
    RequestLog {
        direction: Direction::Inbound,
        response_code: 403,
        response_code_details: Some("rbac_access_denied_matched_policy[ns[books]-policy[no-posts]-rule[0]]"),
        upstream_host: None,
        upstream_local: None,
        upstream_service_time: None,
        upstream_cluster: Some(LogText::Plain("inbound|9080||")),
        user_agent: None,
        policy: Some(LogText::Plain("ns[books]-policy[no-posts]-rule[0]")),
        refused: true,
        ..request()
    }
}

fn rendered_requests(format: AccessLogFormat) -> String {
    let timeout = RequestLog {
        response_code: 504,
        flags: "UT",
        response_code_details: Some("response_timeout"),
        upstream_service_time: None,
        x_forwarded_for: Some(b"192.0.2.1, \"x\"\n"),
        ..request()
    };
    let entries = [request(), forbidden(), timeout];
    printed(&entries.each_ref().map(Fields::of_request), &format)
}

#[test]
fn text_of_requests_is_istios() {
    insta::assert_snapshot!(rendered_requests(AccessLogFormat::Text));
}

#[test]
fn json_of_requests_has_istios_keys_and_ours() {
    insta::assert_snapshot!(rendered_requests(AccessLogFormat::Json));
}

#[test]
fn bytes_that_are_no_text_stay_on_their_line() {
    let entry = RequestLog { user_agent: Some(b"a\xff\"\n"), ..request() };
    let fields = [Fields::of_request(&entry)];
    let text = printed(&fields, &AccessLogFormat::Text);
    assert!(text.contains("\"a\u{fffd}\\\"\\n\"") && text.lines().count() == 1, "{text}");
    let json = printed(&fields, &AccessLogFormat::Json);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["user_agent"], "a\u{fffd}\"\n");
}

#[test]
fn addresses_are_printed_as_everywhere() {
    for address in ["0.0.0.0:0", "9.10.99.100:1", "200.255.109.5:65535", "[2001:db8::1]:443"] {
        let address: std::net::SocketAddr = address.parse().unwrap();
        let entry = RequestLog { downstream_local: address, ..request() };
        let text = printed(&[Fields::of_request(&entry)], &AccessLogFormat::Text);
        assert!(text.contains(&format!(" {address} 10.8.0.5:41232 ")), "{text}");
    }
}

#[test]
fn refused_requests_are_written_always_and_others_where_asked_for() {
    let (log, receiver) = pipe();
    log.request(&request());
    log.request(&forbidden());
    let first = String::from_utf8(receiver.recv_timeout(LIMIT).unwrap()).unwrap();
    assert_eq!(first.lines().count(), 1);
    assert!(first.contains("rbac_access_denied"), "{first}");
    log.configure(true, AccessLogFormat::Text);
    log.request(&request());
    let second = String::from_utf8(receiver.recv_timeout(LIMIT).unwrap()).unwrap();
    assert!(second.contains("via_upstream"), "{second}");
}

#[test]
fn audited_lines_are_written_and_name_the_policies() {
    let (log, receiver) = pipe();
    log.configure(false, AccessLogFormat::Json);
    log.request(&request());
    let audit = "ns[books]-policy[watch]-rule[0]";
    log.request(&RequestLog { audit: Some(audit), ..request() });
    log.write(ConnectionLog { audit: Some(audit.to_owned()), ..line() });
    drop(log);
    let text: String =
        receiver.iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect::<Vec<_>>().concat();
    assert_eq!(text.lines().count(), 2, "{text}");
    let named = "\"audit\":\"ns[books]-policy[watch]-rule[0]\"";
    assert!(text.lines().all(|line| line.contains(named)), "{text}");
}

#[test]
fn texts_are_put_together_where_they_are_printed() {
    let (pod, policy) =
        (NamespacedName::new("shop", "cart-1"), ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p"));
    for (text, expected) in [
        (LogText::Plain("as it is"), "as it is"),
        (LogText::Object(&pod), "shop/cart-1"),
        (LogText::InboundPort(8080), "inbound|8080||"),
        (LogText::Policy(&policy, None), "ns[shop]-policy[p]"),
        (LogText::Policy(&policy, Some(3)), "ns[shop]-policy[p]-rule[3]"),
    ] {
        assert_eq!(text.to_string(), expected);
    }
}

#[test]
fn lines_of_all_sizes_come_out_whole_and_in_their_order() {
    let (log, receiver) = pipe();
    log.configure(true, AccessLogFormat::Text);
    let sizes = (0..3 * BATCH).map(|at| if at % 7 == 0 { BATCH_BYTES } else { at });
    let paths: Vec<String> = sizes.map(|size| format!("/{}", "x".repeat(size))).collect();
    for path in &paths {
        log.request(&RequestLog { path, ..request() });
    }
    assert_eq!(log.lost(), 0);
    drop(log);
    let text = String::from_utf8(receiver.iter().flatten().collect()).unwrap();
    let written: Vec<&str> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(written, paths);
}

#[test]
fn long_paths_do_not_grow_the_queue_beyond_its_bytes() {
    let (log, receiver) = pipe();
    log.configure(true, AccessLogFormat::Text);
    let path = "/".repeat(60 << 10);
    let fitting = QUEUE_BYTES / path.len() + 1;
    for _ in 0..fitting + BATCH + 10 {
        log.request(&RequestLog { path: &path, ..request() });
    }
    assert!(log.lost() >= 9, "{}", log.lost());
    let lost = log.lost();
    log.request(&RequestLog { path: &path, ..forbidden() });
    assert_eq!(log.lost(), lost, "there is room for refusals");
    drop(log);
    assert!(receiver.iter().flatten().count() > 0);
}

proptest! {
    #[test]
    fn no_header_breaks_out_of_its_line(value in "\\PC*|[\"\\\\\n\r\t\u{85} ]{1,20}") {
        let entry = RequestLog { path: &value, user_agent: Some(value.as_bytes()), ..forbidden() };
        let fields = [Fields::of_request(&entry)];
        let out = printed(&fields, &AccessLogFormat::Text);
        prop_assert_eq!(out.chars().filter(|c| *c < ' ').count(), 1, "only the line's end");
        let out = printed(&fields, &AccessLogFormat::Json);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(json["user_agent"].as_str(), Some(value.as_str()));
        prop_assert_eq!(json["path"].as_str(), Some(value.as_str()));
    }
}
