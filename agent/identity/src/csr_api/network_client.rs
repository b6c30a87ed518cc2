//! The client over TLS, for our own controller, istiod and cert-manager's istio-csr.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use weft_core::Identity;

use super::answers;
use super::connector::Connector;
use super::message::IstioCertificateRequest;
use crate::store::read_bounded;
use crate::{CaClient, IdentityError, SignedCertificate, bundle, tls};

/// Longest wait for an answer; the store waits longer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// For a connection with its TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where istiod, istio-csr and our controller listen.
const DEFAULT_PORT: u16 = 15012;

/// Where the CA is, and how it is asked.
#[derive(Debug, Clone)]
pub struct NetworkCaOptions {
    /// `https://HOST:PORT`; without a port 15012.
    pub address: String,
    /// The file with the token of this agent; read for every request, because it is exchanged under way.
    pub token_file: PathBuf,
    /// The file with the roots that the CA's own certificate comes from; read for every request.
    pub root_file: PathBuf,
    /// The name in the CA's certificate, where it is not the host.
    pub server_name: Option<String>,
    /// Told to the CA as metadata `clusterid`.
    pub cluster_id: String,
    /// Life that is asked for; zero leaves it to the CA.
    pub lifetime: Duration,
}

/// Client of the API.
#[derive(Debug, Clone)]
pub struct NetworkCaClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: NetworkCaOptions,
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    cluster_id: MetadataValue<Ascii>,
    /// The channel in use with the roots that it was made for. Locked while it is looked up.
    channel: Mutex<Option<(String, Channel)>>,
}

impl NetworkCaClient {
    /// A client; connects on first use, again after failures, and anew when the root file has changed.
    ///
    /// # Errors
    /// [`IdentityError::Internal`] when the address or a name is malformed.
    pub fn new(options: NetworkCaOptions) -> Result<Self, IdentityError> {
        let (host, port) = parse_address(&options.address)?;
        let name = options.server_name.clone().unwrap_or_else(|| host.clone());
        let server_name = ServerName::try_from(name.clone())
            .map_err(|_| internal(format!("`{name}` is no server name: give a DNS name or an address")))?;
        let cluster_id = MetadataValue::try_from(options.cluster_id.as_str())
            .map_err(|_| internal(format!("`{}` cannot be a cluster id", options.cluster_id)))?;
        let channel = Mutex::default();
        Ok(Self(Arc::new(Inner { options, host, port, server_name, cluster_id, channel })))
    }

    async fn create(&self, csr_pem: &str, identity: &Identity) -> Result<SignedCertificate, IdentityError> {
        let inner = &self.0;
        let message = IstioCertificateRequest::new(csr_pem, &identity.to_string(), inner.options.lifetime);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", inner.token()?);
        request.metadata_mut().insert("clusterid", inner.cluster_id.clone());
        let (roots, channel) = inner.channel()?;
        let place = || inner.options.address.clone();
        let answer = answers::call(channel, request, &place).await;
        if matches!(answer, Err(IdentityError::Unavailable(_))) {
            // The connection may be a dead one that nobody has told about: the next request makes its own.
            inner.forget(&roots);
        }
        answer
    }
}

impl CaClient for NetworkCaClient {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        Box::pin(self.create(csr_pem, identity))
    }
}

impl Inner {
    fn token(&self) -> Result<MetadataValue<Ascii>, IdentityError> {
        let path = self.options.token_file.display();
        let text = read_bounded(&self.options.token_file).map_err(|error| {
            IdentityError::Unavailable(format!("the token file {path} cannot be read: {error}"))
        })?;
        let token = text.trim();
        let mut value = MetadataValue::try_from(format!("Bearer {token}"))
            .ok()
            .filter(|_| !token.is_empty())
            .ok_or_else(|| IdentityError::Unavailable(format!("the token file {path} holds no token")))?;
        // Never in a log of headers.
        value.set_sensitive(true);
        Ok(value)
    }

    fn channel(&self) -> Result<(String, Channel), IdentityError> {
        let path = self.options.root_file.display();
        let roots = read_bounded(&self.options.root_file).map_err(|error| {
            IdentityError::Unavailable(format!("the root file {path} cannot be read: {error}"))
        })?;
        let mut cached = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_for, channel)) = cached.as_ref().filter(|(made_for, _)| *made_for == roots) {
            return Ok((made_for.clone(), channel.clone()));
        }
        let unusable = |reason: String| {
            IdentityError::Unavailable(format!("the root file {path} is not usable: {reason}"))
        };
        let channel = self.connect(client_config(&roots).map_err(unusable)?)?;
        *cached = Some((roots.clone(), channel.clone()));
        Ok((roots, channel))
    }

    fn connect(&self, config: ClientConfig) -> Result<Channel, IdentityError> {
        let authority = if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        };
        // TLS is the connector's business; that the scheme says so as well is for the requests.
        let unusable = |error: &dyn std::error::Error| internal(format!("the CA's address: {error}"));
        let origin: Uri = format!("https://{authority}").parse().map_err(|error| unusable(&error))?;
        let endpoint =
            Endpoint::from_shared(format!("http://{authority}")).map_err(|error| unusable(&error))?;
        let (host, port, name): (Arc<str>, _, _) =
            (self.host.as_str().into(), self.port, self.server_name.clone());
        let tls = TlsConnector::from(Arc::new(config));
        let connector = Connector(move || open(host.clone(), port, name.clone(), tls.clone()));
        Ok(endpoint
            .origin(origin)
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_with_connector_lazy(connector))
    }

    fn forget(&self, roots: &str) {
        let mut cached = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.as_ref().is_some_and(|(made_for, _)| made_for == roots) {
            *cached = None;
        }
    }
}

/// Host and port of `https://HOST[:PORT]`; IPv6 addresses without their brackets.
fn parse_address(address: &str) -> Result<(String, u16), IdentityError> {
    let malformed =
        || internal(format!("`{address}` is no address of a CA: it must be of the form https://HOST:PORT"));
    let uri: Uri = address.parse().map_err(|_| malformed())?;
    let root_path = matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("/"));
    if uri.scheme_str() != Some("https") || !root_path {
        return Err(malformed());
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(malformed)?;
    // A port that is none is silently left out by the parser.
    if uri.port_u16().is_none() && uri.authority().is_some_and(|authority| authority.as_str() != host) {
        return Err(malformed());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, uri.port_u16().unwrap_or(DEFAULT_PORT)))
}

fn client_config(roots_pem: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for root in bundle::merged(&[roots_pem])? {
        roots.add(root.der).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    let mut config = ClientConfig::builder_with_provider(Arc::clone(tls::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn internal(reason: String) -> IdentityError {
    IdentityError::Internal(reason)
}

/// Connects to the CA.
async fn open(
    host: Arc<str>,
    port: u16,
    server_name: ServerName<'static>,
    tls: TlsConnector,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((&*host, port)).await?;
    stream.set_nodelay(true)?;
    tls.connect(server_name, stream).await.map_err(in_words)
}

/// The whole story of a failed handshake, which layers above would shorten.
fn in_words(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the CA's own certificate or TLS: {}", crate::explain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, host, port) in [
            ("https://weft-controller.weft-system.svc:15012", "weft-controller.weft-system.svc", 15012),
            ("https://istiod.istio-system.svc", "istiod.istio-system.svc", 15012),
            ("https://[::1]:443/", "::1", 443),
        ] {
            assert_eq!(parse_address(text).unwrap(), (host.to_owned(), port), "{text}");
        }
        for bad in ["", "istiod:15012", "http://istiod:15012", "https://", "https://a/b", "https://a:b"] {
            let error = parse_address(bad).unwrap_err().to_string();
            assert!(error.contains("https://HOST:PORT"), "{bad}: {error}");
        }
    }
}
