//! Certificates of the controller's own servers, issued by its own CA: DNS names, no identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::Instant;

use super::{Ca, CaError, LiveCa, random_serial};
use crate::{random, tls};

/// How often the wall clock is looked at, which may jump.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// Pause after a failure to issue: then the CA has expired, and only another one helps.
const RETRY: Duration = Duration::from_secs(5);

/// TLS of a server whose certificate comes from our own CA and is renewed at half of its life, and at once
/// when the CA is another one.
///
/// A peer of the mesh does not take it for a workload: it has no SPIFFE identity.
pub struct ServingTls {
    ca: Arc<LiveCa>,
    names: Vec<String>,
    alpn: Vec<Vec<u8>>,
    config: ArcSwap<ServerConfig>,
}

impl ServingTls {
    /// For these DNS names and application protocols (`h2`, `http/1.1`).
    ///
    /// # Errors
    /// [`CaError::Internal`] when the CA has expired; [`CaError::InvalidRequest`] for a name that is none.
    pub fn new(ca: Arc<LiveCa>, names: Vec<String>, alpn: &[&str]) -> Result<Arc<Self>, CaError> {
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let config = issue(&ca.current(), &names, &alpn)?;
        Ok(Arc::new(Self { ca, names, alpn, config: ArcSwap::from_pointee(config) }))
    }

    /// The configuration for a connection that is accepted now.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Renews for ever. Connections keep what they have begun with.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn keep_fresh(&self) {
        let mut changes = self.ca.subscribe();
        let mut due = half_life(&changes.borrow_and_update());
        loop {
            tokio::select! {
                // The sender lives in `self`.
                _ = changes.changed() => {}
                () = until(due) => {}
            }
            let ca = Arc::clone(&changes.borrow_and_update());
            match issue(&ca, &self.names, &self.alpn) {
                Ok(config) => {
                    self.config.store(Arc::new(config));
                    due = half_life(&ca);
                }
                Err(error) => {
                    tracing::error!(%error, "the controller's own certificate is not renewed");
                    due = SystemTime::now() + RETRY;
                }
            }
        }
    }
}

impl std::fmt::Debug for ServingTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingTls").field("names", &self.names).finish_non_exhaustive()
    }
}

fn half_life(ca: &Ca) -> SystemTime {
    let now = SystemTime::now();
    let left = ca.not_after().duration_since(now).unwrap_or_default();
    let half = (left.min(ca.max_lifetime()) / 2).mul_f64(random::jitter(0.1)).max(RETRY);
    now.checked_add(half).unwrap_or(now + RETRY)
}

async fn until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep_until(Instant::now() + left.min(CLOCK_CHECK)).await;
    }
}

fn issue(ca: &Ca, names: &[String], alpn: &[Vec<u8>]) -> Result<ServerConfig, CaError> {
    let failed = |error: rcgen::Error| CaError::Internal(format!("the CA could not sign: {error}"));
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params(ca, names)?.signed_by(&key, &ca.issuer).map_err(failed)?;
    let mut chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    chain.extend(ca.intermediates.iter().map(|block| block.der.clone()));
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let unusable =
        |error: rustls::Error| CaError::Internal(format!("the certificate cannot be served: {error}"));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(tls::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}

fn params(ca: &Ca, names: &[String]) -> Result<CertificateParams, CaError> {
    let (not_before, not_after) = ca.life(ca.max_lifetime(), SystemTime::now())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.iter().map(|name| dns_name(name)).collect::<Result<_, _>>()?;
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.serial_number = Some(random_serial()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn dns_name(name: &str) -> Result<SanType, CaError> {
    let invalid = || CaError::InvalidRequest(format!("`{name}` is no DNS name"));
    Ok(SanType::DnsName(name.try_into().map_err(|_| invalid())?))
}
