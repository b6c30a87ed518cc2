//! Verification of peers: chain, extended key usage, SPIFFE identity.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_core::Identity;

use super::{date, provider};

/// Why a peer's certificate was not accepted. `Display` goes to the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PeerVerificationError(pub String);

impl From<PeerVerificationError> for Error {
    fn from(error: PeerVerificationError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The SPIFFE identity in a verified peer's leaf certificate.
///
/// # Errors
/// When there is no leaf, it is malformed, or it does not have exactly one URI name that is a workload
/// identity.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerVerificationError> {
    let Some(leaf) = chain.first() else {
        return Err(PeerVerificationError("the peer presented no certificate".to_owned()));
    };
    let leaf = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| PeerVerificationError(format!("the peer's certificate is malformed: {error}")))?;
    let mut uris = leaf.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|error| {
            PeerVerificationError(format!("the peer's certificate has no identity: {error}"))
        }),
        (Some(first), Some(second)) => Err(PeerVerificationError(format!(
            "the peer's certificate has several URI names (`{first}`, `{second}`), but exactly one is its identity"
        ))),
        (None, _) => Err(PeerVerificationError(
            "the peer's certificate has no URI name, so it proves no identity".to_owned(),
        )),
    }
}

/// The roots of the moment. Handshakes load them when a peer is verified, so that a rotation of roots needs
/// neither new configurations nor new connections.
#[derive(Debug)]
pub(crate) struct LiveRoots(ArcSwap<Roots>);

#[derive(Debug)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl LiveRoots {
    /// Fails when there is none, or one is malformed.
    pub(crate) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        Ok(Self(ArcSwap::from_pointee(Roots::new(certificates)?)))
    }

    /// Handshakes that verify their peer from now on trust these and no others.
    pub(crate) fn replace(&self, certificates: Vec<CertificateDer<'static>>) -> Result<(), String> {
        self.0.store(Arc::new(Roots::new(certificates)?));
        Ok(())
    }

    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.0.load().certificates.clone()
    }
}

impl Roots {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        if certificates.is_empty() {
            return Err("the root bundle holds no certificate".to_owned());
        }
        let mut store = RootCertStore::empty();
        for root in &certificates {
            store.add(root.clone()).map_err(|error| format!("a root certificate is malformed: {error}"))?;
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(provider()))
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| format!("the roots cannot verify clients: {error}"))?;
        Ok(Self { certificates, store, clients })
    }
}

/// Whom this identity trusts: roots, and the trust domains that count as its own.
#[derive(Debug)]
pub(super) struct Trust {
    roots: Arc<LiveRoots>,
    /// Own trust domain first, then aliases.
    domains: Vec<Arc<str>>,
}

impl Trust {
    pub(super) fn new(roots: Arc<LiveRoots>, domains: Vec<Arc<str>>) -> Self {
        Self { roots, domains }
    }

    pub(super) fn domains(&self) -> &[Arc<str>] {
        &self.domains
    }

    fn algorithms() -> &'static WebPkiSupportedAlgorithms {
        &provider().signature_verification_algorithms
    }

    /// Verifies a server's chain, without its identity.
    pub(super) fn server_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = Self::algorithms().all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots.0.load().store,
            intermediates,
            now,
            algorithms,
        )
    }

    /// The identity of a leaf whose chain is verified, when its trust domain is ours.
    fn identity(&self, leaf: &CertificateDer<'_>) -> Result<Identity, PeerVerificationError> {
        let identity = peer_identity(std::slice::from_ref(leaf))?;
        if self.is_ours(&identity) {
            return Ok(identity);
        }
        Err(PeerVerificationError(format!(
            "the peer is {identity}, of another trust domain than ours (`{}`)",
            self.domains.join("`, `")
        )))
    }

    fn is_ours(&self, identity: &Identity) -> bool {
        self.domains.iter().any(|domain| **domain == *identity.trust_domain())
    }

    /// Whether both name the same workload: equal, or of two of our trust domains and otherwise equal.
    fn same_workload(&self, one: &Identity, other: &Identity) -> bool {
        one == other
            || (one.namespace() == other.namespace()
                && one.service_account() == other.service_account()
                && self.is_ours(one)
                && self.is_ours(other))
    }
}

/// Verifies the clients of a server.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    trust: Arc<Trust>,
}

impl ClientVerifier {
    pub(super) fn new(trust: &Arc<Trust>) -> Self {
        Self { trust: Arc::clone(trust) }
    }

    /// Verifies chain and identity.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, Error> {
        self.trust.roots.0.load().clients.verify_client_cert(leaf, intermediates, now)?;
        Ok(self.trust.identity(leaf)?)
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The roots may change, and peers choose their certificate without hints.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, Trust::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, Trust::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Trust::algorithms().supported_schemes()
    }
}

/// Verifies that a server is the one workload that was dialled.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Arc<Trust>,
    expected: Identity,
}

impl ServerVerifier {
    pub(super) fn new(trust: &Arc<Trust>, expected: Identity) -> Self {
        Self { trust: Arc::clone(trust), expected }
    }
}

impl ServerCertVerifier for ServerVerifier {
    /// The name that was dialled is of no interest (spec section 1: "DNS names are never checked").
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trust.server_chain(leaf, intermediates, now)?;
        let identity = self.trust.identity(leaf)?;
        if !self.trust.same_workload(&identity, &self.expected) {
            let text = format!("the peer is {identity}, but {} was expected", self.expected);
            return Err(PeerVerificationError(text).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, Trust::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, Trust::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Trust::algorithms().supported_schemes()
    }
}

/// A failed handshake in words: what was wrong with whose certificate, with dates.
///
/// Takes what a handshake returns: a [`rustls::Error`] or an I/O error around one. The error itself keeps
/// rustls' own variants, because they decide which alert the peer sees.
pub fn explain(error: &(dyn StdError + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<Error>() {
        return explain_tls(error);
    }
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => explain(inner),
        None => error.to_string(),
    }
}

fn explain_tls(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => explain_certificate(reason),
        Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        Error::AlertReceived(alert) => {
            format!("the peer ended the handshake with the alert {alert:?}; its log knows the reason")
        }
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => {
            format!("the peer does not speak HBONE (TLS 1.3, AES-GCM, ALPN h2): {error}")
        }
        other => other.to_string(),
    }
}

fn explain_certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the peer's certificate expired at {}", unix_date(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!(
                "the peer's certificate is not valid before {}; do the clocks of both nodes agree?",
                unix_date(not_before)
            )
        }
        CertificateError::UnknownIssuer => {
            "the peer's certificate was not issued by any root that is trusted here (unknown issuer)"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "the signature of the peer's certificate is wrong; did another CA with the name of ours issue it?"
                .to_owned()
        }
        CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "the peer presented the certificate of a CA as its own".to_owned()
            }
            Some(error) => format!("the peer's certificate is not acceptable: {error}"),
            None => inner.to_string(),
        },
        other => format!("the peer's certificate is not acceptable: {other}"),
    }
}

fn unix_date(time: &UnixTime) -> String {
    date(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}
