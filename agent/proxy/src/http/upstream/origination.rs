//! TLS that a client's policy asks for towards endpoints that are not the mesh's: SIMPLE (D-18).
//!
//! Without certificates in the policy the endpoint's certificate is not verified, as the API says; a policy that
//! names certificates or the names that one must have, or wants to present one, is not kept at all rather than kept
//! in part.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_core::decide::http::Cluster;
use weft_core::resource::destination_rule::{ClientTls, ClientTlsMode};

use super::UpstreamProtocol;

/// Why a policy cannot be kept.
const UNREAD: &str = "the DestinationRule's `tls` names certificates, which the mesh does not read; \
     use ISTIO_MUTUAL, or SIMPLE without certificates";

/// Why names cannot be kept: a name in a certificate that nobody vouches for proves nothing.
const UNVERIFIED: &str = "the DestinationRule's `tls.subjectAltNames` cannot be verified without certificates of an \
     authority, which the mesh does not read; remove them, use ISTIO_MUTUAL, or let the application speak TLS itself";

/// The name that a TLS server is asked for.
///
/// `Ok(None)` where the policy asks for no TLS of the client's own.
///
/// # Errors
///
/// The policy cannot be kept; the text says why.
pub(super) fn server_name(cluster: &Cluster) -> Result<Option<ServerName<'static>>, &'static str> {
    match &cluster.policy.tls {
        Some(ClientTls { mode: ClientTlsMode::Simple, certificates: false, sni, subject_alt_names }) => {
            if !subject_alt_names.is_empty() {
                return Err(UNVERIFIED);
            }
            let name = sni.as_ref().unwrap_or(&cluster.host).to_string();
            let name = ServerName::try_from(name);
            name.map(Some).map_err(|_| "the DestinationRule's `tls.sni` is not the name of a server")
        }
        Some(ClientTls { mode: ClientTlsMode::Simple | ClientTlsMode::Mutual, .. }) => Err(UNREAD),
        None | Some(ClientTls { mode: ClientTlsMode::Disable | ClientTlsMode::IstioMutual, .. }) => Ok(None),
    }
}

/// How a TLS connection is made on which `protocol` is spoken.
pub(super) fn config(protocol: UpstreamProtocol) -> Arc<ClientConfig> {
    static CONFIGS: [OnceLock<Arc<ClientConfig>>; 2] = [OnceLock::new(), OnceLock::new()];
    let [http1, http2] = &CONFIGS;
    let (config, alpn) = match protocol {
        UpstreamProtocol::Http1 => (http1, "http/1.1"),
        UpstreamProtocol::Http2 => (http2, "h2"),
    };
    let make = || {
        let builder = ClientConfig::builder();
        let verifier = Arc::new(Unverified(builder.crypto_provider().clone()));
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![alpn.into()];
        Arc::new(config)
    };
    config.get_or_init(make).clone()
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
