//! The CA: signs certificate requests with a key from its state directory or from an operator's hand.

mod files;
mod live;
mod material;
mod request;
mod serving;

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use weft_core::Identity;

use crate::bundle::{self, Block};
use crate::tls::{Parts, date};
use crate::{SignedCertificate, random};
use material::Parsed;

pub use live::LiveCa;
pub use material::CaMaterial;
pub use serving::ServingTls;

/// Life of a root that is created here.
const ROOT_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);

/// The longest life of a leaf unless [`Ca::with_max_lifetime`] says otherwise; what ztunnel asks for.
const MAX_LIFETIME: Duration = Duration::from_hours(24);

/// How far behind ours another node's clock may be before it refuses a new certificate.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

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
    intermediates: Vec<Block>,
    root_pem: String,
    not_before: SystemTime,
    not_after: SystemTime,
    trust_domain: String,
    max_lifetime: Duration,
}

impl Ca {
    /// Loads `root-key.pem` and `root-cert.pem` from `dir`, or creates both (key mode 0600, directory 0700)
    /// when there is neither. What exists is never replaced. Of several certificates the first one signs, and
    /// all are roots that peers shall trust.
    ///
    /// # Errors
    /// [`CaError::Internal`] when others could read the key or replace the files, when only one of both
    /// files is there, when they do not belong together, or when the root is expired or no CA.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let stored = files::load_or_create(dir, || {
            CaMaterial::generate(trust_domain).map(|made| (made.key_pem, made.certificate_pem))
        })?;
        material::key(&stored.key_pem).map_err(|reason| {
            CaError::Internal(format!("the CA key {} is not usable: {reason}", stored.key_path.display()))
        })?;
        let made = CaMaterial {
            roots_pem: stored.cert_pem.clone(),
            certificate_pem: stored.cert_pem,
            key_pem: stored.key_pem,
            chain_pem: String::new(),
        };
        Self::parse(&made, trust_domain).map_err(|reason| {
            CaError::Internal(format!(
                "the root certificate {} is not usable: {reason}",
                stored.cert_path.display()
            ))
        })
    }

    /// A CA of what an operator (or cert-manager) provides: a root, or an intermediate with its chain.
    ///
    /// # Errors
    /// [`CaError::Internal`] when something does not parse, certificate and key do not belong together, the
    /// certificate is no CA's, or peers that trust the roots would not accept what it signs at this moment.
    pub fn from_material(material: &CaMaterial, trust_domain: &str) -> Result<Self, CaError> {
        Self::parse(material, trust_domain)
            .map_err(|reason| CaError::Internal(format!("the CA is not usable: {reason}")))
    }

    fn parse(material: &CaMaterial, trust_domain: &str) -> Result<Self, String> {
        let parsed = Parsed::of(material)?;
        let issuer = Issuer::from_ca_cert_der(&parsed.signing.der, parsed.key)
            .map_err(|error| format!("its name cannot be written in certificates: {error}"))?;
        let ca = Self {
            issuer,
            intermediates: parsed.intermediates,
            root_pem: bundle::text(&parsed.roots),
            not_before: parsed.not_before,
            not_after: parsed.not_after,
            trust_domain: trust_domain.to_owned(),
            max_lifetime: MAX_LIFETIME,
        };
        ca.prove()?;
        Ok(ca)
    }

    /// Signs a certificate that nobody gets and looks at it as a peer would.
    fn prove(&self) -> Result<(), String> {
        let identity = Identity::new(&*self.trust_domain, "weft-system", "weft-controller");
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let now = SystemTime::now();
        let leaf = self
            .leaf_params(&identity, Duration::from_secs(60), now)
            .map_err(|error| error.to_string())?
            .signed_by(&key, &self.issuer)
            .map_err(|error| format!("it cannot sign: {error}"))?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let chain = self.chain(leaf.pem()).concat();
        let parts = Parts::parse(&identity, &chain, key, &self.root_pem, &[]);
        parts
            .and_then(|parts| parts.check(now))
            .map_err(|error| format!("what it signs does not lead to one of its roots: {error}"))
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
    /// possession), has a key that is not EC P-256, EC P-384 or RSA of 2048 to 4096 bits, or names another identity;
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
        let public_key = request::verified_public_key(csr_pem, identity)?;
        let params = self.leaf_params(identity, lifetime, SystemTime::now())?;
        let leaf = params
            .signed_by(&public_key, &self.issuer)
            .map_err(|error| CaError::Internal(format!("the CA could not sign: {error}")))?;
        Ok(SignedCertificate { chain_pem: self.chain(leaf.pem()), roots_pem: vec![self.root_pem.clone()] })
    }

    /// The roots that peers shall trust, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The trust domain of every identity that it signs.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// When the first certificate between a leaf and its root expires; no leaf lives longer.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What is sent to peers: the leaf and everything between it and a root.
    fn chain(&self, leaf_pem: String) -> Vec<String> {
        std::iter::once(leaf_pem).chain(self.intermediates.iter().map(|block| block.pem.clone())).collect()
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
        let (not_before, not_after) = self.life(lifetime, now)?;
        let mut params = CertificateParams::default();
        // Without a subject the subject alternative name is critical (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name(identity)?];
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(random_serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    /// From when until when a certificate of this life is valid: never outside of what its issuers are.
    fn life(&self, lifetime: Duration, now: SystemTime) -> Result<(SystemTime, SystemTime), CaError> {
        if self.not_after <= now {
            let expired = date(self.not_after);
            return Err(CaError::Internal(format!("the CA's certificate expired at {expired}")));
        }
        let wanted = now.checked_add(lifetime.min(self.max_lifetime)).unwrap_or(self.not_after);
        Ok(((now - CLOCK_SKEW).max(self.not_before), wanted.min(self.not_after)))
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
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
mod material_tests;
#[cfg(test)]
mod tests;
