//! Payload is told from the rest however it is cut, and HTTP/2 that is not ours finds nothing missing.

use std::future::poll_fn;
use std::pin::pin;

use bytes::Bytes;
use h2::RecvStream;
use http::{Method, Request, Response};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_identity::testing::TestCa;

use super::demux::{Batch, Demux, Role};
use super::frames::*;
use super::*;
use crate::hbone::client::flushed;
use crate::hbone::{ACCEPTED_STREAMS, MAX_FRAME, STREAM_WINDOW};
use crate::testbed::{connected, identity, pattern, run};
use crate::tls;

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let head = Head { length: body.len(), kind, flags, stream };
    [head.encode().as_slice(), body].concat()
}

fn padded(stream: u32, body: &[u8], padding: u8) -> Vec<u8> {
    let body = [&[padding], body, vec![0; padding.into()].as_slice()].concat();
    frame(DATA, PADDED, stream, &body)
}

fn server() -> Demux {
    Demux::new(Role::Server, 64 * STREAM_WINDOW)
}

/// Feeds what a peer sends in pieces of the given lengths, over and over.
fn feed(demux: &mut Demux, sent: &[u8], pieces: &[usize]) -> io::Result<()> {
    let (mut rest, mut lengths) = (sent, pieces.iter().cycle());
    while !rest.is_empty() {
        let mut batch = Batch::default();
        // Several pieces come with one read.
        for _ in 0..3 {
            let (piece, later) =
                rest.split_at(lengths.next().map_or(rest.len(), |length| rest.len().min(*length)));
            demux.take(piece, &mut batch)?;
            rest = later;
        }
        demux.deliver(&mut batch);
    }
    Ok(())
}

fn control(demux: &mut Demux) -> Vec<u8> {
    let control = demux.control().to_vec();
    demux.forget_control(control.len());
    control
}

#[derive(Debug, Clone)]
enum Sent {
    Data(usize, Vec<u8>),
    Padded(usize, Vec<u8>, u8),
    Window(usize, u32),
    Settings,
    Ping,
    Unknown(u8, Vec<u8>),
}

fn sent() -> impl Strategy<Value = Sent> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..60);
    prop_oneof![
        4 => (0usize..3, bytes()).prop_map(|(lane, bytes)| Sent::Data(lane, bytes)),
        1 => (0usize..3, bytes(), any::<u8>()).prop_map(|(lane, bytes, padding)| Sent::Padded(lane, bytes, padding)),
        1 => (0usize..4, 1u32..1000).prop_map(|(lane, increment)| Sent::Window(lane, increment)),
        1 => Just(Sent::Settings),
        1 => Just(Sent::Ping),
        1 => (10u8.., bytes()).prop_map(|(kind, bytes)| Sent::Unknown(kind, bytes)),
    ]
}

const STREAMS_OF_TEST: [u32; 3] = [1, 3, 5];

proptest! {
    /// HTTP/2 sees everything but payload, each lane sees its own, and where the pieces end makes no difference.
    #[test]
    fn payload_goes_to_its_lane_and_the_rest_to_http2(
        frames in prop::collection::vec(sent(), 0..40),
        pieces in prop::collection::vec(1usize..40, 1..8),
    ) {
        let mut demux = server();
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        let mut payload = [const { Vec::new() }; 3];
        for stream in STREAMS_OF_TEST {
            let headers = frame(HEADERS, END_HEADERS, stream, b"block");
            wire.extend_from_slice(&headers);
            expected.extend_from_slice(&headers);
        }
        for sent in frames {
            let (bytes, shown) = match sent {
                Sent::Data(lane, bytes) => {
                    payload[lane].extend_from_slice(&bytes);
                    (frame(DATA, 0, STREAMS_OF_TEST[lane], &bytes), false)
                }
                Sent::Padded(lane, bytes, padding) => {
                    payload[lane].extend_from_slice(&bytes);
                    (padded(STREAMS_OF_TEST[lane], &bytes, padding), false)
                }
                Sent::Window(lane, increment) => {
                    let stream = STREAMS_OF_TEST.get(lane).copied().unwrap_or(0);
                    (window_update(stream, increment).to_vec(), false)
                }
                Sent::Settings => (frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]), true),
                Sent::Ping => (frame(6, 0, 0, &[7; 8]), true),
                Sent::Unknown(kind, bytes) => (frame(kind, 0xff, 1, &bytes), true),
            };
            if shown {
                expected.extend_from_slice(&bytes);
            }
            wire.extend_from_slice(&bytes);
        }
        for stream in STREAMS_OF_TEST {
            wire.extend_from_slice(&frame(DATA, END_STREAM, stream, b"last"));
            expected.extend_from_slice(&frame(DATA, END_STREAM, stream, b""));
        }
        feed(&mut demux, &wire, &pieces).unwrap();
        prop_assert_eq!(control(&mut demux), expected);
        for (stream, mut payload) in STREAMS_OF_TEST.into_iter().zip(payload) {
            payload.extend_from_slice(b"last");
            let lane = demux.lanes[&stream].clone();
            prop_assert!(lane.has_ended());
            prop_assert_eq!(lane.received(), payload);
        }
    }

    /// Nothing that a peer may send breaks anything but its own tunnel.
    #[test]
    fn any_bytes_have_an_answer(wire in prop::collection::vec(any::<u8>(), 0..300), begun: bool) {
        let mut demux = server();
        if begun {
            feed(&mut demux, &frame(HEADERS, END_HEADERS, 1, b""), &[100]).unwrap();
        }
        let _ = feed(&mut demux, &wire, &[7]);
        control(&mut demux);
    }
}

/// What becomes of frames on a stream that is open.
fn after_headers(frames: &[Vec<u8>]) -> io::Result<Demux> {
    let mut demux = server();
    feed(&mut demux, &frame(HEADERS, END_HEADERS, 1, b""), &[100])?;
    control(&mut demux);
    feed(&mut demux, &frames.concat(), &[1 << 20])?;
    Ok(demux)
}

#[test]
fn peers_that_break_flow_control_lose_their_tunnel() {
    let mega = vec![0; MAX_FRAME as usize];
    let too_much = [frame(DATA, 0, 1, &mega), frame(DATA, 0, 1, b"x")];
    let one_more = frame(DATA, 0, 1, &[mega.as_slice(), &[0]].concat());
    let widest = window_update(1, (1 << 31) - 1).to_vec();
    let widest_of_all = window_update(0, (1 << 31) - 1).to_vec();
    let wrong: [&[Vec<u8>]; 6] = [
        &too_much,
        &[one_more],
        &[widest.clone(), widest],
        &[widest_of_all.clone(), widest_of_all],
        &[frame(DATA, PADDED, 1, &[9, 0])],
        &[frame(DATA, PADDED, 1, &[])],
    ];
    for frames in wrong {
        assert!(after_headers(frames).is_err());
    }
    let mut streams = server();
    let many: Vec<_> =
        (0..5 * ACCEPTED_STREAMS).map(|at| frame(HEADERS, END_HEADERS, 2 * at + 1, b"")).collect();
    assert!(feed(&mut streams, &many.concat(), &[100]).is_err());
    let settings = vec![0; 6000];
    assert!(after_headers(&[frame(SETTINGS, 0, 0, &settings)]).is_err());
}

/// HTTP/2 takes that for a mistake of the peer's, and ends the whole tunnel after a thousand of them.
#[test]
fn what_was_on_its_way_when_its_stream_ended_is_dropped() {
    let mut demux = after_headers(&[]).unwrap();
    demux.lanes.remove(&1);
    let mega = frame(DATA, 0, 1, &vec![0; MAX_FRAME as usize]);
    for _ in 0..70 {
        // More than the tunnel's window in all: it is given back.
        feed(&mut demux, &mega, &[1 << 20]).unwrap();
    }
    let last = [padded(1, b"last", 9), frame(DATA, END_STREAM, 1, b""), frame(6, 0, 0, &[7; 8])];
    feed(&mut demux, &last.concat(), &[3]).unwrap();
    assert_eq!(control(&mut demux), frame(6, 0, 0, &[7; 8]));
    assert_eq!(demux.due.iter().map(|(stream, _)| stream).max(), Some(&0));
}

#[test]
fn streams_that_http2_answers_by_itself_leave_nothing() {
    let mut demux = server();
    for (at, (kind, flags)) in
        (0..5 * ACCEPTED_STREAMS).zip([(HEADERS, END_STREAM), (RST_STREAM, 0)].repeat(1000))
    {
        let stream = 2 * at + 1;
        let sent = [frame(HEADERS, END_HEADERS, stream, b""), frame(DATA, 0, stream, &[0; 100_000])];
        feed(&mut demux, &sent.concat(), &[1 << 20]).unwrap();
        control(&mut demux);
        written(&mut demux, Head { length: 4, kind, flags, stream });
        assert!(demux.lanes.is_empty());
    }
}

#[test]
fn what_is_not_a_lanes_is_for_http2_to_judge() {
    for odd in [
        frame(DATA, 0, 3, b"of a stream that is idle"),
        frame(WINDOW_UPDATE, 0, 1, &[0; 4]),
        frame(WINDOW_UPDATE, 0, 1, &[0; 3]),
        frame(SETTINGS, ACK, 0, b""),
        frame(RST_STREAM, 0, 1, &[0; 4]),
    ] {
        let mut demux = after_headers(std::slice::from_ref(&odd)).unwrap();
        assert_eq!(control(&mut demux), odd);
    }
    // Payload between HEADERS and CONTINUATION, and after the end.
    let between = [frame(HEADERS, 0, 3, b""), frame(DATA, 0, 1, b"x")];
    assert_eq!(control(&mut after_headers(&between).unwrap()), between.concat());
    let mut demux = after_headers(&[frame(DATA, END_STREAM, 1, b"x"), frame(DATA, 0, 1, b"y")]).unwrap();
    assert_eq!(control(&mut demux), [frame(DATA, END_STREAM, 1, b""), frame(DATA, 0, 1, b"y")].concat());
}

#[test]
fn settings_widen_and_narrow_what_lanes_may_send() {
    let narrow = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]);
    let demux = after_headers(&[window_update(1, 100).to_vec(), narrow]).unwrap();
    assert_eq!(demux.lanes[&1].window.get(), 110);
    let mut demux = demux;
    let frames = frame(SETTINGS, 0, 0, &[0, 5, 0, 1, 0, 0, 0, 4, 0, 0, 1, 0]);
    feed(&mut demux, &frames, &[5]).unwrap();
    assert_eq!((demux.lanes[&1].window.get(), demux.max_frame), (356, 65_536));
    assert_eq!(demux.lane(7).window.get(), 256);
}

/// The two ends of a connection with TLS.
async fn secured() -> (TlsStream, TlsStream) {
    let ca = TestCa::new();
    let (dialled, accepted) = connected().await;
    let client = ca.hbone(&identity("client")).client(&identity("server"));
    let server = ca.hbone(&identity("server")).server();
    let peer = "10.0.0.1".parse().unwrap();
    let (client, server) = tokio::join!(tls::connect(dialled, client, peer), tls::accept(accepted, server));
    (client.unwrap().stream, server.unwrap().stream)
}

#[test]
fn crumbs_are_not_written_one_by_one() {
    run(async {
        let (mut client, server) = secured().await;
        let (mut conduit, lanes) = super::server(server);
        let headers = [1, 3].map(|stream| frame(HEADERS, END_HEADERS, stream, b"")).concat();
        client.write_all(&[&[0; PREFACE], headers.as_slice()].concat()).await.unwrap();
        client.flush().await.unwrap();
        let mut seen = [0; PREFACE + 2 * HEAD];
        conduit.read_exact(&mut seen).await.unwrap();
        let mut sockets = Vec::new();
        for stream in [1, 3] {
            let (ours, theirs) = connected().await;
            let lane = lanes.own(stream);
            let (read, write) = ours.into_split();
            lane.set_sink(write);
            lane.go_direct();
            sockets.push((lane, read, theirs));
        }
        let crumbs = [frame(DATA, 0, 1, b"x"), frame(DATA, 0, 3, b"y")].concat().repeat(2000);
        client.write_all(&[crumbs, frame(6, 0, 0, &[7; 8])].concat()).await.unwrap();
        client.flush().await.unwrap();
        // HTTP/2 sees the PING when everything before it was taken.
        conduit.read_exact(&mut [0; HEAD + 8]).await.unwrap();
        let written: u64 = sockets.iter().map(|(lane, ..)| lane.delivered().unwrap()).sum();
        let kept: usize = sockets.iter().map(|(lane, ..)| lane.take().len()).sum();
        assert_eq!(written + kept as u64, 4000);
        assert!((1..=512).contains(&written), "{written} were written alone");
    });
}

/// Keeps a tunnel going until it ends.
fn drive<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T> + 'static, lanes: Lanes) {
    tokio::task::spawn_local(poll_fn(move |cx| {
        let polled = poll(cx).map(drop);
        let _ = lanes.flush(cx);
        polled
    }));
}

/// Reads all payload that HTTP/2 itself was given, as a peer does that is not ours.
async fn read_all(mut stream: RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.unwrap();
        all.extend_from_slice(&chunk);
        stream.flow_control().release_capacity(chunk.len()).unwrap();
    }
    all
}

async fn write_all(send: &mut h2::SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(bytes.split_to(room.min(bytes.len())), false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
}

/// Several windows' worth.
const MUCH: usize = 5 * STREAM_WINDOW as usize + 4711;

#[test]
fn a_client_that_is_not_ours_sends_and_receives_much() {
    run(async {
        let (client, server) = secured().await;
        let (conduit, lanes) = super::server(server);
        tokio::task::spawn_local(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(ACCEPTED_WINDOW);
            let handshake = pin!(builder.max_frame_size(MAX_FRAME).handshake::<_, Bytes>(conduit));
            let mut connection = flushed(handshake, &lanes).await.unwrap();
            let own = lanes.clone();
            drive(
                move |cx| {
                    while let Poll::Ready(accepted) = connection.poll_accept(cx) {
                        let Some(Ok((request, mut respond))) = accepted else { return Poll::Ready(()) };
                        let lane = own.lane(request.body().stream_id());
                        let send = respond.send_response(Response::new(()), false).unwrap();
                        let stream = crate::relay::H2Stream { send, recv: request.into_body(), lane };
                        tokio::task::spawn_local(async move {
                            let mut stream = crate::http::stream::TunnelIo::new(stream);
                            let mut all = Vec::new();
                            stream.read_to_end(&mut all).await.unwrap();
                            stream.write_all(&all).await.unwrap();
                            stream.shutdown().await.unwrap();
                        });
                    }
                    Poll::Pending
                },
                lanes,
            );
        });
        let (mut send, connection) = h2::client::handshake(client).await.unwrap();
        tokio::task::spawn_local(connection);
        let sent = pattern(MUCH);
        for _ in 0..3 {
            send = send.ready().await.unwrap();
            let request = Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(()).unwrap();
            let (response, mut stream) = send.send_request(request, false).unwrap();
            write_all(&mut stream, sent.clone().into()).await;
            assert!(read_all(response.await.unwrap().into_body()).await == sent);
        }
    });
}

#[test]
fn a_server_that_is_not_ours_sends_and_receives_much() {
    run(async {
        let (client, server) = secured().await;
        tokio::task::spawn_local(async move {
            // With windows and frames as small as HTTP/2 begins with.
            let mut connection = h2::server::handshake(server).await.unwrap();
            while let Some(accepted) = connection.accept().await {
                let Ok((request, mut respond)) = accepted else { return };
                tokio::task::spawn_local(async move {
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    let all = read_all(request.into_body()).await;
                    write_all(&mut send, all.into()).await;
                });
            }
        });
        let (conduit, lanes) = super::client(client);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW);
        builder.initial_connection_window_size(connection_window(STREAMS as u32));
        let handshake = pin!(builder.max_frame_size(MAX_FRAME).handshake::<_, Bytes>(conduit));
        let (mut send, connection) = flushed(handshake, &lanes).await.unwrap();
        let mut connection = Box::pin(connection);
        drive(move |cx| connection.as_mut().poll(cx), lanes.clone());
        let sent = pattern(MUCH);
        for _ in 0..3 {
            send = send.ready().await.unwrap();
            let request = Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(()).unwrap();
            let (response, stream) = send.send_request(request, false).unwrap();
            let lane = lanes.opened(response.stream_id());
            let recv = response.await.unwrap().into_body();
            let mut io =
                crate::http::stream::TunnelIo::new(crate::relay::H2Stream { send: stream, recv, lane });
            io.write_all(&sent).await.unwrap();
            io.shutdown().await.unwrap();
            let mut heard = Vec::new();
            io.read_to_end(&mut heard).await.unwrap();
            assert!(heard == sent);
        }
    });
}
