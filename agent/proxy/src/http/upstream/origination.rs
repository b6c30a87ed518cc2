//! TLS that a client's policy asks for towards endpoints that are not the mesh's: SIMPLE and MUTUAL (D-18).
//!
//! Certificates come from files of the node, below a directory of their own for each namespace: what one namespace's
//! objects name cannot be another's, nor anything else of the machine. They are read again from time to time. A policy
//! that cannot be kept as a whole is not kept at all: no connection is made.
//!
//! Agents have no right to read Secrets. `credentialName` is a directory of that name in the directory of the *client's*
//! namespace, with the files that a mounted Secret has; whoever mounts it decides which of them a node gets to see.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_core::decide::http::Cluster;
use weft_core::resource::destination_rule::{ClientCertificates, ClientTls, ClientTlsMode};
use weft_identity::origination::{Material, client_config};

use super::{Leg, UpstreamProtocol};
use crate::account::Failure;
use crate::worker::Worker;

/// The reason of a [`Failure`]: the server does not speak TLS, or not as the policy asks.
pub(crate) const TLS: &str = "tls";

/// How long files count as unchanged.
pub(super) const FRESH: Duration = Duration::from_secs(10);
/// How long what failed is not tried again.
const FAILED: Duration = Duration::from_secs(1);
/// The largest file that is read.
const LARGEST: u64 = 1 << 20;
/// Configurations that are remembered.
const MOST: usize = 256;
/// The beginning of a `credentialName` that names a ConfigMap.
const CONFIG_MAP: &str = "configmap://";
/// The keys of a Secret: those of its type `kubernetes.io/tls`, and those of Istio's generic ones.
const CERTIFICATE: [&str; 2] = ["tls.crt", "cert"];
const KEY: [&str; 2] = ["tls.key", "key"];
const AUTHORITIES: [&str; 2] = ["ca.crt", "cacert"];
const REVOKED: [&str; 2] = ["ca.crl", "crl"];

/// A TLS connection of the client's own.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// The server that is asked for.
    name: ServerName<'static>,
    /// What is verified and presented.
    config: Arc<ClientConfig>,
}

impl Tls {
    /// Whether connections of one serve for the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.config, &other.config)
    }

    /// Begins TLS on a connection.
    pub(crate) async fn begin(
        &self,
        stream: TcpStream,
        endpoint: SocketAddr,
        limit: Duration,
    ) -> Result<Box<TlsStream<TcpStream>>, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new("UF", TLS, format!("no TLS with {endpoint}: {error}"))
        };
        let handshake = TlsConnector::from(self.config.clone()).connect(self.name.clone(), stream);
        let done = timeout(limit, handshake).await;
        let stream = done.map_err(|_| failed(&"the handshake took too long"))?;
        stream.map(Box::new).map_err(|error| failed(&error))
    }
}

/// What a cluster's policy asks for; `Ok(None)` where it asks for no TLS of the client's own. `protocol` is what will be
/// spoken, where the mesh knows.
///
/// # Errors
///
/// The policy cannot be kept; the text says why.
pub(crate) async fn tls(
    worker: &Worker,
    leg: &Leg<'_>,
    cluster: &Cluster,
    protocol: Option<UpstreamProtocol>,
) -> Result<Option<Tls>, String> {
    let Some(tls) = &cluster.policy.tls else { return Ok(None) };
    match tls.mode {
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => return Ok(None),
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {}
    }
    let name = tls.sni.as_ref().unwrap_or(&cluster.host).to_string();
    let name = ServerName::try_from(name)
        .map_err(|_| "the DestinationRule's `tls.sni` is not the name of a server".to_owned())?;
    let key = Key::of(tls, &leg.source.workload.key.namespace, protocol);
    let config = worker.shared.originations.config(key).await;
    let config = config.map_err(|why| format!("the DestinationRule's `tls` cannot be kept: {why}"))?;
    Ok(Some(Tls { name, config }))
}

/// What a configuration depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    mutual: bool,
    certificates: Option<Arc<ClientCertificates>>,
    /// The client's namespace, where a Secret of it is wanted.
    client: Option<Arc<str>>,
    names: Box<[Arc<str>]>,
    protocol: Option<UpstreamProtocol>,
}

impl Key {
    fn of(tls: &ClientTls, client: &Arc<str>, protocol: Option<UpstreamProtocol>) -> Self {
        let certificates = tls.certificates.clone();
        let secret = certificates.as_ref().is_some_and(|wanted| wanted.credential.is_some());
        Self {
            mutual: tls.mode == ClientTlsMode::Mutual,
            client: secret.then(|| client.clone()),
            certificates,
            names: tls.subject_alt_names.as_slice().into(),
            protocol,
        }
    }

    /// Reads the files and makes the configuration.
    fn load(&self, directory: Option<&Path>) -> Result<(Material, Arc<ClientConfig>), String> {
        let material = match &self.certificates {
            None => Material::default(),
            Some(certificates) => {
                let directory =
                    directory.ok_or("the agent reads no certificates (its option --tls-files)")?;
                match &certificates.credential {
                    Some(credential) => self.secret(credential, certificates.unverified, directory)?,
                    None => material(certificates, directory)?,
                }
            }
        };
        if self.mutual && material.own.is_none() {
            return Err("MUTUAL needs a certificate and a key to present".into());
        }
        let protocol: Option<&[u8]> = self.protocol.map(|protocol| match protocol {
            UpstreamProtocol::Http1 => &b"http/1.1"[..],
            UpstreamProtocol::Http2 => b"h2",
        });
        let config = client_config(&material, &self.names, protocol).map_err(|error| error.to_string())?;
        Ok((material, config))
    }

    /// The files of a Secret, or of a ConfigMap of certificates.
    fn secret(&self, credential: &str, unverified: bool, directory: &Path) -> Result<Material, String> {
        let (namespace, name) = match credential.strip_prefix(CONFIG_MAP) {
            Some(rest) => rest.split_once('/').unwrap_or_default(),
            None => (self.client.as_deref().unwrap_or_default(), credential),
        };
        let secret = Mounted { directory, namespace };
        let authorities = match secret.first(&format!("{name}-cacert"), AUTHORITIES)? {
            Some(found) => Some(found),
            None => secret.first(name, AUTHORITIES)?,
        };
        let authorities = authorities.filter(|_| !unverified);
        // Who names a Secret wants servers verified.
        if authorities.is_none() && !unverified {
            return Err(format!("{credential} of namespace {namespace} has no `ca.crt` below --tls-files"));
        }
        let own = match (self.mutual, secret.first(name, CERTIFICATE)?, secret.first(name, KEY)?) {
            (false, ..) => None,
            (true, Some(certificate), Some(key)) => Some((certificate, key)),
            (true, None, _) | (true, _, None) => {
                return Err(format!(
                    "{credential} of namespace {namespace} has no `tls.crt` with its `tls.key`"
                ));
            }
        };
        let revoked = secret.first(name, REVOKED)?.filter(|_| !unverified);
        Ok(Material { authorities, revoked, own })
    }
}

/// Secrets as they are mounted: a directory for each, a file for each key.
struct Mounted<'a> {
    directory: &'a Path,
    namespace: &'a str,
}

impl Mounted<'_> {
    /// The first of several keys that a Secret has.
    fn first(&self, name: &str, keys: [&str; 2]) -> Result<Option<Vec<u8>>, String> {
        for key in keys {
            let path = format!("{name}/{key}");
            match file(self.directory, self.namespace, &path) {
                Ok(found) => return Ok(Some(found)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{path} of namespace {}: {error}", self.namespace)),
            }
        }
        Ok(None)
    }
}

fn material(certificates: &ClientCertificates, directory: &Path) -> Result<Material, String> {
    let read = |path: &Arc<str>| {
        file(directory, &certificates.namespace, path)
            .map_err(|error| format!("{path} of namespace {}: {error}", certificates.namespace))
    };
    let optional = |path: &Option<Arc<str>>| path.as_ref().map(&read).transpose();
    let own = match (&certificates.certificate, &certificates.key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err("a certificate and its key belong together".into());
        }
    };
    Ok(Material {
        authorities: optional(&certificates.authorities)?,
        revoked: optional(&certificates.revoked)?,
        own,
    })
}

/// Reads `path` as if the namespace's directory were the root of the file system.
fn file(directory: &Path, namespace: &str, path: &str) -> io::Result<Vec<u8>> {
    let inside = |path: &str| {
        let parts = Path::new(path).components().filter(|part| *part != Component::RootDir);
        let parts: Option<PathBuf> =
            parts.map(|part| matches!(part, Component::Normal(_)).then_some(part)).collect();
        parts.ok_or_else(|| io::Error::other("it leads out of its directory"))
    };
    if !Path::new(namespace).components().eq([Component::Normal(namespace.as_ref())]) {
        return Err(io::Error::other("it is of no namespace"));
    }
    let root = directory.join(namespace).canonicalize()?;
    // Mounted Secrets are links, within their directory.
    let found = root.join(inside(path)?).canonicalize()?;
    if !found.starts_with(&root) {
        return Err(io::Error::other("it leads out of its directory"));
    }
    let opened = std::fs::File::open(&found)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    opened.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST { Err(io::Error::other("it is too large")) } else { Ok(bytes) }
}

type Made = Result<(Material, Arc<ClientConfig>), String>;

struct Known {
    made: Made,
    looked: Instant,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.looked.elapsed() < if self.made.is_ok() { FRESH } else { FAILED }
    }

    fn answer(&self) -> Result<Arc<ClientConfig>, String> {
        self.made.as_ref().map(|(_, config)| config.clone()).map_err(Clone::clone)
    }
}

/// The configurations of all workers.
pub(crate) struct Originations {
    directory: Option<PathBuf>,
    /// Locked for a look; never while files are read.
    known: Mutex<HashMap<Key, Known>>,
}

impl Originations {
    /// Certificates are read below `directory`; without one, none are.
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn config(&self, key: Key) -> Result<Arc<ClientConfig>, String> {
        if let Some(answer) = self.fresh(&key) {
            return answer;
        }
        let made = if key.certificates.is_none() {
            key.load(None)
        } else {
            let (key, directory) = (key.clone(), self.directory.clone());
            let loading = tokio::task::spawn_blocking(move || key.load(directory.as_deref()));
            loading.await.unwrap_or_else(|_| Err("its files could not be read".into()))
        };
        self.keep(key, made)
    }

    /// The answer that still counts. Of several who find that it does not, one looks, and the others take the old one.
    fn fresh(&self, key: &Key) -> Option<Result<Arc<ClientConfig>, String>> {
        let mut known = self.known();
        let known = known.get_mut(key)?;
        if known.is_fresh() {
            return Some(known.answer());
        }
        known.looked = Instant::now();
        None
    }

    /// Remembers what was made. Where the files are the same the configuration stays, and its connections with it.
    fn keep(&self, key: Key, made: Made) -> Result<Arc<ClientConfig>, String> {
        let mut all = self.known();
        if all.len() >= MOST && !all.contains_key(&key) {
            all.retain(|_, known| known.is_fresh());
            if all.len() >= MOST {
                all.clear();
            }
        }
        let looked = Instant::now();
        if let (Some(known), Ok((material, _))) = (all.get_mut(&key), &made)
            && known.made.as_ref().is_ok_and(|(before, _)| before == material)
        {
            known.looked = looked;
            return known.answer();
        }
        let known = Known { made, looked };
        let answer = known.answer();
        all.insert(key, known);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_below_the_directory_of_their_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(at("shop/etc/certs")).unwrap();
        std::fs::create_dir_all(at("bank")).unwrap();
        std::fs::write(at("shop/etc/certs/ca.pem"), "ca").unwrap();
        std::fs::write(at("bank/key.pem"), "key").unwrap();
        std::fs::write(at("shop/large"), vec![b'x'; LARGEST as usize + 1]).unwrap();
        std::os::unix::fs::symlink("etc/certs", at("shop/link")).unwrap();
        std::os::unix::fs::symlink("../bank/key.pem", at("shop/stolen")).unwrap();
        let read = |namespace: &str, path: &str| file(directory.path(), namespace, path).ok();
        for path in ["/etc/certs/ca.pem", "etc/certs/ca.pem", "link/ca.pem"] {
            assert_eq!(read("shop", path).as_deref(), Some(&b"ca"[..]), "{path}");
        }
        for path in ["../bank/key.pem", "/etc/../../bank/key.pem", "stolen", "etc", "large", "missing", ""] {
            assert_eq!(read("shop", path), None, "{path}");
        }
        for namespace in ["..", "", "/etc", "shop/.."] {
            assert_eq!(read(namespace, "shop/etc/certs/ca.pem"), None, "{namespace}");
        }
    }
}
