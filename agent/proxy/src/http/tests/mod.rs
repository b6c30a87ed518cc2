//! Requests through the node: real sockets on loopback addresses, real servers behind them.

mod connection;
mod failing;
mod hostile;
mod policy;
mod routing;
mod streaming;
mod tokens;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_core::resource::virtual_service::{
    DestinationRef, HttpAction, HttpMatch, HttpRule, RouteDestination, TextMatch, VirtualService,
};
use weft_core::resource::{Change, PortProtocol, Resource};

use super::body::Body;
use crate::listener::Role;
use crate::testbed::{Bed, connect_from, meta, name, run, service_speaking};

/// The name under which the Service is called.
const HOST: &str = "shop.shop.svc.cluster.local";

/// Runs tasks of HTTP/2 connections on the test's thread.
#[derive(Clone)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// A request that an application has seen, with its body.
#[derive(Debug)]
struct Seen {
    head: Parts,
    body: Bytes,
    peer: SocketAddr,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn target(&self) -> &str {
        self.head.uri.path_and_query().unwrap().as_str()
    }
}

type Answer = LocalBoxFuture<'static, Response<Body>>;
type Handler = Rc<dyn Fn(Request<Incoming>) -> Answer>;

/// An application on a loopback address.
struct App {
    addr: SocketAddr,
    seen: Rc<RefCell<VecDeque<Seen>>>,
    connections: Rc<std::cell::Cell<usize>>,
}

impl App {
    /// Answers 200 and remembers what it saw.
    async fn echo(bed: &Bed, http2: bool) -> Self {
        Self::answering(bed, http2, |_| Response::new(Body::full("hello"))).await
    }

    /// Answers what a function says, once the body is there.
    async fn answering(bed: &Bed, http2: bool, answer: impl Fn(&Seen) -> Response<Body> + 'static) -> Self {
        let (listener, addr) = bed.application().await;
        let seen = Rc::<RefCell<VecDeque<Seen>>>::default();
        let (log, answer) = (seen.clone(), Rc::new(answer));
        let connections = serve(listener, http2, move |peer| {
            let (log, answer) = (log.clone(), answer.clone());
            Rc::new(move |request: Request<Incoming>| {
                let (log, answer) = (log.clone(), answer.clone());
                Box::pin(async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let seen = Seen { head, body, peer };
                    let response = answer(&seen);
                    log.borrow_mut().push_back(seen);
                    response
                }) as Answer
            })
        });
        Self { addr, seen, connections }
    }

    /// Does with each request what a function says.
    async fn handling(
        bed: &Bed,
        http2: bool,
        handler: impl Fn(Request<Incoming>) -> Answer + 'static,
    ) -> Self {
        let (listener, addr) = bed.application().await;
        let handler: Handler = Rc::new(handler);
        let connections = serve(listener, http2, move |_| handler.clone());
        Self { addr, seen: Rc::default(), connections }
    }

    fn next(&self) -> Seen {
        self.seen.borrow_mut().pop_front().expect("the application has seen a request")
    }

    fn requests(&self) -> usize {
        self.seen.borrow().len()
    }
}

fn serve(
    listener: TcpListener,
    http2: bool,
    handler: impl Fn(SocketAddr) -> Handler + 'static,
) -> Rc<std::cell::Cell<usize>> {
    let connections = Rc::new(std::cell::Cell::new(0));
    let count = connections.clone();
    tokio::task::spawn_local(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else { return };
            count.set(count.get() + 1);
            let handler = handler(peer);
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, super::body::BodyError>(answer.await) }
            });
            tokio::task::spawn_local(async move {
                let io = TokioIo::new(stream);
                if http2 {
                    let _ =
                        hyper::server::conn::http2::Builder::new(Local).serve_connection(io, service).await;
                } else {
                    let mut builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder
                        .preserve_header_case(true)
                        .serve_connection(io, service)
                        .with_upgrades()
                        .await;
                }
            });
        }
    });
    connections
}

/// A client of the mesh and the address that it dials.
struct Mesh {
    bed: Bed,
    vip: SocketAddr,
}

impl Mesh {
    /// A Service in front of an application of the server pod on the client's node.
    fn near(bed: Bed, app: &App, protocol: PortProtocol) -> Self {
        let mut bed = bed;
        let vip = bed.listen(&bed.client, Role::Outbound, SocketAddr::new(bed.other_ip, 0));
        bed.change(service_speaking(protocol, vip, &[app.addr.ip()], app.addr.port()));
        Self { bed, vip }
    }

    /// The same in front of a bare socket.
    async fn near_socket(bed: Bed) -> (Self, TcpListener) {
        let (listener, addr) = bed.application().await;
        let app = App { addr, seen: Rc::default(), connections: Rc::default() };
        (Self::near(bed, &app, PortProtocol::Http), listener)
    }

    async fn dial(&self) -> TcpStream {
        connect_from(self.bed.client_ip, self.vip).await.unwrap()
    }

    async fn http1(&self) -> http1::SendRequest<Body> {
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(self.dial().await))
            .await
            .unwrap();
        tokio::task::spawn_local(connection.with_upgrades());
        sender
    }

    async fn http2(&self) -> http2::SendRequest<Body> {
        let (sender, connection) = http2::handshake(Local, TokioIo::new(self.dial().await)).await.unwrap();
        tokio::task::spawn_local(connection);
        sender
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.http1().await.send_request(request).await.unwrap();
        Reply::of(response).await
    }

    async fn get(&self, target: &str) -> Reply {
        self.send(get(target)).await
    }

    /// Writes bytes and reads until the connection is closed.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.dial().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is an end as well.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn route(&mut self, rules: Vec<HttpRule>) {
        self.bed.change([virtual_service(rules)]);
    }

    /// Waits for a line of the access log.
    async fn logged(&self, text: &str) {
        self.bed.until(text, |bed| bed.log().contains(text)).await;
    }
}

/// An answer with its body.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Reply {
    async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn get(target: &str) -> Request<Body> {
    Request::get(target).header("host", HOST).body(Body::empty()).unwrap()
}

fn post(target: &str, body: impl Into<Bytes>) -> Request<Body> {
    Request::post(target).header("host", HOST).body(Body::full(body)).unwrap()
}

fn virtual_service(rules: Vec<HttpRule>) -> Change {
    Change::Upsert(Box::new(Resource::VirtualService(VirtualService {
        meta: meta(name("routes")),
        hosts: vec![HOST.into()],
        gateways: vec!["mesh".into()],
        export_to: Vec::new(),
        http: rules,
        tls: Vec::new(),
        tcp: Vec::new(),
    })))
}

/// A rule that sends requests to the Service.
fn to_shop() -> HttpRule {
    let destination = DestinationRef { host: HOST.into(), subset: None, port: None };
    let route = RouteDestination { destination, weight: 0, headers: Default::default() };
    HttpRule { action: HttpAction::Route(vec![route]), ..HttpRule::default() }
}

fn prefix(path: &str) -> Vec<HttpMatch> {
    vec![HttpMatch { uri: Some(TextMatch::Prefix(path.into())), ..HttpMatch::default() }]
}

/// What a server hears about the client with this certificate (H-2).
fn vouched(certificate: &str) -> String {
    let principal = "spiffe://cluster.local/ns/shop/sa";
    format!("By={principal}/server;Hash={certificate};Subject=\"\";URI={principal}/client")
}

#[test]
fn a_request_reaches_an_application_of_the_same_node_and_both_sides_report() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let certificate = mesh.bed.certificate("client").await;
        let reply = mesh.get("/cart?x=1").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
        assert_eq!(reply.header("server"), Some("envoy"));
        assert!(reply.header("x-envoy-upstream-service-time").is_some());
        let seen = app.next();
        assert_eq!((seen.target(), seen.header("host")), ("/cart?x=1", Some(HOST)));
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
        assert_eq!(seen.header("x-envoy-attempt-count"), Some("1"));
        assert_eq!(seen.header("x-request-id").map(str::len), Some(36));
        assert_eq!(seen.header("x-forwarded-client-cert"), Some(&*vouched(&certificate)));
        assert_eq!(seen.peer.ip(), mesh.bed.client_ip, "the source address is kept");
        let metrics = mesh.bed.metrics();
        for (reporter, security) in [("source", "unknown"), ("destination", "none")] {
            let line = metrics.lines().find(|line| {
                line.starts_with("istio_requests_total") && line.contains(&format!("reporter=\"{reporter}\""))
            });
            let line = line.unwrap_or_else(|| panic!("{metrics}"));
            for label in [
                "response_code=\"200\"",
                "response_flags=\"-\"",
                "request_protocol=\"http\"",
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
                "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
                "destination_service=\"shop.shop.svc.cluster.local\"",
                &format!("connection_security_policy=\"{security}\""),
            ] {
                assert!(line.contains(label), "{label}: {line}");
            }
            assert!(line.ends_with(" 1"), "{line}");
        }
    });
}

#[test]
fn a_request_reaches_another_node_through_a_tunnel() {
    run(async {
        for protocol in [PortProtocol::Http, PortProtocol::Undeclared] {
            let bed = Bed::new("b");
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mesh = Mesh::near(bed, &app, protocol);
            let mut client = mesh.http1().await;
            for _ in 0..3 {
                let reply = Reply::of(client.send_request(get("/")).await.unwrap()).await;
                assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
            }
            let seen = app.next();
            let certificate = mesh.bed.certificate("client").await;
            assert_eq!(seen.header("x-forwarded-client-cert"), Some(&*vouched(&certificate)));
            let metrics = mesh.bed.metrics();
            let arrived = metrics.lines().find(|line| {
                line.starts_with("istio_requests_total{")
                    && line.contains("reporter=\"destination\"")
                    && line.contains("connection_security_policy=\"mutual_tls\"")
            });
            assert!(arrived.unwrap_or_else(|| panic!("{metrics}")).ends_with(" 3"), "{metrics}");
        }
    });
}
