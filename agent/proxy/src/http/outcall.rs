//! Requests that the agent makes itself: for keys of tokens, and to external authorisers.
//!
//! What is a host of the mesh is asked in the name of the pod for whose sake it is asked; everything else from
//! the agent's own network.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path as FilePath;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use futures_util::future::LocalBoxFuture;
use http::header::HOST;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weft_core::Snapshot;
use weft_core::decide::http::{Action, Caller, Cluster, Request as Question, route};
use weft_core::snapshot::LocalWorkload;

use super::body::Body;
use super::upstream::{self, Leg, Search, SendError, Sent, UpstreamProtocol};
use crate::pod::Pod;
use crate::worker::Worker;

/// Where the system keeps the authorities that it trusts.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The text is no URL of a kind that is supported.
    #[error("`{0}` is not a URL with the scheme http or https")]
    Url(String),
    /// Nobody answers.
    #[error("{0} cannot be reached: {1}")]
    Connect(String, std::io::Error),
    /// The exchange broke.
    #[error("the request to {0} failed: {1}")]
    Exchange(String, String),
    /// The answer is no success.
    #[error("{0} answers {1}")]
    Status(String, u16),
}

/// Gets a document of at most `most` bytes.
pub(crate) async fn get(
    worker: &Rc<Worker>,
    snapshot: &Arc<Snapshot>,
    (pod, local): (&Arc<Pod>, &Arc<LocalWorkload>),
    url: &str,
    most: usize,
) -> Result<Vec<u8>, CallError> {
    let uri: Uri = url.parse().map_err(|_| CallError::Url(url.to_owned()))?;
    let (Some(authority), Some(scheme)) = (uri.authority(), uri.scheme_str()) else {
        return Err(CallError::Url(url.to_owned()));
    };
    let tls = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(CallError::Url(url.to_owned())),
    };
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request::get(target).header(HOST, authority.as_str()).body(Body::empty());
    let failed =
        |error: &dyn std::fmt::Display| CallError::Exchange(authority.to_string(), error.to_string());
    let request = request.map_err(|error| failed(&error))?;
    let response = match in_mesh(snapshot, local, authority.host(), port) {
        Some(cluster) if !tls => {
            call(worker, snapshot, (pod, local), &cluster, (request, UpstreamProtocol::Http1)).await?
        }
        Some(_) | None => outside(worker, (authority.host(), port, tls), request).await?,
    };
    if !response.status().is_success() {
        return Err(CallError::Status(authority.to_string(), response.status().as_u16()));
    }
    let body = Limited::new(response.into_body(), most).collect().await;
    Ok(body.map_err(|error| failed(&error))?.to_bytes().to_vec())
}

/// The cluster behind a host and port, as the workload sees it.
pub(crate) fn in_mesh(
    snapshot: &Arc<Snapshot>,
    local: &Arc<LocalWorkload>,
    host: &str,
    port: u16,
) -> Option<Arc<Cluster>> {
    let headers = HeaderMap::new();
    let caller = Caller {
        workload: &local.workload,
        original: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        labels: &local.workload.pod_labels,
    };
    let request = Question { method: "GET", scheme: "http", authority: host, target: "/", headers: &headers };
    match route(snapshot, &caller, &request).action {
        Action::Forward(rule) => rule.targets.first()?.cluster.as_ref().ok().cloned(),
        Action::Respond(_) | Action::Passthrough => None,
    }
}

/// Sends a request to a cluster of the mesh in the name of a pod.
pub(crate) async fn call(
    worker: &Rc<Worker>,
    snapshot: &Arc<Snapshot>,
    (pod, local): (&Arc<Pod>, &Arc<LocalWorkload>),
    cluster: &Arc<Cluster>,
    (request, protocol): (Request<Body>, UpstreamProtocol),
) -> Result<Response<Body>, CallError> {
    let failed = |error: &str| CallError::Exchange(cluster.host.to_string(), error.to_owned());
    let client = pod.address(&local.workload).ok_or_else(|| failed("the pod has no address"))?;
    let of_family = |ip: &&IpAddr| ip.is_ipv4() == client.is_ipv4();
    let vip = cluster.service.vips.iter().find(of_family).copied().unwrap_or(*client);
    let leg = Leg {
        pod,
        source: local,
        client: SocketAddr::new(*client, 0),
        original: SocketAddr::new(vip, cluster.port),
        snapshot,
        local: Cell::default(),
    };
    let mut search = Search::default();
    // Boxed by type: to reach the cluster may mean to ask policy again.
    let sending: LocalBoxFuture<'_, Result<Sent, SendError>> =
        Box::pin(upstream::send(worker, &leg, cluster, &mut search, request.into(), protocol));
    Ok(sending.await.map_err(|error| failed(&error.detail))?.response)
}

/// Sends a request to a host that is not the mesh's.
pub(crate) async fn outside(
    worker: &Rc<Worker>,
    (host, port, tls): (&str, u16, bool),
    request: Request<Body>,
) -> Result<Response<Body>, CallError> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let unreachable = |error| CallError::Connect(format!("{host}:{port}"), error);
    let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
    if !tls {
        return over(worker, host, stream, request).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| CallError::Url(host.to_owned()))?;
    let secured = tokio_rustls::TlsConnector::from(client_config()).connect(name, stream).await;
    over(worker, host, secured.map_err(unreachable)?, request).await
}

async fn over<T: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Rc<Worker>,
    host: &str,
    stream: T,
    request: Request<Body>,
) -> Result<Response<Body>, CallError> {
    let failed = |error: hyper::Error| CallError::Exchange(host.to_owned(), error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    worker.spawn(async move {
        // What goes wrong is told to whoever waits for the answer.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(failed)?;
    Ok(response.map(Body::from))
}

/// The system's own authorities: mesh certificates prove nothing about hosts outside.
fn client_config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let file = AUTHORITIES.iter().find(|path| FilePath::new(path).exists());
            let certificates = file.and_then(|path| CertificateDer::pem_file_iter(path).ok());
            roots.add_parsable_certificates(certificates.into_iter().flatten().filter_map(Result::ok));
            Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
        })
        .clone()
}
