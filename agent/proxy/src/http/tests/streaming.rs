//! Bodies that are large, slow, or both.

use std::task::Context;
use std::time::Duration;

use http_body_util::StreamBody;
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::Sleep;

use super::super::body::BodyError;
use super::*;

/// A body that never ends.
pub(super) struct Endless {
    every: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Endless {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, timer: Box::pin(tokio::time::sleep(every)) }
    }
}

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.timer = Box::pin(tokio::time::sleep(self.every));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"tick")))))
    }
}

/// So many chunks of 64 KiB.
fn chunks(count: usize) -> Body {
    let chunk = Bytes::from(vec![7; 64 * 1024]);
    let frames = (0..count).map(move |_| Ok(Frame::data(chunk.clone())));
    Body::new(StreamBody::new(futures_util::stream::iter(frames)))
}

#[test]
fn large_bodies_stream_both_ways_on_every_path() {
    run(async {
        for (node, http2) in [("a", false), ("a", true), ("b", false), ("b", true)] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::handling(&bed, http2, |request| {
                // Echoes while it reads: nothing may wait for the end of the request.
                Box::pin(async move { Response::new(Body::from(request.into_body())) })
            })
            .await;
            let protocol = if http2 { PortProtocol::Http2 } else { PortProtocol::Http };
            let mesh = Mesh::near(bed, &app, protocol);
            let request =
                Request::post(format!("http://{HOST}/")).header("host", HOST).body(chunks(512)).unwrap();
            let response = if http2 {
                let (mut parts, body) = request.into_parts();
                parts.headers.remove("host");
                mesh.http2().await.send_request(Request::from_parts(parts, body)).await
            } else {
                mesh.http1().await.send_request(request).await
            };
            let mut body = response.unwrap().into_body();
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
            }
            assert_eq!(bytes, 512 * 64 * 1024, "{node} {http2}");
        }
    });
}

#[test]
fn a_client_that_does_not_read_stops_its_server_and_holds_little() {
    run(async {
        let bed = Bed::new("a");
        let sent = Rc::new(std::cell::Cell::new(0usize));
        let count = sent.clone();
        let app = App::handling(&bed, false, move |_| {
            let count = count.clone();
            let chunk = Bytes::from(vec![7; 64 * 1024]);
            let frames = std::iter::repeat_with(move || {
                count.set(count.get() + chunk.len());
                Ok(Frame::data(chunk.clone()))
            });
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames.take(100_000))));
            Box::pin(async move { Response::new(body) })
        })
        .await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mut stream = mesh.dial().await;
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        let mut before = usize::MAX;
        // Until nothing moves any more.
        while before != sent.get() || before == 0 {
            before = sent.get();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // What the kernel's buffers of three sockets hold, and our own.
        assert!(sent.get() < 64 * 1024 * 1024, "{}", sent.get());
        drop(stream);
        mesh.logged("downstream_remote_disconnect").await;
    });
}

#[test]
fn trailers_of_grpc_arrive_and_are_counted() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::handling(&bed, true, |request| {
                Box::pin(async move {
                    assert_eq!(request.headers()["te"], "trailers");
                    request.into_body().collect().await.unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "5".parse().unwrap());
                    let message = Bytes::from_static(b"\0\0\0\0\x02ok");
                    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
                    let mut response =
                        Response::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))));
                    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                    response
                })
            })
            .await;
            let mesh = Mesh::near(bed, &app, PortProtocol::Grpc);
            let request = Request::post(format!("http://{HOST}/a.B/C"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Body::full(&b"\0\0\0\0\0\0\0\0\0\x01x"[..]));
            let response = mesh.http2().await.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "5");
            assert_eq!(&body.to_bytes()[..], b"\0\0\0\0\x02ok");
            mesh.bed
                .until("the metrics", |bed| {
                    let metrics = bed.metrics();
                    let count = |family: &str, value: &str| {
                        metrics
                            .lines()
                            .filter(|line| {
                                line.starts_with(family) && line.contains("grpc_response_status=\"5\"")
                            })
                            .filter(|line| line.ends_with(value))
                            .count()
                    };
                    count("istio_request_messages_total{", " 2") == 2
                        && count("istio_response_messages_total{", " 1") == 2
                })
                .await;
        }
    });
}

/// An application that answers the head of a request before it reads on.
async fn asked_first(node: &str, first: &'static [u8]) -> (String, Vec<u8>) {
    let bed = Bed::new(node);
    bed.serve_tunnels();
    let (mesh, listener) = Mesh::near_socket(bed).await;
    let server = async {
        let mut stream = listener.accept().await.unwrap().0;
        let mut head = vec![0; 4096];
        let count = stream.read(&mut head).await.unwrap();
        assert!(head[..count].ends_with(b"\r\n\r\n"), "only the head has come");
        stream.write_all(first).await.unwrap();
        let count = stream.read(&mut head).await.unwrap();
        if count > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
        head.truncate(count);
        head
    };
    let client = async {
        let mut stream = mesh.dial().await;
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 8\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = stream.read(&mut answer).await.unwrap();
        answer.truncate(count);
        if answer == b"HTTP/1.1 100 Continue\r\n\r\n" {
            stream.write_all(b"the body").await.unwrap();
        }
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let (body, answer) = futures_util::future::join(server, client).await;
    (answer, body)
}

#[test]
fn an_application_decides_whether_it_wants_the_body() {
    run(async {
        for node in ["a", "b"] {
            let (answer, body) = asked_first(node, b"HTTP/1.1 100 Continue\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"), "{answer}");
            assert_eq!(body, b"the body");
            let refusal =
                b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let (answer, body) = asked_first(node, refusal).await;
            assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
            assert_eq!(body, b"");
        }
    });
}

#[test]
fn answers_without_a_body_keep_what_they_say_about_it() {
    run(async {
        let bed = Bed::new("a");
        let (mesh, listener) = Mesh::near_socket(bed).await;
        tokio::task::spawn_local(async move {
            let mut stream = listener.accept().await.unwrap().0;
            for answer in [
                &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"[..],
                b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
                b"HTTP/1.1 204 No Content\r\n\r\n",
            ] {
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                stream.write_all(answer).await.unwrap();
            }
        });
        let mut client = mesh.http1().await;
        let mut head = get("/");
        *head.method_mut() = http::Method::HEAD;
        let reply = Reply::of(client.send_request(head).await.unwrap()).await;
        assert_eq!((reply.status, reply.header("content-length")), (200, Some("5")));
        client.ready().await.unwrap();
        let reply = Reply::of(client.send_request(get("/")).await.unwrap()).await;
        assert_eq!((reply.status, reply.header("etag")), (304, Some("\"a\"")));
        client.ready().await.unwrap();
        assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 204);
    });
}

#[test]
fn an_answer_that_comes_before_the_whole_request_ends_it() {
    run(async {
        for http2 in [false, true] {
            let bed = Bed::new("a");
            let app = App::handling(&bed, http2, |request| {
                drop(request);
                Box::pin(async {
                    let mut response = Response::new(Body::full("too much"));
                    *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
                    response
                })
            })
            .await;
            let protocol = if http2 { PortProtocol::Http2 } else { PortProtocol::Http };
            let mesh = Mesh::near(bed, &app, protocol);
            let endless = Body::new(Endless::new(Duration::from_millis(1)));
            let request = Request::post(format!("http://{HOST}/")).body(endless).unwrap();
            let response = if http2 {
                mesh.http2().await.send_request(request).await
            } else {
                let (mut parts, body) = request.into_parts();
                parts.headers.insert("host", HOST.parse().unwrap());
                mesh.http1().await.send_request(Request::from_parts(parts, body)).await
            };
            assert_eq!(response.unwrap().status(), 413, "{http2}");
            mesh.bed.until("the metrics", |bed| bed.metrics().contains("response_code=\"413\"")).await;
        }
    });
}
