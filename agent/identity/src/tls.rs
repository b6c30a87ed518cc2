//! TLS for HBONE: what is offered, what is accepted, how SPIFFE identities are verified.
//!
//! Interoperates with ztunnel: TLS 1.3 with AES-GCM, ALPN `h2`, a client certificate always, no SNI, no
//! resumption (every tunnel proves both identities afresh). Verification is the chain, the extended key
//! usage, and exactly one URI name that is a SPIFFE identity of our trust domain or one of its aliases; DNS
//! names are never looked at. ztunnel is content with any one URI among several; the SPIFFE X.509-SVID
//! specification (section 2) demands exactly one, Istio's CAs issue exactly one, and a second one could only
//! make two readers of one certificate see two identities.

mod verify;

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use weft_core::Identity;

use crate::IdentityError;
use verify::{ClientVerifier, ServerVerifier, Trust};

pub(crate) use verify::LiveRoots;

pub use verify::{PeerVerificationError, explain, peer_identity};

/// The only protocol inside: HTTP/2 (spec section 1, "ALPN both directions: exactly `h2`").
const ALPN: &[u8] = b"h2";

/// The provider of every TLS configuration here; no process default is needed or set.
///
/// AES-128 comes first: it is the faster of the two suites that ztunnel speaks, on every processor, with and
/// without AES instructions. The hybrid group comes first so that recorded traffic stays secret when
/// X25519 falls; peers without it get X25519 in the same flight.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ],
            kx_groups: vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
                aws_lc_rs::kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// The name of the key exchange group of a finished handshake, for example `X25519MLKEM768`.
pub fn key_exchange_group(connection: &CommonState) -> Option<&'static str> {
    connection.negotiated_key_exchange_group().and_then(|group| group.name().as_str())
}

/// TLS configurations of one identity: TLS 1.3, ALPN `h2`, no resumption, no SNI, hybrid key exchange first.
///
/// A renewed certificate is a new `Hbone`, and connections keep the configuration that they were made with.
/// Only the roots are those of the moment of a handshake.
pub struct Hbone {
    identity: Identity,
    not_after: SystemTime,
    fingerprint: Arc<str>,
    server: Arc<ServerConfig>,
    client: ClientConfig,
    trust: Arc<Trust>,
}

impl Hbone {
    /// From PEM: the chain (leaf first), its private key (PKCS#8, SEC1 or PKCS#1) and the roots to trust.
    /// `aliases` are further trust domains whose identities count as ours.
    ///
    /// # Errors
    /// [`IdentityError::InvalidAnswer`] when something does not parse, key and leaf do not belong together,
    /// or peers that trust these roots would not accept the chain as `identity` at this moment.
    pub fn from_pem(
        identity: &Identity,
        chain_pem: &str,
        key_pem: &str,
        roots_pem: &str,
        aliases: &[Arc<str>],
    ) -> Result<Self, IdentityError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| IdentityError::InvalidAnswer(format!("the private key is no PEM: {error}")))?;
        let parts = Parts::parse(identity, chain_pem, key, roots_pem, aliases)?;
        parts.check(SystemTime::now())?;
        parts.build()
    }

    /// The identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Expiry of the certificate.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of the certificate in hex ([`crate::fingerprint()`]).
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }

    /// For accepting: asks for a client certificate whose chain verifies and whose SPIFFE trust domain is ours.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For dialling: accepts only a server that proves to be `expected`.
    ///
    /// A configuration is a copy of a dozen pointers with another verifier, made per call: 3 µs in a build
    /// without optimisation, beside a handshake of hundreds. So there is no cache that would need a bound.
    pub fn client(&self, expected: &Identity) -> Arc<ClientConfig> {
        let mut client = self.client.clone();
        client
            .dangerous()
            .set_certificate_verifier(Arc::new(ServerVerifier::new(&self.trust, expected.clone())));
        Arc::new(client)
    }
}

impl std::fmt::Debug for Hbone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hbone")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What a [`Hbone`] is made of: parsed, not yet checked.
pub(crate) struct Parts {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    not_after: SystemTime,
    /// The roots of the same answer.
    roots: Arc<LiveRoots>,
    trust: Arc<Trust>,
}

impl Parts {
    /// Parses everything. Nothing is verified, so that tests can make parts that are wrong.
    pub(crate) fn parse(
        identity: &Identity,
        chain_pem: &str,
        key: PrivateKeyDer<'static>,
        roots_pem: &str,
        aliases: &[Arc<str>],
    ) -> Result<Self, IdentityError> {
        let chain = certificates(chain_pem, "the certificate chain")?;
        let leaf =
            chain.first().ok_or_else(|| invalid("the certificate chain holds no certificate".to_owned()))?;
        let not_after = not_after(leaf)?;
        let roots = certificates(roots_pem, "the root bundle")?;
        let roots = Arc::new(LiveRoots::new(roots).map_err(invalid)?);
        let domains =
            std::iter::once(identity.trust_domain().into()).chain(aliases.iter().cloned()).collect();
        Ok(Self {
            identity: identity.clone(),
            chain,
            key,
            not_after,
            trust: Arc::new(Trust::new(Arc::clone(&roots), domains)),
            roots,
        })
    }

    /// Checks at `now` what a peer would check, in both roles: better no certificate than one that every
    /// peer refuses.
    pub(crate) fn check(&self, now: SystemTime) -> Result<(), IdentityError> {
        let (leaf, intermediates) =
            self.chain.split_first().ok_or_else(|| invalid("the certificate chain is empty".to_owned()))?;
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| IdentityError::Internal("the system clock stands before 1970".to_owned()))?;
        let now = UnixTime::since_unix_epoch(since_epoch);
        let refused = |error: rustls::Error| invalid(format!("peers would refuse it: {}", explain(&error)));
        self.trust.server_chain(leaf, intermediates, now).map_err(refused)?;
        let proven = ClientVerifier::new(&self.trust).verify(leaf, intermediates, now).map_err(refused)?;
        if proven != self.identity {
            return Err(invalid(format!("it is for {proven}, but {} was asked for", self.identity)));
        }
        Ok(())
    }

    /// The roots that came with the certificate.
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.certificates()
    }

    /// The same, trusting roots that somebody else keeps up to date.
    pub(crate) fn trusting(mut self, roots: Arc<LiveRoots>) -> Self {
        self.trust = Arc::new(Trust::new(Arc::clone(&roots), self.trust.domains().to_vec()));
        self.roots = roots;
        self
    }

    /// Builds both configurations; fails when the key does not belong to the leaf.
    pub(crate) fn build(self) -> Result<Hbone, IdentityError> {
        let client = client_config(&self)?;
        let server = server_config(&self)?;
        let leaf = self.chain.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
        Ok(Hbone {
            fingerprint: crate::fingerprint(leaf),
            identity: self.identity,
            not_after: self.not_after,
            server: Arc::new(server),
            client,
            trust: self.trust,
        })
    }
}

fn server_config(parts: &Parts) -> Result<ServerConfig, IdentityError> {
    let verifier = ClientVerifier::new(&parts.trust);
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(internal)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(parts.chain.clone(), parts.key.clone_key())
        .map_err(key_error)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // The record layer is `weft-tls`, which takes the keys over from rustls.
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// The base of all client configurations: its verifier, which expects ourselves, is always replaced.
fn client_config(parts: &Parts) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(&parts.trust, parts.identity.clone())))
        .with_client_auth_cert(parts.chain.clone(), parts.key.clone_key())
        .map_err(key_error)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // As on the server.
    config.enable_secret_extraction = true;
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("{what} is no PEM: {error}")))
}

fn not_after(leaf: &CertificateDer<'_>) -> Result<SystemTime, IdentityError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| invalid(format!("the leaf certificate is malformed: {error}")))?;
    Ok(certificate.validity().not_after.to_datetime().into())
}

fn invalid(reason: String) -> IdentityError {
    IdentityError::InvalidAnswer(reason)
}

fn internal(error: rustls::Error) -> IdentityError {
    IdentityError::Internal(format!("TLS cannot be configured: {error}"))
}

fn key_error(error: rustls::Error) -> IdentityError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            invalid("the certificate does not belong to the private key".to_owned())
        }
        other => invalid(format!("certificate and key cannot be used: {other}")),
    }
}

/// A moment for people: RFC 3339 in UTC, whole seconds.
pub(crate) fn date(moment: SystemTime) -> String {
    jiff::Timestamp::try_from(moment)
        .and_then(|moment| moment.round(jiff::Unit::Second))
        .map_or_else(|_| format!("{moment:?}"), |moment| moment.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
