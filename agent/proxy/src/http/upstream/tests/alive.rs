//! Signs of life that a policy asks for (D-12, D-13).

use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_core::resource::destination_rule::TcpKeepalive;

use super::super::SendErrorKind;
use super::*;
use crate::net;
use crate::testbed::{connected, run};

#[test]
fn the_kernel_probes_as_the_policy_says_and_else_as_always() {
    run(async {
        let (stream, _other) = connected().await;
        net::configure(&stream).unwrap();
        let socket = SockRef::from(&stream);
        let read = || {
            let seconds = |time: std::io::Result<Duration>| time.unwrap().as_secs();
            let times = [socket.tcp_keepalive_time(), socket.tcp_keepalive_interval()].map(seconds);
            (times, socket.tcp_keepalive_retries().unwrap())
        };
        let usual = read();
        net::keep_alive(&stream, None);
        assert_eq!(read(), usual);
        let time = Some(Duration::from_secs(30));
        net::keep_alive(&stream, Some(TcpKeepalive { time, ..TcpKeepalive::default() }));
        assert_eq!(read(), ([30, usual.0[1]], usual.1));
        let all = TcpKeepalive { probes: Some(3), time, interval: Some(Duration::from_secs(5)) };
        net::keep_alive(&stream, Some(all));
        assert_eq!((read(), socket.keepalive().unwrap()), (([30, 5], 3), true));
    });
}

/// Reads an HTTP/2 client's frames and counts its PINGs, none of which is answered.
async fn silent(listener: TcpListener, pings: Rc<Cell<usize>>) {
    let mut stream = listener.accept().await.unwrap().0;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    // SETTINGS, as every connection begins.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let [high, middle, low, kind, flags, ..] = head;
        let mut payload = vec![0; usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)];
        if stream.read_exact(&mut payload).await.is_err() {
            return;
        }
        pings.set(pings.get() + usize::from(kind == 6 && flags == 0));
    }
}

#[test]
fn an_http2_server_that_answers_no_ping_is_given_up() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http2);
        let listener = TcpListener::bind((client.bed.other_ip, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let pings = Rc::<Cell<usize>>::default();
        let server = tokio::task::spawn_local(silent(listener, pings.clone()));
        // Long enough for the request to leave first on any machine.
        let often = Duration::from_secs(1);
        let pool = ConnectionPool { http2_keep_alive: Some((often, often)), ..ConnectionPool::default() };
        let error = client.get(&cluster(&[addr], limited(pool))).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Reset, "{error:?}");
        server.await.unwrap();
        assert!(pings.get() > 0);
    });
}
