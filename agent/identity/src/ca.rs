//! The CA: signs certificate requests with a key that it loads or creates in its state directory.

mod files;

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use weft_core::Identity;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::tls::date;
use crate::{SignedCertificate, random};

/// Life of a root that is created here.
const ROOT_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);

/// The longest life of a leaf unless [`Ca::with_max_lifetime`] says otherwise; what ztunnel asks for.
const MAX_LIFETIME: Duration = Duration::from_hours(24);

/// How far behind ours another node's clock may be before it refuses a new certificate.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A request with an EC key is under 1 KiB.
const MAX_CSR_BYTES: usize = 16 * 1024;

/// Why a request was not signed. `Display` is told to the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The caller may not have this identity; the text says why.
    #[error("{0}")]
    Forbidden(String),
    /// The request is malformed.
    #[error("{0}")]
    InvalidRequest(String),
    /// The CA itself failed.
    #[error("{0}")]
    Internal(String),
}

/// A CA with its key in memory.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root_not_after: SystemTime,
    trust_domain: String,
    max_lifetime: Duration,
}

impl Ca {
    /// Loads `root-key.pem` and `root-cert.pem` from `dir`, or creates both (key mode 0600, directory 0700)
    /// when there is neither. What exists is never replaced.
    ///
    /// # Errors
    /// [`CaError::Internal`] when others could read the key or replace the files, when only one of both
    /// files is there, when they do not belong together, or when the root is expired or no CA.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let stored = files::load_or_create(dir, || new_root(trust_domain))?;
        let key = KeyPair::from_pem(&stored.key_pem).map_err(|error| {
            CaError::Internal(format!("the CA key {} is not usable: {error}", stored.key_path.display()))
        })?;
        let unusable = |reason: String| {
            CaError::Internal(format!(
                "the root certificate {} is not usable: {reason}",
                stored.cert_path.display()
            ))
        };
        let root_not_after = check_root(&stored.cert_pem, &key).map_err(&unusable)?;
        let issuer = Issuer::from_ca_cert_pem(&stored.cert_pem, key)
            .map_err(|error| unusable(format!("it does not parse: {error}")))?;
        Ok(Self {
            issuer,
            root_pem: stored.cert_pem,
            root_not_after,
            trust_domain: trust_domain.to_owned(),
            max_lifetime: MAX_LIFETIME,
        })
    }

    /// Caps the life of every leaf at `lifetime` (24 hours when this is not called).
    #[must_use]
    pub fn with_max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = lifetime;
        self
    }

    /// The longest life that a leaf gets.
    pub fn max_lifetime(&self) -> Duration {
        self.max_lifetime
    }

    /// Signs `csr_pem` for exactly `identity`. The caller has checked that the requester may have it.
    ///
    /// Nothing of the request but its public key gets into the certificate. `lifetime` is capped by
    /// [`Ca::max_lifetime`] and by the root's own expiry.
    ///
    /// # Errors
    /// [`CaError::InvalidRequest`] when the request does not parse, is not signed by its own key (proof of
    /// possession), has another key than EC P-256 or P-384, or names another identity;
    /// [`CaError::Forbidden`] for an identity of another trust domain.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<SignedCertificate, CaError> {
        if identity.trust_domain() != self.trust_domain {
            return Err(CaError::Forbidden(format!(
                "{identity} is not of this CA's trust domain `{}`",
                self.trust_domain
            )));
        }
        let public_key = verified_public_key(csr_pem, identity)?;
        let params = self.leaf_params(identity, lifetime, SystemTime::now())?;
        let leaf = params
            .signed_by(&public_key, &self.issuer)
            .map_err(|error| CaError::Internal(format!("the CA could not sign: {error}")))?;
        Ok(SignedCertificate { chain_pem: vec![leaf.pem()], roots_pem: vec![self.root_pem.clone()] })
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    fn leaf_params(
        &self,
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<CertificateParams, CaError> {
        if lifetime.is_zero() {
            return Err(CaError::InvalidRequest("a certificate must live longer than 0 seconds".to_owned()));
        }
        if self.root_not_after <= now {
            let expired = date(self.root_not_after);
            return Err(CaError::Internal(format!("the root certificate expired at {expired}")));
        }
        let not_after = (now + lifetime.min(self.max_lifetime)).min(self.root_not_after);
        let mut params = CertificateParams::default();
        // Without a subject the subject alternative name is critical (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name(identity)?];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = not_after.into();
        params.serial_number = Some(random_serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca")
            .field("trust_domain", &self.trust_domain)
            .field("root_not_after", &self.root_not_after)
            .finish_non_exhaustive()
    }
}

/// A new root: key and certificate, PEM.
fn new_root(trust_domain: &str) -> Result<(String, String), CaError> {
    let failed = |error: rcgen::Error| CaError::Internal(format!("the CA's root cannot be made: {error}"));
    let key = KeyPair::generate().map_err(failed)?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    // A name of its own lets peers say "unknown issuer" where two meshes of one trust domain meet.
    let serial = random_serial()?;
    let name = serial.to_bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    params.distinguished_name.push(DnType::CommonName, format!("Weft root {name}"));
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

/// Checks a root certificate and answers its expiry.
fn check_root(cert_pem: &str, key: &KeyPair) -> Result<SystemTime, String> {
    let mut all = rustls_pki_types::CertificateDer::pem_slice_iter(cert_pem.as_bytes());
    let der = match (all.next(), all.next()) {
        (Some(Ok(der)), None) => der,
        (None, _) => return Err("it holds no certificate".to_owned()),
        (Some(Err(error)), _) => return Err(format!("it is no PEM: {error}")),
        (Some(_), Some(_)) => return Err("it must hold exactly one certificate".to_owned()),
    };
    let (_, root) = x509_parser::parse_x509_certificate(&der).map_err(|error| error.to_string())?;
    if root.public_key().raw != key.subject_public_key_info() {
        return Err("it does not belong to root-key.pem; restore the pair from a backup".to_owned());
    }
    if !root.is_ca() {
        return Err("it is not the certificate of a CA".to_owned());
    }
    let not_after: SystemTime = root.validity().not_after.to_datetime().into();
    if not_after <= SystemTime::now() {
        return Err(format!("it expired at {}", date(not_after)));
    }
    Ok(not_after)
}

/// The public key of a request that is well-formed, signed by that key, and compatible with `identity`.
fn verified_public_key(csr_pem: &str, identity: &Identity) -> Result<SubjectPublicKeyInfo, CaError> {
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
    let algorithm = key.algorithm();
    if algorithm != &rcgen::PKCS_ECDSA_P256_SHA256 && algorithm != &rcgen::PKCS_ECDSA_P384_SHA384 {
        return Err(invalid("must have an EC key on curve P-256 or P-384".to_owned()));
    }
    csr.verify_signature().map_err(|_| invalid("is not signed by its own key".to_owned()))?;
    match foreign_uri(&csr, identity) {
        Some(uri) => Err(invalid(format!("names `{uri}`, but {identity} is asked for"))),
        None => Ok(key),
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

fn uri_name(identity: &Identity) -> Result<SanType, CaError> {
    let uri = identity.to_string();
    let uri = uri
        .as_str()
        .try_into()
        .map_err(|_| CaError::InvalidRequest(format!("{uri} cannot be written in a certificate")))?;
    Ok(SanType::URI(uri))
}

/// 126 random bits, positive and of constant length (RFC 5280, 4.1.2.2).
fn random_serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    random::fill(&mut bytes).map_err(CaError::Internal)?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests;
