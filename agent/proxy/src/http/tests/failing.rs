//! Faults, failures, retries, timeouts.

use std::time::{Duration, Instant};

use weft_core::resource::virtual_service::{AbortStatus, Fault, PerMillion, Retries};

use super::*;

fn status(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::full("from the application"));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}

pub(super) fn retries(attempts: u32, on: &str) -> Retries {
    Retries {
        attempts,
        per_try_timeout: None,
        on: on.split(',').map(Into::into).collect(),
        ignore_previous_hosts: None,
        remote_localities: None,
        backoff: Some(Duration::from_millis(1)),
    }
}

#[test]
fn failures_are_repeated_as_often_as_the_rule_says_with_the_whole_body() {
    run(async {
        let bed = Bed::new("a");
        let app = App::answering(&bed, false, |_| status(503)).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.route(vec![HttpRule { retries: Some(retries(3, "5xx")), ..to_shop() }]);
        let reply = mesh.send(post("/", "a body")).await;
        assert_eq!((reply.status, reply.body.as_str()), (503, "from the application"));
        assert_eq!(app.requests(), 4);
        for attempt in 1..=4 {
            let seen = app.next();
            assert_eq!(
                (seen.header("x-envoy-attempt-count").unwrap(), &seen.body[..]),
                (&*attempt.to_string(), &b"a body"[..])
            );
        }
        mesh.bed.until("the metrics", |bed| bed.metrics().contains("response_flags=\"URX\"")).await;
        // More than 1 MiB is not kept for another try (E17).
        let reply = mesh.send(post("/", vec![7; 2 * 1024 * 1024])).await;
        assert_eq!((reply.status, app.requests()), (503, 1));
    });
}

#[test]
fn a_retry_that_succeeds_is_all_that_the_client_sees() {
    run(async {
        let bed = Bed::new("a");
        let calls = std::cell::Cell::new(0);
        let app = App::answering(&bed, false, move |_| {
            calls.set(calls.get() + 1);
            status(if calls.get() == 3 { 200 } else { 500 })
        })
        .await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.route(vec![HttpRule { retries: Some(retries(2, "5xx")), ..to_shop() }]);
        assert_eq!(mesh.get("/").await.status, 200);
        assert_eq!(app.requests(), 3);
    });
}

#[test]
fn without_a_rule_only_what_nobody_has_seen_is_repeated() {
    run(async {
        let bed = Bed::new("a");
        let app = App::answering(&bed, false, |_| status(503)).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        assert_eq!(mesh.get("/").await.status, 503);
        assert_eq!(app.requests(), 1);
        // Nothing listens on this port.
        let dead = std::net::TcpListener::bind((mesh.bed.server_ip, 0)).unwrap().local_addr().unwrap();
        mesh.bed.change(service_speaking(PortProtocol::Http, mesh.vip, &[dead.ip()], dead.port()));
        let reply = mesh.get("/").await;
        assert_eq!(reply.status, 503);
        assert!(
            reply.body.starts_with("upstream connect error or disconnect/reset before headers."),
            "{}",
            reply.body
        );
        mesh.logged("URX,UF").await;
    });
}

#[test]
fn no_endpoint_and_no_route_are_told_apart() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.route(vec![HttpRule { matches: prefix("/known"), ..to_shop() }]);
        let reply = mesh.get("/other").await;
        assert_eq!((reply.status, reply.body.as_str()), (404, ""));
        mesh.logged("route_not_found").await;
        mesh.bed.change(service_speaking(PortProtocol::Http, mesh.vip, &[], 80));
        let reply = mesh.get("/known").await;
        assert_eq!((reply.status, reply.body.as_str()), (503, "no healthy upstream"));
        mesh.logged("no_healthy_upstream").await;
    });
}

#[test]
fn a_subset_that_does_not_exist_is_answered_for() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mut rule = to_shop();
        if let HttpAction::Route(routes) = &mut rule.action {
            routes[0].destination.subset = Some("v9".into());
        }
        mesh.route(vec![rule]);
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, reply.body.as_str()), (503, ""));
        mesh.logged("cluster_not_found").await;
    });
}

#[test]
fn faults_delay_and_abort_without_the_application() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let fault = |delay: Option<u64>, abort| Fault {
            delay: delay.map(|ms| (PerMillion::ALL, Duration::from_millis(ms))),
            abort: Option::map(abort, |abort| (PerMillion::ALL, abort)),
        };
        let began = Instant::now();
        mesh.route(vec![HttpRule {
            fault: Some(fault(Some(120), Some(AbortStatus::Http(503)))),
            ..to_shop()
        }]);
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, reply.body.as_str()), (503, "fault filter abort"));
        assert!(began.elapsed() >= Duration::from_millis(120));
        assert_eq!(app.requests(), 0);
        mesh.logged("DI,FI").await;
        mesh.route(vec![HttpRule { fault: Some(fault(None, Some(AbortStatus::Grpc(14)))), ..to_shop() }]);
        let request = Request::post("/a.B/C").header("host", HOST).header("content-type", "application/grpc");
        let reply = mesh.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("14")));
        assert_eq!(reply.header("grpc-message"), Some("fault filter abort"));
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "fault filter abort"));
        // The route's timeout does not count the delay (E22).
        mesh.route(vec![HttpRule {
            fault: Some(fault(Some(2_500), None)),
            timeout: Some(Duration::from_secs(2)),
            ..to_shop()
        }]);
        assert_eq!(mesh.get("/").await.status, 200);
    });
}

/// An application that answers after a while.
async fn slow(bed: &Bed, wait: Duration) -> App {
    App::handling(bed, false, move |_| {
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            status(200)
        })
    })
    .await
}

#[test]
fn the_timeout_of_the_route_and_of_a_try() {
    run(async {
        let bed = Bed::new("a");
        let app = slow(&bed, Duration::from_secs(30)).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let timeout = Some(Duration::from_millis(100));
        mesh.route(vec![HttpRule { timeout, ..to_shop() }]);
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, reply.body.as_str()), (504, "upstream request timeout"));
        mesh.logged("response_timeout").await;
        let request = Request::post("/a.B/C").header("host", HOST).header("content-type", "application/grpc");
        let reply = mesh.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("14")));
        let per_try = Retries { per_try_timeout: Some(Duration::from_millis(50)), ..retries(2, "5xx") };
        mesh.route(vec![HttpRule {
            timeout: Some(Duration::from_secs(20)),
            retries: Some(per_try),
            ..to_shop()
        }]);
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, reply.body.as_str()), (504, "upstream request timeout"));
        mesh.logged("URX,UT").await;
        mesh.logged("upstream_per_try_timeout").await;
    });
}

#[test]
fn a_grpc_caller_limits_itself_up_to_the_routes_timeout() {
    run(async {
        let bed = Bed::new("a");
        let app = slow(&bed, Duration::from_secs(30)).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let request = Request::post("/a.B/C")
            .header("host", HOST)
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "50m");
        let reply = mesh.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("14")));
        assert_eq!(reply.header("grpc-message"), Some("upstream request timeout"));
    });
}

#[test]
fn a_grpc_server_hears_how_long_its_caller_waits() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let call = |timeout: &str| {
            let request =
                Request::post("/a.B/C").header("host", HOST).header("content-type", "application/grpc");
            let request = if timeout.is_empty() { request } else { request.header("grpc-timeout", timeout) };
            request.body(Body::empty()).unwrap()
        };
        for (rule, asked, told) in [
            (None, "", None),
            (None, "7S", Some("7000m")),
            (Some(20), "", Some("20000m")),
            (Some(20), "7S", Some("7000m")),
            (Some(20), "1H", Some("20000m")),
        ] {
            let timeout = rule.map(Duration::from_secs);
            mesh.route(vec![HttpRule { timeout, ..to_shop() }]);
            assert_eq!(mesh.send(call(asked)).await.status, 200);
            assert_eq!(app.next().header("grpc-timeout"), told, "{rule:?} {asked}");
        }
        assert_eq!(mesh.get("/").await.status, 200);
        assert_eq!(app.next().header("grpc-timeout"), None, "others are not told");
    });
}

#[test]
fn the_timeout_covers_the_whole_answer() {
    run(async {
        let bed = Bed::new("a");
        let app = App::handling(&bed, false, |_| {
            Box::pin(async { Response::new(Body::new(streaming::Endless::new(Duration::from_millis(10)))) })
        })
        .await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        // Long enough for the head on any machine.
        mesh.route(vec![HttpRule { timeout: Some(Duration::from_secs(2)), ..to_shop() }]);
        let response = mesh.http1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_err(), "the answer is cut");
        mesh.logged("response_timeout").await;
    });
}

#[test]
fn an_upstream_that_resets_is_answered_for_or_passed_on() {
    run(async {
        let bed = Bed::new("a");
        let (mesh, listener) = Mesh::near_socket(bed).await;
        tokio::task::spawn_local(async move {
            for answer in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"] {
                let mut stream = listener.accept().await.unwrap().0;
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                stream.write_all(answer).await.unwrap();
                stream.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                crate::net::reset(stream);
            }
        });
        let reply = mesh.get("/").await;
        assert_eq!(reply.status, 503);
        assert!(reply.body.ends_with("reset reason: connection termination"), "{}", reply.body);
        mesh.logged(" UC ").await;
        let response = mesh.http1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_err(), "the client is not told that this was all");
        mesh.logged("upstream_reset_after_response_started").await;
    });
}

#[test]
fn a_client_that_vanishes_ends_its_request() {
    run(async {
        let bed = Bed::new("a");
        let (begun, dropped) = <(Rc<std::cell::Cell<bool>>, Rc<std::cell::Cell<bool>>)>::default();
        struct Notice(Rc<std::cell::Cell<bool>>);
        impl Drop for Notice {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let (seen, notice) = (begun.clone(), dropped.clone());
        let app = App::handling(&bed, false, move |_| {
            seen.set(true);
            let notice = Notice(notice.clone());
            Box::pin(async move {
                let _notice = notice;
                std::future::pending::<Response<Body>>().await
            })
        })
        .await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mut stream = mesh.dial().await;
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        mesh.bed.until("the request at the application", |_| begun.get()).await;
        drop(stream);
        mesh.bed.until("the end of the request", |_| dropped.get()).await;
        mesh.logged("downstream_remote_disconnect").await;
    });
}
