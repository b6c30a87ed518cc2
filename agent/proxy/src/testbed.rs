//! What tests share: a worker with a configuration of its own, on loopback addresses of its own.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
#[cfg(test)]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
#[cfg(test)]
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use weft_core::compile::{CompileOptions, Compiler};
use weft_core::resource::{
    AuthorizationPolicy, Change, EndpointSlice, Kind, Labels, Meta, MtlsMode, NamespacedName,
    PeerAuthentication, Pod as PodResource, PolicyAction, PortProtocol, Resource, ResourceKey, Rule, Service,
    ServicePort, SliceEndpoint, TargetPort,
};
use weft_core::{Identity, Snapshot};
use weft_identity::CertStore;
use weft_identity::testing::{TestCa, TestCaClient};
use weft_kernel::{AttestedPeer, Netns};
use weft_telemetry::{AccessLog, AccessLogFormat, Metrics};

#[cfg(test)]
use crate::Proxy;
use crate::ProxyConfig;
use crate::listener::Role;
use crate::pod::{Loads, Pod};
use crate::worker::{Command, Kernel, Services, Shared, Worker, channels};

/// Runs a test on a runtime like a worker's.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    on(Builder::new_current_thread().enable_all(), test)
}

/// The same; time stands still and jumps when nothing else can happen.
#[cfg(test)]
pub(crate) fn run_paused<T>(test: impl Future<Output = T>) -> T {
    on(Builder::new_current_thread().enable_all().start_paused(true), test)
}

fn on<T>(builder: &mut Builder, test: impl Future<Output = T>) -> T {
    builder.build_local(LocalOptions::default()).unwrap().block_on(test)
}

/// A kernel that vouches for whom it is told to.
#[derive(Default)]
pub(crate) struct TestKernel(pub(crate) Mutex<Option<NamespacedName>>);

impl Kernel for Arc<TestKernel> {
    fn publish(&self, _: SocketAddr, _: SocketAddr) -> io::Result<()> {
        Ok(())
    }

    fn withdraw(&self, _: SocketAddr, _: SocketAddr) {}

    fn attested(&self, _: SocketAddr, _: SocketAddr) -> Option<AttestedPeer> {
        self.0.lock().unwrap().clone().map(|pod| AttestedPeer { pod })
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A mesh of two pods, `shop/client` and `shop/server`, served by one worker.
pub(crate) struct Bed {
    pub(crate) worker: Rc<Worker>,
    pub(crate) kernel: Arc<TestKernel>,
    pub(crate) ca: Arc<TestCa>,
    pub(crate) client: Arc<Pod>,
    pub(crate) server: Arc<Pod>,
    pub(crate) client_ip: IpAddr,
    pub(crate) server_ip: IpAddr,
    /// An address that belongs to no pod.
    pub(crate) other_ip: IpAddr,
    pub(crate) learned: UnboundedReceiver<(NamespacedName, u16)>,
    compiler: Compiler,
    lines: Lines,
}

/// Addresses of 127.0.0.0/8 that no other test, in this process or another, uses: 1,024 for each process.
fn addresses() -> [IpAddr; 3] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static PROCESS: AtomicU32 = AtomicU32::new(0);
    let _ = PROCESS.compare_exchange(0, std::process::id(), Ordering::Relaxed, Ordering::Relaxed);
    // Neither 127.0.0.1 and its neighbours nor the broadcast address.
    let process = 1 + PROCESS.load(Ordering::Relaxed) % 0x3ffe;
    let test = NEXT.fetch_add(3, Ordering::Relaxed);
    assert!(test + 2 < 1 << 10, "there are more tests than addresses");
    let ip = |number| IpAddr::from(Ipv4Addr::from_bits(0x7f00_0000 | process << 10 | number));
    [ip(test), ip(test + 1), ip(test + 2)]
}

pub(crate) fn name(pod: &str) -> NamespacedName {
    NamespacedName::new("shop", pod)
}

pub(crate) fn identity(pod: &str) -> Identity {
    Identity::new("cluster.local", "shop", pod)
}

pub(crate) fn meta(key: NamespacedName) -> Meta {
    Meta { key, created: None, origin: None }
}

fn pod(name_: &str, ip: IpAddr, node: &str) -> Change {
    let labels: Labels = [("weft.dev/mesh", "enabled"), ("app", name_)].into_iter().collect();
    Change::Upsert(Box::new(Resource::Pod(PodResource {
        meta: meta(name(name_)),
        labels: Arc::new(labels),
        annotations: Arc::default(),
        node: Some(node.into()),
        ips: [ip].into_iter().collect(),
        service_account: name_.into(),
        host_network: false,
        runtime_class: None,
        ready: true,
        terminated: false,
        owner: None,
        ports: Arc::new([]),
        netns: None,
        uid: None,
    })))
}

/// What workers share.
fn shared(
    config: ProxyConfig,
    context: Services,
    kernel: Arc<TestKernel>,
    workers: Vec<UnboundedSender<Command>>,
) -> Arc<Shared> {
    let originations = crate::http::upstream::Originations::new(config.tls_files.clone());
    Arc::new(Shared {
        config,
        context,
        kernel: Box::new(kernel),
        loads: Arc::new(Loads::new(workers.len())),
        counters: Arc::default(),
        connections: Arc::default(),
        http: crate::http::upstream::State::default(),
        originations,
        workers,
    })
}

impl Bed {
    /// `server_node` is `a` for a server on the client's node.
    pub(crate) fn new(server_node: &str) -> Self {
        Self::with(ProxyConfig::default(), server_node)
    }

    pub(crate) fn with(config: ProxyConfig, server_node: &str) -> Self {
        let [client_ip, server_ip, other_ip] = addresses();
        let mut compiler = Compiler::new(CompileOptions {
            node: None,
            adopt_istio_labels: false,
            endpoints_from_pods: true,
        });
        compiler.apply([pod("client", client_ip, "a"), pod("server", server_ip, server_node)]);
        let ca = Arc::new(TestCa::new());
        let authority = TestCaClient { ca: ca.clone(), lifetime: Duration::from_secs(3600) };
        let certs = CertStore::new(Arc::new(authority), tokio::runtime::Handle::current());
        certs.want(BTreeSet::from([identity("client"), identity("server")]));
        let (sender, learned) = tokio::sync::mpsc::unbounded_channel();
        let lines = Lines::default();
        let kernel = Arc::new(TestKernel::default());
        let services = Services {
            snapshot: Arc::new(ArcSwap::from(compiler.snapshot())),
            certs,
            metrics: Metrics::new(),
            access_log: AccessLog::to(Box::new(lines.clone())),
            learned: sender,
        };
        let (workers, _) = channels(1);
        let worker = Worker::new(0, shared(config, services, kernel.clone(), workers));
        let netns = Arc::new(Netns::current().unwrap());
        let client = Arc::new(Pod::new(name("client"), netns.clone(), &worker.shared.config));
        let server = Arc::new(Pod::new(name("server"), netns, &worker.shared.config));
        worker.add_pod(&client);
        worker.add_pod(&server);
        Self { worker, kernel, ca, client, server, client_ip, server_ip, other_ip, learned, compiler, lines }
    }

    /// A proxy with this configuration, and what its workers are told.
    #[cfg(test)]
    pub(crate) fn proxy(&self, workers: usize) -> (Proxy, Vec<UnboundedReceiver<Command>>) {
        let Services { snapshot, certs, metrics, access_log, learned } = &self.worker.shared.context;
        let services = Services {
            snapshot: snapshot.clone(),
            certs: certs.clone(),
            metrics: metrics.clone(),
            access_log: access_log.clone(),
            learned: learned.clone(),
        };
        let (workers, told) = channels(workers);
        let shared = shared(self.worker.shared.config.clone(), services, self.kernel.clone(), workers);
        (Proxy { shared, pods: Mutex::default(), home: AtomicUsize::new(0) }, told)
    }

    /// Listens for tunnels to the server pod.
    pub(crate) fn serve_tunnels(&self) {
        self.listen(&self.server, Role::Inbound, SocketAddr::new(self.server_ip, crate::hbone::PORT));
    }

    /// Listens as a pod's listener would; answers the address.
    pub(crate) fn listen(&self, pod: &Arc<Pod>, role: Role, addr: SocketAddr) -> SocketAddr {
        let listener = std::net::TcpListener::bind(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        self.worker.accept(pod, vec![(role, Arc::new(listener))]);
        addr
    }

    /// An application of the server pod.
    pub(crate) async fn application(&self) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((self.server_ip, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.worker.snapshot()
    }

    /// Fingerprint of a pod's certificate, once it has one.
    pub(crate) async fn certificate(&self, pod: &str) -> Arc<str> {
        let certs = &self.worker.shared.context.certs;
        certs.wait(&identity(pod), Duration::from_secs(20)).await.unwrap().fingerprint().clone()
    }

    /// Changes the configuration and asks again about what is open, as the agent does.
    pub(crate) fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.compiler.apply(changes);
        self.worker.shared.context.snapshot.store(self.compiler.snapshot());
        self.worker.live.reevaluate(&self.snapshot());
    }

    pub(crate) fn metrics(&self) -> String {
        self.worker.shared.context.metrics.render()
    }

    /// Lines about everything, as Istio's default format has them.
    pub(crate) fn log_everything(&self) {
        self.worker.shared.context.access_log.configure(true, AccessLogFormat::Text);
    }

    /// The lines of the access log so far.
    pub(crate) fn log(&self) -> String {
        self.worker.shared.context.access_log.flush(Duration::from_secs(5));
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until a condition holds that other tasks of this thread bring about.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(std::time::Instant::now() < deadline, "{what} did not come about\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A Service on `vip` with the endpoints `ips`, all on one port.
pub(crate) fn service(vip: SocketAddr, ips: &[IpAddr], port: u16) -> [Change; 2] {
    service_speaking(PortProtocol::Undeclared, vip, ips, port)
}

/// The same with a protocol that is declared. The server pod is selected.
pub(crate) fn service_speaking(
    protocol: PortProtocol,
    vip: SocketAddr,
    ips: &[IpAddr],
    port: u16,
) -> [Change; 2] {
    let ports = [ServicePort { name: None, port: vip.port(), target: TargetPort::Number(port), protocol }];
    let selector = match protocol {
        PortProtocol::Undeclared => None,
        _ => Some([("app", "server")].into_iter().collect()),
    };
    let service = Service {
        meta: meta(name("shop")),
        annotations: Arc::default(),
        vips: [vip.ip()].into_iter().collect(),
        ports: Arc::new(ports),
        selector,
        publish_not_ready: false,
        external_name: None,
        distribution: None,
        export_to: Vec::new(),
    };
    let endpoints = ips.iter().map(|ip| SliceEndpoint {
        addresses: [*ip].into_iter().collect(),
        ready: true,
        pod: None,
        node: None,
    });
    let slice = EndpointSlice {
        meta: meta(name("shop-1")),
        service: Some("shop".into()),
        ports: vec![("".into(), port)],
        endpoints: endpoints.collect(),
    };
    [Resource::Service(service), Resource::EndpointSlice(slice)].map(|it| Change::Upsert(Box::new(it)))
}

/// A policy that denies everything to the server pod.
pub(crate) fn deny_all() -> Change {
    let rules = vec![Rule::default()];
    Change::Upsert(Box::new(Resource::AuthorizationPolicy(AuthorizationPolicy {
        meta: meta(name("nobody")),
        selector: Some([("app", "server")].into_iter().collect()),
        targets_gateway: false,
        provider: None,
        action: PolicyAction::Deny,
        dry_run: false,
        rules,
    })))
}

/// Takes it back.
pub(crate) fn allow_again() -> Change {
    Change::Delete(ResourceKey { kind: Kind::AuthorizationPolicy, name: name("nobody") })
}

/// STRICT for the namespace.
pub(crate) fn strict() -> Change {
    Change::Upsert(Box::new(Resource::PeerAuthentication(PeerAuthentication {
        meta: meta(name("strict")),
        selector: None,
        mode: Some(MtlsMode::Strict),
        ports: Vec::new(),
    })))
}

/// A TLS server with a certificate; `clients` has issued those that its clients must have.
#[cfg(test)]
pub(crate) fn tls_server(
    issued: &weft_identity::testing::Issued,
    clients: Option<&TestCa>,
    protocols: &[&[u8]],
) -> tokio_rustls::TlsAcceptor {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let chain = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.root_pem().as_bytes()).unwrap()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(vec![chain], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

/// A connection from a given address.
pub(crate) async fn connect_from(source: IpAddr, destination: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(destination).await
}

/// Both ends of a loopback connection.
pub(crate) async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (one, listener.accept().await.unwrap().0)
}

/// Sends so many bytes in both directions at once and ends both: what arrives is what was sent.
#[cfg(test)]
pub(crate) async fn much_both_ways(
    client: impl AsyncRead + AsyncWrite,
    server: impl AsyncRead + AsyncWrite,
    len: usize,
) {
    let sent = pattern(len);
    let (mut client_in, mut client_out) = tokio::io::split(client);
    let (mut server_in, mut server_out) = tokio::io::split(server);
    let up = async {
        client_out.write_all(&sent).await.unwrap();
        client_out.shutdown().await.unwrap();
    };
    let down = async {
        server_out.write_all(&sent).await.unwrap();
        server_out.shutdown().await.unwrap();
    };
    let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
    let (one, other, (), ()) =
        tokio::join!(server_in.read_to_end(&mut at_server), client_in.read_to_end(&mut at_client), up, down);
    one.unwrap();
    other.unwrap();
    assert!(at_server == sent && at_client == sent);
}

/// Bytes that differ at every position of a window larger than any buffer.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}
