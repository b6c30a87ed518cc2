//! What a connection is, and what is refused on it.

use std::time::Duration;

use weft_core::resource::{MeshConfig, MeshHttp, NamespacedName, Resource};

use super::*;

#[test]
fn connections_are_kept_on_both_sides() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mut client = mesh.http1().await;
        for _ in 0..5 {
            client.ready().await.unwrap();
            assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 200);
        }
        assert_eq!((app.requests(), app.connections.get()), (5, 1));
    });
}

#[test]
fn an_undeclared_port_is_found_to_speak_http() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Undeclared);
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, reply.header("server")), (200, Some("envoy")));
        // HTTP/1.0 passes untouched where nobody declares HTTP.
        let answer = mesh.raw(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(!answer.contains("envoy"), "{answer}");
    });
}

/// Who is silent for long speaks something else, unless MeshConfig has more patience.
#[test]
fn a_client_may_be_silent_for_as_long_as_the_mesh_says() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mut mesh = Mesh::near(bed, &app, PortProtocol::Undeclared);
            let late = [(None, false), (Some(Duration::from_secs(60)), true), (Some(Duration::ZERO), true)];
            for (detection_timeout, known) in late {
                let http = MeshHttp { detection_timeout, ..MeshHttp::default() };
                let config =
                    MeshConfig { http, ..MeshConfig::new(NamespacedName::new("istio-system", "istio")) };
                mesh.bed.change([Change::Upsert(Box::new(Resource::MeshConfig(config)))]);
                let mut client = mesh.http1().await;
                // Silence is what this is about: twice as long as the proxy has patience of its own.
                tokio::time::sleep(Duration::from_millis(200)).await;
                let reply = Reply::of(client.send_request(get("/")).await.unwrap()).await;
                let seen = reply.header("server") == Some("envoy");
                assert_eq!((reply.status, seen), (200, known), "{node}: {detection_timeout:?}");
            }
        }
    });
}

/// The server's side is open before the client's first byte; the first request uses it.
#[test]
fn an_undeclared_port_sees_no_connection_without_a_request() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mesh = Mesh::near(bed, &app, PortProtocol::Undeclared);
            let mut client = mesh.http1().await;
            // Both sides find out by themselves what is spoken: the way is open meanwhile.
            mesh.bed.until("the early connection", |_| app.connections.get() == 1).await;
            for _ in 0..3 {
                client.ready().await.unwrap();
                assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 200);
            }
            assert_eq!((app.requests(), app.connections.get()), (3, 1), "{node}");
        }
    });
}

#[test]
fn http2_with_prior_knowledge_shares_a_connection() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, true).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http2);
        let mut client = mesh.http2().await;
        let requests: Vec<_> = (0..10)
            .map(|at| {
                let uri = format!("http://{HOST}/{at}");
                client.send_request(Request::get(uri).body(Body::empty()).unwrap())
            })
            .collect();
        for response in futures_util::future::join_all(requests).await {
            assert_eq!(Reply::of(response.unwrap()).await.body, "hello");
        }
        assert_eq!((app.requests(), app.connections.get()), (10, 1));
        assert_eq!(app.next().head.uri.authority().unwrap(), HOST);
    });
}

#[test]
fn an_http1_client_reaches_an_http2_server_and_the_other_way_round() {
    run(async {
        for http2 in [true, false] {
            let bed = Bed::new("a");
            let app = App::echo(&bed, http2).await;
            let protocol = if http2 { PortProtocol::Grpc } else { PortProtocol::Http };
            let mesh = Mesh::near(bed, &app, protocol);
            let reply = if http2 {
                mesh.get("/x").await
            } else {
                let request = Request::get(format!("http://{HOST}/x")).body(Body::empty()).unwrap();
                Reply::of(mesh.http2().await.send_request(request).await.unwrap()).await
            };
            assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
            assert_eq!(app.next().target(), "/x");
        }
    });
}

#[test]
fn the_case_of_header_names_is_kept() {
    run(async {
        let bed = Bed::new("a");
        let (mesh, listener) = Mesh::near_socket(bed).await;
        let server = async {
            let mut stream = listener.accept().await.unwrap().0;
            let mut head = vec![0; 4096];
            let count = stream.read(&mut head).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 Fine\r\nX-ReSponse: 1\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
            String::from_utf8_lossy(&head[..count]).into_owned()
        };
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-ReQuest: 1\r\nConnection: close\r\n\r\n");
        let (head, answer) = futures_util::future::join(server, mesh.raw(request.as_bytes())).await;
        assert!(head.contains("X-ReQuest: 1\r\n"), "{head}");
        assert!(answer.starts_with("HTTP/1.1 200 Fine\r\n"), "{answer}");
        assert!(answer.contains("X-ReSponse: 1\r\n"), "{answer}");
    });
}

#[test]
fn improper_requests_are_refused_and_nothing_reaches_the_application() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let large = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Large: {}\r\n\r\n", "x".repeat(62 * 1024));
        let many = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "A: b\r\n".repeat(101));
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (large.into_bytes(), "431"),
            (many.into_bytes(), "431"),
            (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").into(), "400"),
            (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n").into(), "400"),
            (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n").into(), "400"),
            (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n").into(), "501"),
            (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").into(), "501"),
            (format!("GET /a#b HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into(), "400"),
            (format!("GET /%00 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into(), "400"),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "400"),
            (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: b\r\n\r\n").into(), "400"),
            (b"GET / HTTP/1.0\r\n\r\n".to_vec(), "426"),
            (format!("CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into(), "403"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 is not HTTP\r\n\r\n".to_vec(), "400"),
        ];
        for (bytes, status) in cases {
            let answer = mesh.raw(&bytes).await;
            let sent = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            assert_eq!(answer.split(' ').nth(1), Some(status), "{sent:?}: {answer:?}");
        }
        for (reason, count) in
            [("head_too_large", 2), ("malformed_request", 10), ("http_version", 1), ("connect_method", 1)]
        {
            let line = format!("weft_refused_total{{reason=\"{reason}\",policy=\"\"}} {count}\n");
            let metrics = mesh.bed.metrics();
            assert!(metrics.contains(&line), "{line}{metrics}");
        }
        for details in ["431 DPE http1.headers_too_large", "400 DPE http1.codec_error", "missing_host_header"]
        {
            mesh.logged(details).await;
        }
        assert_eq!(app.requests(), 0);
    });
}

#[test]
fn what_belongs_to_one_connection_and_controls_of_envoy_stay_behind() {
    run(async {
        let bed = Bed::new("a");
        let app = App::answering(&bed, false, |_| {
            let mut response = Response::new(Body::full("hello"));
            response.headers_mut().insert("connection", "x-hop".parse().unwrap());
            response.headers_mut().insert("x-hop", "1".parse().unwrap());
            response
        })
        .await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let request = Request::get("/")
            .header("host", HOST)
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("te", "trailers")
            .header("x_under", "1")
            .header("x-envoy-retry-on", "5xx")
            .header("x-envoy-upstream-rq-timeout-ms", "1")
            .header("x-forwarded-client-cert", "URI=spiffe://forged")
            .header("x-request-id", "mine")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-for", "192.0.2.1")
            .body(Body::empty());
        let reply = mesh.send(request.unwrap()).await;
        assert_eq!((reply.status, reply.header("x-hop")), (200, None));
        let seen = app.next();
        for gone in ["x-hop", "connection", "x-envoy-retry-on", "x-envoy-upstream-rq-timeout-ms"] {
            assert_eq!(seen.header(gone), None, "{gone}");
        }
        assert_eq!((seen.header("te"), seen.header("x_under")), (Some("trailers"), Some("1")));
        assert_eq!(
            (seen.header("x-request-id"), seen.header("x-forwarded-proto")),
            (Some("mine"), Some("https"))
        );
        assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.1"), "a sidecar appends nothing");
        assert!(!seen.header("x-forwarded-client-cert").unwrap().contains("forged"));
    });
}

#[test]
fn a_websocket_passes_both_ways_and_no_timeout_cuts_it() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::handling(&bed, false, |mut request| {
                Box::pin(async move {
                    assert_eq!(request.headers()["upgrade"], "websocket");
                    let upgrade = hyper::upgrade::on(&mut request);
                    tokio::task::spawn_local(async move {
                        let mut stream = TokioIo::new(upgrade.await.unwrap());
                        let mut heard = [0; 4];
                        stream.read_exact(&mut heard).await.unwrap();
                        stream.write_all(&heard).await.unwrap();
                        stream.shutdown().await.unwrap();
                    });
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
                    response.headers_mut().insert("connection", "upgrade".parse().unwrap());
                    response.headers_mut().insert("upgrade", "websocket".parse().unwrap());
                    response
                })
            })
            .await;
            let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
            let timeout = Some(std::time::Duration::from_secs(2));
            mesh.route(vec![HttpRule { timeout, ..to_shop() }]);
            let request = Request::get("/ws")
                .header("host", HOST)
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .body(Body::empty());
            let mut response = mesh.http1().await.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), 101);
            assert_eq!(response.headers()["upgrade"], "websocket");
            let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
            tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
            stream.write_all(b"ping").await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"ping");
            drop(stream);
            mesh.bed.until("the metrics", |bed| bed.metrics().contains("response_code=\"101\"")).await;
        }
    });
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end_of_its_pod_and_a_busy_one_is_waited_for() {
    run(async {
        let bed = Bed::new("a");
        let gate = Rc::new(tokio::sync::Semaphore::new(0));
        let begun = Rc::new(std::cell::Cell::new(0));
        let (waiting, count) = (gate.clone(), begun.clone());
        let app = App::handling(&bed, false, move |_| {
            let waiting = waiting.clone();
            count.set(count.get() + 1);
            Box::pin(async move {
                waiting.acquire().await.unwrap().forget();
                Response::new(Body::full("late"))
            })
        })
        .await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mut idle = mesh.http1().await;
        gate.add_permits(1);
        assert_eq!(Reply::of(idle.send_request(get("/")).await.unwrap()).await.body, "late");
        let mut busy = mesh.http1().await;
        let late = tokio::task::spawn_local(busy.send_request(get("/")));
        mesh.bed.until("the second request", |_| begun.get() == 2).await;
        mesh.bed.worker.live.go_away(Some(&mesh.bed.client));
        mesh.bed.until("the end of the idle connection", |_| idle.is_closed()).await;
        gate.add_permits(1);
        let reply = Reply::of(late.await.unwrap().unwrap()).await;
        assert_eq!((reply.body.as_str(), reply.header("connection")), ("late", Some("close")));
    });
}

#[test]
fn a_head_that_does_not_come_to_its_end_ends_the_connection() {
    crate::testbed::run_paused(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        // Also where it cannot be told yet which version it is.
        for (at, beginning) in [(1, &b"GET / HTTP/1.1\r\nHost: a\r\n"[..]), (2, b"PRI * HTTP/2.0\r\n")] {
            let began = tokio::time::Instant::now();
            assert_eq!(mesh.raw(beginning).await, "");
            assert_eq!(began.elapsed().as_secs(), 60, "{at}");
            let refused = format!("weft_refused_total{{reason=\"head_timeout\",policy=\"\"}} {at}");
            assert!(mesh.bed.metrics().contains(&refused), "{}", mesh.bed.metrics());
        }
        assert!(mesh.bed.log().contains("did not come to its end"));
        assert_eq!(app.requests(), 0);
    });
}

#[test]
fn a_client_that_breaks_the_rules_of_http2_is_told_and_counted() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, true).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http2);
        // SETTINGS as it must be, then DATA on stream 0.
        let frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert!(!mesh.raw(frames).await.is_empty(), "SETTINGS and GOAWAY");
        mesh.logged("broke the rules of HTTP/2").await;
        let refused = "weft_refused_total{reason=\"malformed_request\",policy=\"\"} 1";
        assert!(mesh.bed.metrics().contains(refused), "{}", mesh.bed.metrics());
    });
}

#[test]
fn an_http2_client_that_does_not_answer_is_given_up() {
    crate::testbed::run_paused(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, true).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http2);
        let began = tokio::time::Instant::now();
        // Its SETTINGS, and then nothing for ever.
        mesh.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        let waited = began.elapsed().as_secs();
        assert!((80..3600).contains(&waited), "{waited}");
        assert_eq!(app.requests(), 0);
    });
}
