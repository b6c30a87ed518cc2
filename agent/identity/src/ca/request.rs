//! What is accepted as a certificate request.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use weft_core::Identity;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::CaError;

/// A request with an EC key is under 1 KiB.
const MAX_CSR_BYTES: usize = 16 * 1024;

/// The public key of a request that is well-formed, signed by that key, and compatible with `identity`.
pub(super) fn verified_public_key(
    csr_pem: &str,
    identity: &Identity,
) -> Result<SubjectPublicKeyInfo, CaError> {
    let invalid = |reason: String| CaError::InvalidRequest(format!("the certificate request {reason}"));
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(invalid(format!("is longer than {MAX_CSR_BYTES} bytes")));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|error| invalid(format!("is no PEM: {error}")))?;
    let (rest, csr) = X509CertificationRequest::from_der(&der)
        .map_err(|error| invalid(format!("is malformed: {error}")))?;
    if !rest.is_empty() {
        return Err(invalid("has trailing bytes".to_owned()));
    }
    let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|error| invalid(format!("has an unusable public key: {error}")))?;
    if !is_strong(&csr, &key) {
        return Err(invalid(
            "must have an EC key on curve P-256 or P-384, or an RSA key of 2048 to 4096 bits".to_owned(),
        ));
    }
    csr.verify_signature().map_err(|_| invalid("is not signed by its own key".to_owned()))?;
    match foreign_uri(&csr, identity) {
        Some(uri) => Err(invalid(format!("names `{uri}`, but {identity} is asked for"))),
        None => Ok(key),
    }
}

/// Whether the key is of a kind that Istio's clients make: RSA is what the agent of a sidecar takes when nobody says
/// anything, EC is ours and ztunnel's.
fn is_strong(csr: &X509CertificationRequest<'_>, key: &SubjectPublicKeyInfo) -> bool {
    let curves = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
    match csr.certification_request_info.subject_pki.parsed() {
        Ok(PublicKey::RSA(rsa)) => (2048..=4096).contains(&rsa.key_size()),
        Ok(_) | Err(_) => curves.contains(&key.algorithm()),
    }
}

/// A URI name in the request that is not `identity`. Other names are ignored: they are not signed.
fn foreign_uri(csr: &X509CertificationRequest<'_>, identity: &Identity) -> Option<String> {
    let identity = identity.to_string();
    csr.requested_extensions()
        .into_iter()
        .flatten()
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .find_map(|name| match name {
            GeneralName::URI(uri) if *uri != identity => Some((*uri).to_owned()),
            _ => None,
        })
}
