//! Our record layer against rustls' own, on real sockets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::buffers::SMALL;
use super::record::{ALERT, APPLICATION_DATA, HANDSHAKE, OVERHEAD};
use super::stream::MOST_UPDATES;
use super::{RecordError, TlsStream};

fn configs(extraction: bool) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rcgen::generate_simple_self_signed(vec!["peer.test".into()]).unwrap();
    let cert = CertificateDer::from(key.cert.der().to_vec());
    let private = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let versions = &[&rustls::version::TLS13];
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], private)
        .unwrap();
    server.send_tls13_tickets = 0;
    server.enable_secret_extraction = extraction;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = extraction;
    (Arc::new(server), Arc::new(client))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer.test").unwrap()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dialled, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

/// Both ends ours; the sockets stay reachable through `socket()`.
async fn pair() -> (TlsStream, TlsStream) {
    let (dialled, accepted) = sockets().await;
    let (server, client) = configs(true);
    let (client, server) =
        tokio::join!(TlsStream::connect(dialled, client, name()), TlsStream::accept(accepted, server));
    (client.unwrap(), server.unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect()
}

/// Sends `len` bytes from `a` to `b` and compares them.
async fn transfer(a: &mut (impl AsyncWrite + Unpin), b: &mut (impl AsyncRead + Unpin), len: usize) {
    let sent = pattern(len);
    let mut received = vec![0; len];
    let (write, read) = tokio::join!(
        async {
            a.write_all(&sent).await?;
            a.flush().await
        },
        b.read_exact(&mut received)
    );
    write.unwrap();
    read.unwrap();
    assert!(sent == received, "{len} bytes arrive as they were sent");
}

#[tokio::test]
async fn carries_data_to_and_from_rustls_on_either_side() {
    let (dialled, accepted) = sockets().await;
    let (server, client) = configs(true);
    let acceptor = tokio_rustls::TlsAcceptor::from(server.clone());
    let (ours, theirs) =
        tokio::join!(TlsStream::connect(dialled, client.clone(), name()), acceptor.accept(accepted));
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    for len in [1, 16 * 1024, 16 * 1024 + 1, 3_000_000] {
        transfer(&mut ours, &mut theirs, len).await;
        transfer(&mut theirs, &mut ours, len).await;
    }

    let (dialled, accepted) = sockets().await;
    let connector = tokio_rustls::TlsConnector::from(client);
    let (theirs, ours) =
        tokio::join!(connector.connect(name(), dialled), TlsStream::accept(accepted, server));
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    transfer(&mut ours, &mut theirs, 1_000_000).await;
    transfer(&mut theirs, &mut ours, 1_000_000).await;
}

#[tokio::test]
async fn obeys_and_announces_key_updates() {
    let (dialled, accepted) = sockets().await;
    let (server, client) = configs(true);
    let acceptor = tokio_rustls::TlsAcceptor::from(server);
    let (ours, theirs) = tokio::join!(TlsStream::connect(dialled, client, name()), acceptor.accept(accepted));
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    // rustls asks for an update in return, so both directions change keys.
    theirs.get_mut().1.refresh_traffic_keys().unwrap();
    transfer(&mut theirs, &mut ours, 100_000).await;
    transfer(&mut ours, &mut theirs, 100_000).await;
    ours.update_sealer().unwrap();
    transfer(&mut ours, &mut theirs, 100_000).await;
    transfer(&mut theirs, &mut ours, 100_000).await;
}

fn cause(error: &io::Error) -> RecordError {
    *error.get_ref().unwrap().downcast_ref::<RecordError>().unwrap()
}

/// Each update costs us the derivation of keys, for a few bytes of the peer's.
#[tokio::test]
async fn key_updates_are_obeyed_as_long_as_data_comes_with_them() {
    let (mut client, mut server) = pair().await;
    let bytes = vec![7; 1100];
    let mut received = vec![0; bytes.len()];
    for _ in 0..MOST_UPDATES + 8 {
        // One record for each byte.
        let write = async {
            for byte in bytes.chunks(1) {
                client.write_all(byte).await.unwrap();
            }
            client.flush().await.unwrap();
        };
        tokio::join!(write, async { server.read_exact(&mut received).await.unwrap() });
        client.update_sealer().unwrap();
    }
    for _ in 0..MOST_UPDATES {
        client.update_sealer().unwrap();
    }
    client.write_all(b"never").await.unwrap();
    client.flush().await.unwrap();
    let error = server.read(&mut received).await.unwrap_err();
    assert_eq!(cause(&error), RecordError::TooManyUpdates);
}

#[tokio::test]
async fn nothing_follows_a_key_update_in_its_record() {
    let (mut client, mut server) = pair().await;
    let updates = [24, 0, 0, 1, 0].repeat(2);
    let record = client.sealed_for_test(HANDSHAKE, &updates);
    assert_eq!(client.socket().try_write(&record).unwrap(), record.len());
    let error = server.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(cause(&error), RecordError::UnexpectedType(HANDSHAKE));
}

/// How often a task was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn records_without_data_are_read_in_turns() {
    let listener = TcpSocket::new_v4().unwrap();
    // All of them are to be there before any is read.
    listener.set_recv_buffer_size(200 * 1024).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let (dialled, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (server, client) = configs(true);
    let (client, server) = tokio::join!(
        TlsStream::connect(dialled.unwrap(), client, name()),
        TlsStream::accept(accepted.unwrap().0, server)
    );
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let mut records = Vec::new();
    while records.len() < 120 * 1024 {
        // user_canceled means nothing.
        records.extend(client.sealed_for_test(ALERT, &[1, 90]));
    }
    assert_eq!(client.socket().try_write(&records).unwrap(), records.len());
    let mut there = vec![0; records.len()];
    let all_there = async {
        while server.socket().peek(&mut there).await.unwrap() < records.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_there).await.unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    assert!(server.poll_fill(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1, "it goes on after others");
    assert!(server.poll_fill(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1, "nothing is left");
    transfer(&mut client, &mut server, 1000).await;
}

#[tokio::test]
async fn delivers_records_to_readers_with_little_room() {
    let (mut client, mut server) = pair().await;
    let sent = pattern(40_000);
    client.write_all(&sent).await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = Vec::new();
    let mut room = [0; 7];
    loop {
        match server.read(&mut room).await.unwrap() {
            0 => break,
            read => received.extend_from_slice(&room[..read]),
        }
    }
    assert!(sent == received);
}

#[tokio::test]
async fn tells_a_clean_end_from_a_cut() {
    let (mut client, mut server) = pair().await;
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);

    let (client, mut server) = pair().await;
    drop(client);
    let error = server.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

/// What the server makes of bytes that somebody slips into the stream behind the client's back.
async fn injected(bytes: &[u8]) -> RecordError {
    let (client, mut server) = pair().await;
    assert_eq!(client.socket().try_write(bytes).unwrap(), bytes.len());
    let error = server.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    *error.get_ref().unwrap().downcast_ref::<RecordError>().unwrap()
}

#[tokio::test]
async fn refuses_forged_and_malformed_records() {
    let mut forged = vec![23, 3, 3, 0, 40];
    forged.resize(45, 7);
    assert_eq!(injected(&forged).await, RecordError::Forged);
    assert_eq!(injected(&[23, 3, 3, 0, 16]).await, RecordError::Forged);
    assert_eq!(injected(&[23, 3, 3, 0xff, 0xff]).await, RecordError::TooLong(0xffff));
    assert_eq!(injected(&[22, 3, 3, 0, 40]).await, RecordError::UnexpectedType(22));
    assert_eq!(injected(b"GET / HTTP/1.1\r\n").await, RecordError::UnexpectedType(b'G'));
}

#[tokio::test]
async fn a_replayed_record_does_not_open_again() {
    let (mut client, mut server) = pair().await;
    let record = client.sealed_for_test(APPLICATION_DATA, b"once");
    for _ in 0..2 {
        assert_eq!(client.socket().try_write(&record).unwrap(), record.len());
    }
    let mut read = [0; 64];
    assert_eq!(server.read(&mut read[..4]).await.unwrap(), 4);
    let error = server.read(&mut read).await.unwrap_err();
    assert_eq!(error.get_ref().unwrap().downcast_ref::<RecordError>(), Some(&RecordError::Forged));
}

#[tokio::test]
async fn a_stalled_reader_bounds_what_waits() {
    let (mut client, server) = pair().await;
    let data = vec![7; 256 * 1024];
    let mut taken = 0;
    // The loop ends when the socket is full and the backlog has reached its bound.
    while let std::task::Poll::Ready(result) =
        futures_poll(|cx| std::pin::Pin::new(&mut client).poll_write(cx, &data)).await
    {
        taken += result.unwrap();
        assert!(taken < 256 << 20, "writes are never refused");
    }
    assert!(client.outgoing.len() < 1 << 20, "{} bytes wait", client.outgoing.len());
    drop(server);
}

async fn futures_poll<T>(
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<T>,
) -> std::task::Poll<T> {
    std::future::poll_fn(|cx| std::task::Poll::Ready(poll(cx))).await
}

#[tokio::test]
async fn quiet_connections_hold_no_buffers() {
    let (mut client, mut server) = pair().await;
    for len in [1, 200 * 1024, 1] {
        transfer(&mut client, &mut server, len).await;
        transfer(&mut server, &mut client, len).await;
    }
    // A large buffer waits for a while whether more of that comes.
    for _ in 0..64 {
        transfer(&mut client, &mut server, 1).await;
        transfer(&mut server, &mut client, 1).await;
    }
    for stream in [&mut client, &mut server] {
        assert!(futures_poll(|cx| stream.poll_fill(cx).map(drop)).await.is_pending());
        assert_eq!((stream.incoming.held(), stream.outgoing.held()), (0, 0));
    }
}

#[tokio::test]
async fn only_much_data_takes_large_buffers() {
    let (mut client, server) = pair().await;
    assert!(client.outgoing.held() <= SMALL && server.outgoing.held() <= SMALL);
    for _ in 0..64 {
        client.write_all(b"small").await.unwrap();
    }
    assert!(client.outgoing.held() <= SMALL, "{}", client.outgoing.held());
    assert_eq!(client.waiting(), 64 * (5 + OVERHEAD));
    client.write_all(&pattern(64 * 1024)).await.unwrap();
    assert!(client.outgoing.held() > SMALL);
}

#[tokio::test]
async fn handshake_failures_name_their_cause() {
    let (dialled, accepted) = sockets().await;
    let ((server, _), (_, stranger)) = (configs(true), configs(true));
    let (client, server) =
        tokio::join!(TlsStream::connect(dialled, stranger, name()), TlsStream::accept(accepted, server));
    let cause = |error: io::Error| error.into_inner().unwrap().to_string();
    let client = cause(client.err().unwrap());
    assert!(client.contains("invalid peer certificate"), "{client}");
    // The client's alert reaches the server.
    let server = cause(server.err().unwrap());
    assert!(server.contains("received fatal alert"), "{server}");
}
