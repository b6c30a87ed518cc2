//! For tests: the agent of another node, which ends no stream by itself.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use weft_tls::TlsStream;

use crate::hbone::PORT;
use crate::testbed::{Bed, identity};
use crate::tls;

/// A tunnel, as its server drives it.
type Driven = Connection<TlsStream, Bytes>;

/// It serves tunnels to the server pod, and in them HTTP/1.1 that is never closed.
pub(crate) struct Foreign {
    /// Requests take a permit before they are answered.
    pub(crate) gate: Rc<Semaphore>,
    shared: Rc<Shared>,
}

/// A tunnel, and the task that drives it.
type Driving = (Rc<Tunnel>, JoinHandle<Option<Driven>>);

#[derive(Default)]
struct Shared {
    tunnels: RefCell<Vec<Driving>>,
    ended: Cell<usize>,
    requests: Cell<usize>,
}

/// What is to become of a tunnel.
#[derive(Default)]
struct Tunnel {
    stops: Cell<bool>,
    told: Notify,
}

impl Foreign {
    /// Begins to listen.
    pub(crate) async fn serve(bed: &Bed) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(bed.server_ip, PORT)).await.unwrap();
        let config = bed.ca.hbone(&identity("server")).server();
        let gate = Rc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let shared = Rc::<Shared>::default();
        let foreign = Self { gate: gate.clone(), shared: shared.clone() };
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream = tls::accept(stream, config.clone()).await.unwrap().stream;
                let connection = h2::server::handshake(stream).await.unwrap();
                let tunnel = Rc::<Tunnel>::default();
                let driving = drive(connection, tunnel.clone(), (gate.clone(), shared.clone()));
                shared.tunnels.borrow_mut().push((tunnel, tokio::task::spawn_local(driving)));
            }
        });
        foreign
    }

    /// Tunnels so far.
    pub(crate) fn tunnels(&self) -> usize {
        self.shared.tunnels.borrow().len()
    }

    /// Those that are over.
    pub(crate) fn ended(&self) -> usize {
        self.shared.ended.get()
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.get()
    }

    /// Says on all tunnels that it takes no more streams.
    pub(crate) fn leave(&self) {
        self.shared.tunnels.borrow().iter().for_each(|(tunnel, _)| tunnel.told.notify_one());
    }

    /// All tunnels, which nobody drives any more; they break when they are dropped.
    pub(crate) async fn stop(&self) -> Vec<Driven> {
        let mut stopped = Vec::new();
        for (tunnel, driving) in self.shared.tunnels.take() {
            tunnel.stops.set(true);
            tunnel.told.notify_one();
            stopped.extend(driving.await.unwrap());
        }
        stopped
    }
}

async fn drive(
    mut connection: Driven,
    tunnel: Rc<Tunnel>,
    (gate, shared): (Rc<Semaphore>, Rc<Shared>),
) -> Option<Driven> {
    loop {
        tokio::select! {
            biased;
            () = tunnel.told.notified() => {
                if tunnel.stops.get() {
                    return Some(connection);
                }
                connection.graceful_shutdown();
            }
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::task::spawn_local(answer(request, respond, (gate.clone(), shared.clone())));
                }
                // A client that closes may not wait for what is still said to it.
                Some(Err(_)) | None => {
                    shared.ended.set(shared.ended.get() + 1);
                    return None;
                }
            },
        }
    }
}

/// Answers requests until the client ends the stream.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (gate, shared): (Rc<Semaphore>, Rc<Shared>),
) {
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        // A small head comes at once, and what follows it is its body.
        if data.starts_with(b"GET ") {
            shared.requests.set(shared.requests.get() + 1);
            gate.acquire().await.unwrap().forget();
            let answer = Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            // A client that has gone wants none.
            let _ = send.send_data(answer, false);
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}
