//! What a CA consists of: its key, its certificate, what leads from there to the roots, the roots.

use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::{CLOCK_SKEW, CaError, ROOT_LIFETIME, random_serial};
use crate::bundle::{self, Block};
use crate::tls::date;

/// A CA as an operator stores it, PEM. No `Debug`: it holds the key.
#[derive(Clone, PartialEq, Eq)]
pub struct CaMaterial {
    /// The certificate that signs; certificates that follow it lead to the roots.
    pub certificate_pem: String,
    /// Its key: PKCS#8, SEC1 or PKCS#1.
    pub key_pem: String,
    /// Further certificates between the one that signs and the roots; may be empty, and may repeat others.
    pub chain_pem: String,
    /// The roots that peers shall trust; several during a rotation.
    pub roots_pem: String,
}

impl CaMaterial {
    /// A new root that signs itself: EC P-256, valid for ten years.
    ///
    /// # Errors
    /// [`CaError::Internal`] when there is no randomness.
    pub fn generate(trust_domain: &str) -> Result<Self, CaError> {
        let failed =
            |error: rcgen::Error| CaError::Internal(format!("the CA's root cannot be made: {error}"));
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
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            roots_pem: certificate_pem.clone(),
            certificate_pem,
            key_pem: key.serialize_pem(),
            chain_pem: String::new(),
        })
    }
}

/// The parsed form.
pub(super) struct Parsed {
    pub(super) key: KeyPair,
    pub(super) signing: Block,
    /// What is sent after a leaf: empty when a root signs.
    pub(super) intermediates: Vec<Block>,
    pub(super) roots: Vec<Block>,
    /// The first expiry on the way from a leaf to its root.
    pub(super) not_after: SystemTime,
    /// The last beginning on that way.
    pub(super) not_before: SystemTime,
}

impl Parsed {
    pub(super) fn of(material: &CaMaterial) -> Result<Self, String> {
        let key = key(&material.key_pem)?;
        let roots = bundle::merged(&[&material.roots_pem])
            .map_err(|error| format!("the roots are not usable: {error}"))?;
        let chain = bundle::merged(&[&material.certificate_pem, &material.chain_pem])
            .map_err(|error| format!("the certificate is not usable: {error}"))?;
        let Some(signing) = chain.first().cloned() else {
            return Err("it holds no certificate".to_owned());
        };
        if roots.is_empty() {
            return Err("there is no root certificate".to_owned());
        }
        check_signing(&signing, &key)?;
        let intermediates: Vec<Block> = if is_root(&signing, &roots) {
            Vec::new()
        } else {
            chain.into_iter().filter(|block| !is_root(block, &roots)).collect()
        };
        let (not_before, not_after) = validity(&signing, &intermediates, &roots)?;
        Ok(Self { key, signing, intermediates, roots, not_after, not_before })
    }
}

/// Parses a private key of any of the usual forms.
pub(super) fn key(pem: &str) -> Result<KeyPair, String> {
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| format!("the key is no PEM: {error}"))?;
    KeyPair::try_from(&der).map_err(|error| format!("the key is of no known kind (EC, RSA): {error}"))
}

fn is_root(block: &Block, roots: &[Block]) -> bool {
    roots.iter().any(|root| root.der == block.der)
}

fn check_signing(signing: &Block, key: &KeyPair) -> Result<(), String> {
    use rcgen::PublicKeyData;

    let certificate = signing.parse()?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err("the certificate does not belong to the key; restore the pair from a backup".to_owned());
    }
    if !certificate.is_ca() {
        return Err("it is not the certificate of a CA".to_owned());
    }
    Ok(())
}

/// When the whole way from a leaf to its root is valid. Of roots of one name the one that lives longest
/// counts: which of them a peer uses is up to the peer.
fn validity(
    signing: &Block,
    intermediates: &[Block],
    roots: &[Block],
) -> Result<(SystemTime, SystemTime), String> {
    let mut from = SystemTime::UNIX_EPOCH;
    let mut until = None;
    for block in std::iter::once(signing).chain(intermediates) {
        let certificate = block.parse()?;
        let (not_before, not_after) = bounds(&certificate);
        from = from.max(not_before);
        until = Some(until.map_or(not_after, |until: SystemTime| until.min(not_after)));
    }
    let top = intermediates.last().unwrap_or(signing).parse()?;
    let mut of_root = None;
    for root in roots {
        let root = root.parse()?;
        if root.subject().as_raw() == top.issuer().as_raw() {
            of_root = of_root.max(Some(bounds(&root).1));
        }
    }
    let until = match (until, of_root) {
        (Some(until), Some(of_root)) => until.min(of_root),
        (Some(until), None) => until,
        (None, _) => from,
    };
    if until <= SystemTime::now() {
        return Err(format!("it expired at {}", date(until)));
    }
    Ok((from, until))
}

fn bounds(certificate: &x509_parser::certificate::X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = certificate.validity();
    (validity.not_before.to_datetime().into(), validity.not_after.to_datetime().into())
}
