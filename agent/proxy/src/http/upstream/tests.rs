//! Requests to real servers on loopback addresses.

mod alive;
mod carrying;
mod health;
mod leaving;
mod limits;
mod origination;
mod places;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use smallvec::SmallVec;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use weft_core::Snapshot;
use weft_core::decide::http::{Cluster, ClusterPolicy};
use weft_core::resource::PortProtocol;
use weft_core::resource::destination_rule::{ConnectionPool, LoadBalancer, OutlierDetection};
use weft_core::snapshot::{CompiledPort, CompiledService, Endpoint, LocalWorkload};
use weft_core::visibility::Visibility;

use super::{Leg, Search, SendError, Sent, UpstreamProtocol, send};
use crate::http::body::Body;
use crate::testbed::{Bed, name};

/// Runs tasks of HTTP/2 servers on the test's thread.
#[derive(Clone)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// An HTTP server. Each request takes a permit of its gate before it is answered.
struct Backend {
    addr: SocketAddr,
    gate: Rc<Semaphore>,
    connections: Rc<Cell<usize>>,
    /// Connections that are open.
    open: Rc<Cell<usize>>,
    requests: Rc<Cell<usize>>,
    status: Rc<Cell<u16>>,
    grpc_status: Rc<Cell<Option<u16>>>,
    peers: Rc<RefCell<HashSet<IpAddr>>>,
}

impl Backend {
    async fn new(ip: IpAddr, protocol: UpstreamProtocol) -> Rc<Self> {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let backend = Rc::new(Self {
            addr: listener.local_addr().unwrap(),
            gate: Rc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            connections: Rc::default(),
            open: Rc::default(),
            requests: Rc::default(),
            status: Rc::new(Cell::new(200)),
            grpc_status: Rc::default(),
            peers: Rc::default(),
        });
        tokio::task::spawn_local(backend.clone().serve(listener, protocol));
        backend
    }

    /// Answers nothing until permits are added.
    fn close_gate(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn open_gate(&self) {
        self.gate.add_permits(100_000);
    }

    async fn serve(self: Rc<Self>, listener: TcpListener, protocol: UpstreamProtocol) {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            self.connections.set(self.connections.get() + 1);
            self.open.set(self.open.get() + 1);
            self.peers.borrow_mut().insert(peer.ip());
            let backend = self.clone();
            tokio::task::spawn_local(async move {
                let this = backend.clone();
                let service = service_fn(move |request| this.clone().answer(request));
                let io = TokioIo::new(stream);
                // A connection that a client gives up ends with an error.
                let _ = match protocol {
                    UpstreamProtocol::Http1 => {
                        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                    }
                    UpstreamProtocol::Http2 => {
                        hyper::server::conn::http2::Builder::new(Local).serve_connection(io, service).await
                    }
                };
                backend.open.set(backend.open.get() - 1);
            });
        }
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        self.requests.set(self.requests.get() + 1);
        let body = read(request.into_body()).await;
        self.gate.acquire().await.unwrap().forget();
        let mut response = Response::new(Body::full(body));
        *response.status_mut() = StatusCode::from_u16(self.status.get()).unwrap();
        if let Some(status) = self.grpc_status.get() {
            response.headers_mut().insert("grpc-status", status.into());
        }
        Ok(response)
    }
}

/// Reads a body to its end.
async fn read<B: hyper::body::Body<Data = Bytes, Error: std::fmt::Debug> + Unpin>(mut body: B) -> Bytes {
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.unwrap().into_data() {
            all.extend_from_slice(&data);
        }
    }
    all.freeze()
}

fn policy() -> ClusterPolicy {
    ClusterPolicy {
        object: None,
        load_balancer: LoadBalancer::LeastRequest,
        locality: None,
        warmup: None,
        retry_budget: None,
        connection_pool: ConnectionPool::default(),
        outlier_detection: None,
        tls: None,
    }
}

fn limited(pool: ConnectionPool) -> ClusterPolicy {
    ClusterPolicy { connection_pool: pool, ..policy() }
}

fn ejecting(outlier: OutlierDetection) -> ClusterPolicy {
    ClusterPolicy { outlier_detection: Some(outlier), ..policy() }
}

fn cluster(endpoints: &[SocketAddr], policy: ClusterPolicy) -> Arc<Cluster> {
    let mut endpoints: Vec<_> = endpoints.iter().map(|addr| Endpoint::new(*addr, true)).collect();
    endpoints.sort_by_key(|endpoint| endpoint.addr());
    let endpoints: Arc<[Endpoint]> = endpoints.into();
    let port =
        CompiledPort { port: 80, name: None, protocol: PortProtocol::Http, endpoints: endpoints.clone() };
    let host: Arc<str> = "shop.shop.svc.cluster.local".into();
    let service = CompiledService {
        key: name("shop"),
        host: host.clone(),
        vips: SmallVec::new(),
        ports: Arc::new([port]),
        alias: None,
        distribution: None,
        visibility: Visibility::default(),
    };
    Arc::new(Cluster {
        name: "outbound|80||shop.shop.svc.cluster.local".into(),
        host,
        port: 80,
        subset: None,
        service: Arc::new(service),
        service_port: 0,
        endpoints,
        policy: Arc::new(policy),
    })
}

/// The pod `client` with a configuration.
#[derive(Clone)]
struct Client {
    bed: Rc<Bed>,
    snapshot: Arc<Snapshot>,
    source: Arc<LocalWorkload>,
    protocol: UpstreamProtocol,
}

impl Client {
    fn new(bed: Bed, protocol: UpstreamProtocol) -> Self {
        let snapshot = bed.snapshot();
        let source = snapshot.local_workload(&name("client")).unwrap().clone();
        Self { bed: Rc::new(bed), snapshot, source, protocol }
    }

    fn leg(&self) -> Leg<'_> {
        Leg {
            pod: &self.bed.client,
            source: &self.source,
            client: SocketAddr::new(self.bed.client_ip, 40000),
            original: SocketAddr::from(([10, 96, 0, 1], 80)),
            snapshot: &self.snapshot,
            local: Cell::default(),
        }
    }

    async fn send(&self, cluster: &Arc<Cluster>, request: Request<Body>) -> Result<Sent, SendError> {
        let mut search = Search::default();
        send(&self.bed.worker, &self.leg(), cluster, &mut search, request.into(), self.protocol).await
    }

    /// Sends a request and reads its answer.
    async fn get(&self, cluster: &Arc<Cluster>) -> Result<(StatusCode, SocketAddr), SendError> {
        let sent = self.send(cluster, get()).await?;
        let status = sent.response.status();
        read(sent.response.into_body()).await;
        Ok((status, sent.endpoint))
    }

    /// The same in a task.
    fn spawn_get(
        &self,
        cluster: &Arc<Cluster>,
    ) -> tokio::task::JoinHandle<Result<(StatusCode, SocketAddr), SendError>> {
        let (client, cluster) = (self.clone(), cluster.clone());
        tokio::task::spawn_local(async move { client.get(&cluster).await })
    }

    fn state(&self, cluster: &Arc<Cluster>) -> Arc<super::state::ClusterState> {
        self.bed.worker.upstreams.cluster(&self.bed.worker, &self.leg(), cluster).state.clone()
    }

    /// The value of a counter of the cluster, as a scrape shows it.
    fn counter(&self, name: &str) -> usize {
        let metrics = self.bed.metrics();
        let line = metrics.lines().find(|line| !line.starts_with('#') && line.contains(name));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

fn get() -> Request<Body> {
    let request = Request::builder().uri("http://shop/path?x=1").header("Host", "shop:80");
    request.body(Body::full("hello")).unwrap()
}
