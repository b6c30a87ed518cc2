//! Messages byte by byte, and connections over a pipe.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::join;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

use super::super::body::{Body, BodyError};
use super::client::{Answer, Client, Failed, Own, connect};
use super::decoder::{Decoded, Decoder, Framing};
use super::server::{Ended, serve};
use super::*;

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.unwrap().block_on(test)
}

/// Takes a body out of bytes that come in pieces: what it was, and what is left. An error is where it is none.
fn decoded(framing: Framing, bytes: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), Broken> {
    let (mut decoder, mut ahead) = (Decoder::from(framing), BytesMut::new());
    let (mut body, mut end) = (Vec::new(), HeaderMap::new());
    let mut pieces = bytes.chunks(step.max(1));
    while !decoder.is_over() {
        match decoder.decode(&mut ahead)? {
            Decoded::Data(bytes) => body.extend_from_slice(&bytes),
            Decoded::Trailers(trailers) => end = trailers,
            Decoded::End => break,
            Decoded::More => match pieces.next() {
                Some(piece) => ahead.extend_from_slice(piece),
                None if decoder.closed() => break,
                None => return Err(Broken::Incomplete),
            },
        }
    }
    let rest = pieces.flatten().copied();
    Ok((body, end, ahead.iter().copied().chain(rest).collect()))
}

#[test]
fn bodies_end_where_their_framing_says_however_they_are_cut() {
    let chunked = b"5;x=\"y\"\r\nhello\r\n0000000a \r\n, world!!!\r\n0\r\nX-End: 1\r\n\r\nGET /";
    for step in [1, 2, 3, 7, 100] {
        let (body, trailers, rest) = decoded(Framing::Chunked, chunked, step).unwrap();
        assert_eq!((&body[..], &rest[..]), (&b"hello, world!!!"[..], &b"GET /"[..]), "{step}");
        assert_eq!(trailers["x-end"], "1");
        let (body, _, rest) = decoded(Framing::Length(5), b"helloGET /", step).unwrap();
        assert_eq!((&body[..], &rest[..]), (&b"hello"[..], &b"GET /"[..]), "{step}");
        let (body, _, rest) = decoded(Framing::UntilClose, b"hello", step).unwrap();
        assert_eq!((&body[..], rest.len()), (&b"hello"[..], 0), "{step}");
        assert!(decoded(Framing::Length(6), b"hello", step).is_err());
        assert!(decoded(Framing::Chunked, b"5\r\nhello\r\n", step).is_err());
    }
}

/// What one server takes for a chunk and another does not is how requests are smuggled.
#[test]
fn chunks_that_could_be_read_in_two_ways_are_refused() {
    for bytes in [
        &b"5\nhello\r\n0\r\n\r\n"[..],
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 5\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"10000000000000000\r\nhello\r\n0\r\n\r\n",
        b"0\r\nno field\r\n\r\n",
        b"0\r\n\nGET / HTTP/1.1\r\n\r\n",
        b"0\r\na: b\n\r\n",
        b"0\r\na: b\r\n\n",
        b"nonsense\r\n",
    ] {
        for step in [1, 2, 5, 100] {
            let broken = decoded(Framing::Chunked, bytes, step);
            assert!(
                matches!(broken, Err(Broken::Malformed(_))),
                "{step} {:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
    let endless = [b"5;".to_vec(), vec![b'x'; 5000]].concat();
    assert!(matches!(decoded(Framing::Chunked, &endless, 64), Err(Broken::Malformed(_))));
    let trailers = [b"0\r\n".to_vec(), b"a: b\r\n".repeat(4000)].concat();
    assert!(matches!(decoded(Framing::Chunked, &trailers, 64), Err(Broken::Malformed(_))));
}

#[test]
fn what_a_head_says_about_its_body_is_unambiguous() {
    let framing = |fields: &str| {
        let mut ahead = BytesMut::from(format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n").as_bytes());
        let asked = head::request(&mut ahead, &mut HeaderMap::new()).map_err(|malformed| malformed.status)?;
        let asked = asked.unwrap();
        Ok((asked.framing, asked.smell, asked.keep_alive))
    };
    let proper = [
        ("", None, None, true),
        ("content-length: 0\r\n", None, None, true),
        ("content-length: 5\r\nContent-Length: 5\r\n", Some(Framing::Length(5)), None, true),
        ("transfer-encoding: Chunked\r\n", Some(Framing::Chunked), None, true),
        ("transfer-encoding: chunked\r\nconnection: x, Close\r\n", Some(Framing::Chunked), None, false),
        (
            "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
            Some(Framing::Chunked),
            Some(Smell::TwoLengths),
            false,
        ),
    ];
    for (fields, body, smell, keep_alive) in proper {
        assert_eq!(framing(fields), Ok((body, smell, keep_alive)), "{fields}");
    }
    for fields in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5, 5\r\n",
        "content-length: +5\r\n",
        "content-length: \r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "content-length : 5\r\n",
        "a b: c\r\n",
        " folded: x\r\n",
    ] {
        assert_eq!(framing(fields), Err(400), "{fields}");
    }
}

#[test]
fn a_head_that_comes_in_pieces_is_found_as_soon_as_it_is_whole() {
    for end in ["\r\n\r\n", "\n\n", "\n\r\n"] {
        let head = format!("GET / HTTP/1.1\r\nhost: a{end}");
        for cut in 1..head.len() {
            let mut ahead = BytesMut::from(&head.as_bytes()[..cut]);
            assert!(head::request(&mut ahead, &mut HeaderMap::new()).unwrap().is_none(), "{cut}");
            ahead.extend_from_slice(&head.as_bytes()[cut..]);
            assert!(head::may_be_complete(&ahead, cut), "{cut} {end:?}");
            assert!(head::request(&mut ahead, &mut HeaderMap::new()).unwrap().is_some(), "{cut}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_and_cuts_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
        let whole = decoded(Framing::Chunked, &bytes, 1000).ok();
        prop_assert_eq!(decoded(Framing::Chunked, &bytes, step).ok(), whole);
        let _ = head::request(&mut BytesMut::from(&bytes[..]), &mut HeaderMap::new());
        let _ = head::answer(&mut BytesMut::from(&bytes[..]), false, &mut HeaderMap::new());
    }
}

/// What a server that answers with what it was asked writes to a client that sends these bytes and then waits.
async fn conversation(sent: &[u8]) -> (String, Ended<DuplexStream>) {
    let (mut client, io) = duplex(64 * 1024);
    let progress = Rc::<Progress>::default();
    let serving = serve(io, &progress, |request: Request<Body>, smell| async move {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes());
        let text = match body {
            Ok(body) => format!("{path} {} {smell:?}", String::from_utf8_lossy(&body)),
            Err(error) => format!("{path} {error}"),
        };
        Ok::<_, Infallible>(Response::new(Body::full(text)))
    });
    let asking = async {
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let (ended, answer) = join(
        async {
            match serving.await {
                // Its end is what the other side waits for.
                Ended::Unread(io) | Ended::Malformed(_, io) => {
                    drop(io);
                    Ended::Over
                }
                ended => ended,
            }
        },
        asking,
    )
    .await;
    (answer, ended)
}

fn bodies(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| answer.rsplit("\r\n").next().unwrap()).collect()
}

#[test]
fn requests_that_come_at_once_are_answered_one_after_the_other() {
    run(async {
        let post = "POST /b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let sent = format!(
            "\r\nGET /a HTTP/1.1\r\n\r\n{post}POST /c HTTP/1.1\r\ncontent-length: 2\r\n\r\nhiGET /d HTTP/1.1\r\nconnection: close\r\n\r\nGET /never HTTP/1.1\r\n\r\n"
        );
        let (answers, _) = conversation(sent.as_bytes()).await;
        assert_eq!(bodies(&answers), ["/a  None", "/b abc None", "/c hi None", "/d  None"], "{answers}");
        assert_eq!(answers.matches("connection: close").count(), 1);
        assert_eq!(answers.matches("\r\ndate: ").count(), 4);
    });
}

#[test]
fn a_request_that_has_come_is_answered_before_the_connection_ends() {
    run(async {
        for comes_late in [false, true] {
            let (mut client, io) = duplex(1024);
            let progress = Rc::<Progress>::default();
            progress.closing.set(true);
            let answering = |_, _| async { Ok::<_, Infallible>(Response::new(Body::full("here"))) };
            let serving = async { drop(serve(io, &progress, answering).await) };
            let asking = async {
                if comes_late {
                    // While the other side looks for it.
                    tokio::task::yield_now().await;
                }
                client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                answer
            };
            let (answer, ()) = join(asking, serving).await;
            assert!(answer.contains("connection: close") && answer.ends_with("here"), "{answer}");
        }
    });
}

#[test]
fn what_is_no_request_is_answered_and_ends_the_connection() {
    run(async {
        for (sent, status) in [
            (&b"GET / HTTP/1.1\r\nbad field\r\n\r\n"[..], "400"),
            (b"GET / HTTP/9.9\r\n\r\n", "400"),
            (b"\x16\x03\x01\x02\x00\x01", "400"),
        ] {
            let (answer, _) = conversation(sent).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
            assert!(answer.contains("connection: close\r\n"));
        }
        let (answer, _) = conversation(b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
        assert!(answer.contains("/x the sender of the body broke off"), "{answer}");
        assert!(answer.contains("connection: close\r\n") || answer.ends_with("no number"), "{answer}");
    });
}

/// Who reads the body after its answer has begun cannot be told 100 any more.
#[test]
fn nothing_is_said_in_the_midst_of_an_answer() {
    run(async {
        let (mut client, io) = duplex(64 * 1024);
        let progress = Rc::<Progress>::default();
        let echo =
            |request: Request<Body>, _| async { Ok::<_, Infallible>(Response::new(request.into_body())) };
        let asking = async {
            let head =
                b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n";
            client.write_all(head).await.unwrap();
            let answer = read_head(&mut client).await;
            client.write_all(b"hi").await.unwrap();
            let mut body = String::new();
            client.read_to_string(&mut body).await.unwrap();
            (answer, body)
        };
        let (_, (answer, body)) = join(async { drop(serve(io, &progress, echo).await) }, asking).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains(" 100 "), "{answer}");
        assert_eq!(body, "hi");
    });
}

/// A connection to a server that the test plays.
fn dialled() -> (Client<DuplexStream>, Own<DuplexStream>, DuplexStream) {
    let (io, server) = duplex(64 * 1024);
    let (client, own) = connect(io);
    (client, own, server)
}

async fn read_head(server: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(server.read_buf(&mut head).await.unwrap() > 0);
    }
    String::from_utf8(head).unwrap()
}

fn get() -> Request<Body> {
    Request::get("/x?y").header("host", "a").body(Body::empty()).unwrap()
}

async fn exchange(
    client: &Client<DuplexStream>,
    server: &mut DuplexStream,
    request: Request<Body>,
    answer: &[u8],
) -> (String, Result<Answer<DuplexStream>, Failed>) {
    let serving = async {
        let head = read_head(server).await;
        server.write_all(answer).await.unwrap();
        head
    };
    join(serving, client.send(request.into())).await
}

#[test]
fn answers_are_read_to_their_end_and_the_connection_is_used_again() {
    run(async {
        let (client, _own, mut server) = dialled();
        for (answer, body) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..], "hello"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", ""),
            (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", ""),
        ] {
            let (head, answered) = exchange(&client, &mut server, get(), answer).await;
            assert_eq!(head, "GET /x?y HTTP/1.1\r\nhost: a\r\n\r\n");
            let response = answered.unwrap().response;
            assert_eq!(response.headers().get("link"), None, "that was of another answer");
            let read = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(read, body);
            assert!(client.is_ready());
        }
        let until_close = b"HTTP/1.1 200 OK\r\n\r\nhel";
        let (_, answered) = exchange(&client, &mut server, get(), until_close).await;
        server.write_all(b"lo").await.unwrap();
        drop(server);
        let read = answered.unwrap().response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&read[..], b"hello");
        assert!(!client.is_ready());
    });
}

#[test]
fn a_server_does_not_announce_its_answer_for_ever() {
    run(async {
        let (client, _own, mut server) = dialled();
        let early = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
        let (_, answered) = exchange(&client, &mut server, get(), &early).await;
        assert!(matches!(answered, Err(Failed::Reset(_))));
        assert!(client.is_closed());
    });
}

#[test]
fn a_connection_whose_answer_is_not_over_or_not_alone_takes_no_other_request() {
    run(async {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                [..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        ] {
            let (client, _own, mut server) = dialled();
            let (_, answered) = exchange(&client, &mut server, get(), answer).await;
            answered.unwrap();
            client.rest();
            assert!(client.is_closed(), "{:?}", String::from_utf8_lossy(answer));
        }
    });
}

#[test]
fn answers_that_could_be_read_in_two_ways_are_refused() {
    run(async {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: deflate\r\n\r\nx",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"nonsense\r\n\r\n",
        ] {
            let (client, _own, mut server) = dialled();
            let (_, answered) = exchange(&client, &mut server, get(), answer).await;
            assert!(matches!(answered, Err(Failed::Reset(_))), "{:?}", String::from_utf8_lossy(answer));
            assert!(client.is_closed());
        }
    });
}

#[test]
fn who_speaks_unasked_or_leaves_is_given_up_and_the_request_given_back() {
    run(async {
        for unasked in [&b"HTTP/1.1 408 Request Timeout\r\n\r\n"[..], b""] {
            let (client, mut own, mut server) = dialled();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            exchange(&client, &mut server, get(), answer).await.1.unwrap();
            server.write_all(unasked).await.unwrap();
            drop(server);
            let Err(Failed::Unsent(request)) = client.send(get().into()).await else { panic!("it was sent") };
            assert_eq!(request.parts.uri, "/x?y");
            std::future::poll_fn(|cx| own.poll(cx)).await;
        }
        // Left alone, its own task finds out.
        let (client, mut own, server) = dialled();
        let mut over = pin!(std::future::poll_fn(|cx| own.poll(cx)));
        assert!(over.as_mut().now_or_never().is_none());
        client.rest();
        drop(server);
        over.await;
        assert!(client.is_closed());
    });
}

#[test]
fn a_body_goes_on_while_its_answer_is_read() {
    run(async {
        let (client, _own, server) = dialled();
        let (mut from, mut to) = tokio::io::split(server);
        let chunks = (0..100).map(|_| Ok::<_, BodyError>(Frame::data(Bytes::from(vec![7; 10_000]))));
        let body = Body::new(StreamBody::new(futures_util::stream::iter(chunks)));
        let request = Request::post("/").header("Transfer-Encoding", "chunked").body(body).unwrap();
        tokio::task::spawn_local(async move {
            to.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        });
        let Answer { response, rest } = client.send(request.into()).await.unwrap();
        tokio::task::spawn_local(rest.expect("a megabyte does not fit into the pipe").run());
        let mut echoed = response.into_body();
        let mut bytes = 0;
        while bytes < 1_000_000 {
            bytes += echoed.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
    });
}

/// A connection that can be read when it cannot be written any more.
struct Deaf(DuplexStream, Arc<AtomicBool>);

impl AsyncRead for Deaf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.1.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_server_that_takes_no_more_is_heard_to_its_end() {
    run(async {
        let (io, mut server) = duplex(64 * 1024);
        let deaf = Arc::<AtomicBool>::default();
        let (client, _own) = connect(Deaf(io, deaf.clone()));
        let request = Request::post("/").body(Body::full(vec![7; 1 << 20])).unwrap();
        let serving = async {
            assert!(server.read(&mut [0; 100]).await.unwrap() > 0);
            server.write_all(b"HTTP/1.1 413 Too Much\r\ncontent-length: 5\r\n\r\n").await.unwrap();
        };
        let (_, answered) = join(serving, client.send(request.into())).await;
        let Answer { response, rest } = answered.unwrap();
        deaf.store(true, Ordering::Relaxed);
        rest.expect("a megabyte does not fit into the pipe").run().await;
        server.write_all(b"sorry").await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], b"sorry");
        client.rest();
        assert!(client.is_closed(), "half a request is on it");
    });
}

#[test]
fn a_body_that_breaks_off_is_never_taken_for_the_whole() {
    run(async {
        for length in [None, Some("10")] {
            let (client, _own, mut server) = dialled();
            let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Err(BodyError::Ended("on purpose"))];
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            let mut request = Request::post("/").body(body).unwrap();
            length.map(|length| request.headers_mut().insert("content-length", length.parse().unwrap()));
            assert!(matches!(client.send(request.into()).await, Err(Failed::Body(_))));
            let mut seen = String::new();
            server.read_to_string(&mut seen).await.unwrap();
            assert!(!seen.contains("0\r\n\r\n"), "{seen}");
        }
    });
}

#[test]
fn names_keep_their_case_also_where_there_are_several_of_one() {
    run(async {
        let (client, _own, mut server) = dialled();
        let sent = "HTTP/1.1 200 Fine\r\nX-One: 1\r\nsEt-cOOkie: a\r\nset-cookie: b\r\nSet-Cookie: c\r\nContent-Length: 0\r\n\r\n";
        let (_, answered) = exchange(&client, &mut server, get(), sent.as_bytes()).await;
        let (mut parts, body) = answered.unwrap().response.into_parts();
        parts.headers.insert("x-two", "2".parse().unwrap());
        let asked = Request::get("/").body(()).unwrap().into_parts().0;
        let mut out = Vec::new();
        write::answer(&parts, &body, &mut write::Asker::new(&asked, true), &mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(out.starts_with("HTTP/1.1 200 Fine\r\nX-One: 1\r\nsEt-cOOkie: a\r\n"), "{out}");
        for line in ["\r\nSet-Cookie: c\r\n", "\r\nContent-Length: 0\r\n", "\r\nx-two: 2\r\n"] {
            assert!(out.contains(line), "{out}");
        }
    });
}
