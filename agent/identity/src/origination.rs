//! TLS that the mesh begins for an application, with certificates of the application's own (D-18).
//!
//! Nothing here reads files: PEM texts come in, a rustls configuration comes out. Where an authority is given, the
//! server's chain must end there, be in time, not be revoked, and carry one of the wanted names. Where none is given
//! nobody vouches for names, so that asking for names is an error. No session is resumed: a resumed one would not be
//! verified again.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};

/// What a client of a TLS server verifies with and presents, as PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Material {
    /// Certificates of the authorities that the server's may come from; `None` verifies nothing.
    pub authorities: Option<Vec<u8>>,
    /// Lists of what those authorities have revoked.
    pub revoked: Option<Vec<u8>>,
    /// The client's certificate, with those between it and its authority, and its key.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginationError {
    /// A PEM text holds something else, or nothing.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// What the text should hold.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Names are wanted, but nobody vouches for any.
    #[error("names in a certificate prove nothing without the certificates of an authority")]
    NamesWithoutAuthority,
}

fn unusable(what: &'static str, why: &dyn fmt::Display) -> OriginationError {
    OriginationError::Unusable { what, why: why.to_string() }
}

/// A configuration that offers `protocol` (ALPN), where there is one to offer. A server must have one of `names`: host names, addresses or URIs;
/// none stands for the name that it is asked for.
///
/// # Errors
///
/// A text cannot be used, or names are wanted without an authority.
pub fn client_config(
    material: &Material,
    names: &[Arc<str>],
    protocol: Option<&[u8]>,
) -> Result<Arc<ClientConfig>, OriginationError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match &material.authorities {
        Some(authorities) => {
            let chain = chain(authorities, material.revoked.as_deref(), &provider)?;
            Arc::new(Verified { chain, names: names.into() })
        }
        None if names.is_empty() => Arc::new(Unverified(provider.clone())),
        None => return Err(OriginationError::NamesWithoutAuthority),
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| unusable("the provider of TLS", &error))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &material.own {
        Some((certificates, key)) => {
            let key =
                PrivateKeyDer::from_pem_slice(key).map_err(|error| unusable("the client's key", &error))?;
            let built = builder.with_client_auth_cert(read("the client's certificate", certificates)?, key);
            built.map_err(|error| unusable("the client's certificate with its key", &error))?
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    Ok(Arc::new(config))
}

fn read(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, OriginationError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| unusable(what, &error))?;
    if read.is_empty() { Err(unusable(what, &"it holds no certificate")) } else { Ok(read) }
}

fn chain(
    authorities: &[u8],
    revoked: Option<&[u8]>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, OriginationError> {
    const AUTHORITIES: &str = "the certificates of the authorities";
    const REVOKED: &str = "the list of revoked certificates";
    let mut roots = RootCertStore::empty();
    for authority in read(AUTHORITIES, authorities)? {
        roots.add(authority).map_err(|error| unusable(AUTHORITIES, &error))?;
    }
    let mut builder = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
    if let Some(revoked) = revoked {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(revoked).collect();
        let lists = lists.map_err(|error| unusable(REVOKED, &error))?;
        if lists.is_empty() {
            return Err(unusable(REVOKED, &"it holds no list"));
        }
        builder = builder.with_crls(lists);
    }
    builder.build().map_err(|error| unusable(REVOKED, &error))
}

/// Verifies the chain, then the names.
#[derive(Debug)]
struct Verified {
    chain: Arc<WebPkiServerVerifier>,
    /// One of them must stand in the certificate; none is the name that was asked for.
    names: Box<[Arc<str>]>,
}

impl ServerCertVerifier for Verified {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The chain comes first: that the name is wrong is only said of a certificate that is right otherwise.
        let verified = self.chain.verify_server_cert(certificate, between, asked, ocsp, now);
        let named = match &verified {
            Ok(_) => true,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => false,
            Err(_) => return verified,
        };
        if self.names.is_empty() {
            return verified;
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        let wanted = |name: &Arc<str>| match ServerName::try_from(&**name) {
            // Also where the certificate has a wildcard.
            Ok(name) => (named && name == *asked) || verify_server_name(&parsed, &name).is_ok(),
            Err(_) => has_uri(certificate, name),
        };
        if self.names.iter().any(wanted) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Whether a URI stands among a certificate's names.
fn has_uri(certificate: &CertificateDer<'_>, uri: &str) -> bool {
    webpki::EndEntityCert::try_from(certificate)
        .is_ok_and(|certificate| certificate.valid_uri_names().any(|name| name == uri))
}

/// Accepts every certificate, but only from its owner.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "origination_tests.rs"]
mod tests;
