//! Clients that try to be read in two ways, and those that ask for more than their share.

use std::time::Duration;

use http_body_util::StreamBody;
use hyper::body::Frame;
use weft_core::resource::PolicyAction;
use weft_core::resource::destination_rule::{DestinationRule, OutlierDetection, PolicyBlocks, TrafficPolicy};

use super::super::body::BodyError;
use super::failing::retries;
use super::policy::{of_path, policy};
use super::*;

#[test]
fn a_query_without_a_path_is_for_the_root_also_where_policy_reads_it() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.route(vec![HttpRule { matches: prefix("/"), ..to_shop() }]);
        let raw = format!("GET http://{HOST}?x=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let uri = format!("http://{HOST}?x=1");
        let ask = || Request::get(&uri).body(Body::empty()).unwrap();
        assert!(mesh.raw(raw.as_bytes()).await.starts_with("HTTP/1.1 200"));
        assert_eq!(app.next().target(), "/?x=1");
        let reply = Reply::of(mesh.http2().await.send_request(ask()).await.unwrap()).await;
        assert_eq!((reply.status, app.next().target()), (200, "/?x=1"));
        mesh.bed.change([policy("no-root", PolicyAction::Deny, None, of_path("/"))]);
        assert!(mesh.raw(raw.as_bytes()).await.starts_with("HTTP/1.1 403"));
        let reply = Reply::of(mesh.http2().await.send_request(ask()).await.unwrap()).await;
        assert_eq!((reply.status, app.requests()), (403, 0));
    });
}

/// After an upgrade nobody looks at requests any more: HTTP/2 in there would be a way around policy.
#[test]
fn an_upgrade_to_http2_is_not_passed_on() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mesh = Mesh::near(bed, &app, PortProtocol::Http);
            let request = Request::get("/")
                .header("host", HOST)
                .header("connection", "Upgrade, HTTP2-Settings")
                .header("upgrade", "h2c")
                .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")
                .body(Body::empty());
            let reply = mesh.send(request.unwrap()).await;
            assert_eq!((reply.status, reply.body.as_str()), (200, "hello"), "{node}");
            let seen = app.next();
            for gone in ["connection", "upgrade", "http2-settings"] {
                assert_eq!(seen.header(gone), None, "{node}: {gone}");
            }
        }
    });
}

#[test]
fn crumbs_of_cookies_reach_an_http1_application_as_one_line() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let request = Request::get(format!("http://{HOST}/"))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Body::empty());
        let reply = Reply::of(mesh.http2().await.send_request(request.unwrap()).await.unwrap()).await;
        assert_eq!(reply.status, 200);
        let seen = app.next();
        assert_eq!(seen.head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    });
}

/// Answers one request with these bytes, and leaves its connection open.
async fn answer_once(listener: &TcpListener, answer: &[u8]) -> TcpStream {
    let mut stream = listener.accept().await.unwrap().0;
    assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
    stream.write_all(answer).await.unwrap();
    stream
}

/// A server that says two lengths: only the one that was read is passed on.
#[test]
fn an_answer_of_two_lengths_has_one_afterwards() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let (mesh, listener) = Mesh::near_socket(bed).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
            let (_stream, reply) =
                futures_util::future::join(answer_once(&listener, answer), mesh.get("/")).await;
            assert_eq!((reply.body.as_str(), reply.header("content-length")), ("hello", None), "{node}");
        }
    });
}

/// What follows 101 is decided by no rule any more: a server that says so unasked gets no connection.
#[test]
fn an_application_that_switches_unasked_is_refused_on_either_side() {
    run(async {
        for (node, side) in [("a", "outbound|"), ("b", "inbound|")] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let (mesh, listener) = Mesh::near_socket(bed).await;
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
            let (_stream, reply) =
                futures_util::future::join(answer_once(&listener, answer), mesh.get("/")).await;
            assert_eq!(reply.status, 502, "{node}");
            mesh.logged("upstream_switched_protocols_unasked").await;
            assert!(mesh.bed.log().contains(side), "{node}: who sees it first refuses: {}", mesh.bed.log());
        }
    });
}

fn ejecting_after_one_failure() -> Change {
    let outlier_detection = OutlierDetection {
        consecutive_5xx: 1,
        consecutive_gateway: 0,
        consecutive_local_origin: 1,
        split_local_origin: false,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(180),
        max_ejection_percent: 100,
        min_health_percent: 0,
        error_codes: Vec::new(),
    };
    let blocks = PolicyBlocks { outlier_detection: Some(outlier_detection), ..PolicyBlocks::default() };
    Change::Upsert(Box::new(Resource::DestinationRule(DestinationRule {
        meta: meta(name("eject")),
        host: HOST.into(),
        policy: Some(TrafficPolicy { blocks, ports: Vec::new() }),
        subsets: Vec::new(),
        export_to: Vec::new(),
        workload_selector: None,
    })))
}

/// What a client does to its own body is its own fault: no endpoint is left out for it, and nothing tried again.
#[test]
fn a_body_that_breaks_off_is_the_clients_fault() {
    run(async {
        for node in ["a", "b"] {
            let mut bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            bed.change([ejecting_after_one_failure()]);
            let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
            mesh.route(vec![HttpRule { retries: Some(retries(3, "5xx,reset")), ..to_shop() }]);
            let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
            let answer = mesh.raw(format!("{head}5\r\nhello\r\nnonsense\r\n").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{node}: {answer}");
            mesh.logged("400 DPE http1.codec_error").await;
            // One that leaves in the middle, in both versions.
            let mut gone = mesh.dial().await;
            gone.write_all(format!("{head}5\r\nhello\r\n").as_bytes()).await.unwrap();
            drop(gone);
            mesh.logged("400 DC downstream_remote_disconnect").await;
            let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Err(BodyError::Ended("on purpose"))];
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            let request = Request::post(format!("http://{HOST}/")).body(body).unwrap();
            assert!(mesh.http2().await.send_request(request).await.is_err());
            assert_eq!(mesh.get("/").await.status, 200, "{node}: nobody is ejected");
            assert!(!mesh.bed.log().contains(" UC "), "{node}: {}", mesh.bed.log());
        }
    });
}

/// HTTP/2 frames (RFC 9113 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A short field, not indexed (RFC 7541 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// What reads HTTP/2 for us cuts a target at its `#`, where Envoy refuses it: nobody may read more of it than policy does.
#[test]
fn a_fragment_is_refused_or_seen_by_nobody() {
    run(async {
        let (mut mesh, listener) = Mesh::near_socket(Bed::new("a")).await;
        let line = format!("GET /open#/../shut?x=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        assert!(mesh.raw(line.as_bytes()).await.starts_with("HTTP/1.1 400"));
        let of = |path: &str| {
            let head = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", HOST)];
            let head = head.map(|(name, value)| field(name, value)).concat();
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, b""), frame(1, 5, 1, &head)]
                .concat()
        };
        let mut client = mesh.dial().await;
        client.write_all(&of("/open#/../shut?x=1")).await.unwrap();
        let mut app = listener.accept().await.unwrap().0;
        let mut head = [0; 4096];
        let length = app.read(&mut head).await.unwrap();
        assert!(head[..length].starts_with(b"GET /open HTTP/1.1\r\n"), "{}", head[..length].escape_ascii());
        mesh.bed.change([policy("no-shut", PolicyAction::Deny, None, of_path("/shut"))]);
        let mut client = mesh.dial().await;
        client.write_all(&of("/shut#/open")).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(6).any(|part| part == b"denied") {
            assert!(client.read_buf(&mut answer).await.unwrap() > 0, "{}", answer.escape_ascii());
        }
    });
}

#[test]
fn who_floods_is_sent_away_counted_and_nobodys_else_trouble() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, true).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http2);
        let head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", HOST)];
        let head = head.map(|(name, value)| field(name, value)).concat();
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, b"")].concat();
        let reset =
            |at: u32| [frame(1, 5, 2 * at + 1, &head), frame(3, 0, 2 * at + 1, &[0, 0, 0, 8])].concat();
        let resets: Vec<u8> = (0..100).flat_map(reset).collect();
        let more = |at: u32| frame(9, 0, 1, &field(&format!("x-{at}"), &"y".repeat(100)));
        let continuations: Vec<u8> =
            [frame(1, 0, 1, &head)].into_iter().chain((0..1000).map(more)).flatten().collect();
        let empty: Vec<u8> = [frame(1, 0, 1, &head)]
            .into_iter()
            .chain((0..5000).map(|_| frame(9, 0, 1, b"")))
            .flatten()
            .collect();
        let mut other = mesh.http2().await;
        for (times, flood) in (1..).zip([resets, continuations, empty]) {
            let answer = mesh.raw(&[preface.clone(), flood].concat()).await;
            assert!(!answer.is_empty(), "GOAWAY");
            let refused = format!("weft_refused_total{{reason=\"malformed_request\",policy=\"\"}} {times}");
            mesh.bed.until(&refused, |bed| bed.metrics().contains(&refused)).await;
            let request = Request::get(format!("http://{HOST}/")).body(Body::empty()).unwrap();
            assert_eq!(Reply::of(other.send_request(request).await.unwrap()).await.status, 200);
        }
    });
}

#[test]
fn a_panic_ends_what_it_happened_in_and_nothing_else() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mut client = mesh.http1().await;
        assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 200);
        mesh.bed.worker.spawn(async { panic!("on purpose") });
        mesh.bed.until("the count", |bed| bed.worker.shared.counters.all().contains(&("panics", 1))).await;
        client.ready().await.unwrap();
        assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 200);
    });
}
