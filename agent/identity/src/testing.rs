//! A CA in memory and certificates that are wrong in every way, for tests here and in other crates
//! (feature `testing`). Failures panic: they are failures of the test.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer};
use weft_core::Identity;

use crate::tls::Parts;
use crate::{CaClient, Hbone, IdentityError, SignedCertificate};

/// The serial number of certificates from [`TestCa::issue_named`].
pub const SERIAL: u64 = 7;

const HOUR: Duration = Duration::from_hours(1);

/// In which way a certificate is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Of the trust domain `other.example`, issued by the same root.
    TrustDomain,
    /// Of the service account `somebody-else`.
    Identity,
    /// Expired an hour ago.
    Expired,
    /// Valid an hour from now.
    NotYetValid,
    /// Without any name.
    NoSan,
    /// With a DNS name only.
    DnsSanOnly,
    /// With the right URI name and a second one.
    TwoUriSans,
    /// With a URI name that is no workload identity.
    OtherUri,
    /// Right in all respects, signed by itself.
    SelfSigned,
    /// Right in all respects, issued by a root that nobody knows.
    UnknownIssuer,
    /// Right in all respects, issued by another root of the same name.
    ForgedIssuer,
    /// With an extended key usage that is neither client nor server.
    Usage,
    /// With the CA flag.
    CaAsLeaf,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::TrustDomain,
        Self::Identity,
        Self::Expired,
        Self::NotYetValid,
        Self::NoSan,
        Self::DnsSanOnly,
        Self::TwoUriSans,
        Self::OtherUri,
        Self::SelfSigned,
        Self::UnknownIssuer,
        Self::ForgedIssuer,
        Self::Usage,
        Self::CaAsLeaf,
    ];
}

/// A certificate with its key, PEM, for peers that are configured by files.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

/// A CA in memory.
pub struct TestCa {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

impl TestCa {
    /// A CA with a new root.
    pub fn new() -> Self {
        Self::named("test root")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a P-256 key can be generated");
        Self { root: CertifiedIssuer::self_signed(params, key).expect("a root can be signed") }
    }

    /// The root, PEM.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// A certificate as it should be, valid for an hour.
    pub fn issue(&self, identity: &Identity) -> Issued {
        let key = KeyPair::generate().expect("a P-256 key can be generated");
        let now = SystemTime::now();
        let params = leaf(&identity.to_string(), now - HOUR, now + HOUR);
        let certificate = params.signed_by(&key, &self.root).expect("a leaf can be signed");
        issued(&certificate, &key)
    }

    /// A certificate of a server, or of its client, with host names, addresses and URIs. Its serial number is
    /// [`SERIAL`]; it is valid for an hour, or expired an hour ago.
    pub fn issue_named(&self, names: &[&str], expired: bool) -> Issued {
        let key = KeyPair::generate().expect("a P-256 key can be generated");
        let now = SystemTime::now();
        let end = if expired { now - HOUR } else { now + HOUR };
        let mut params = leaf("", end - 2 * HOUR, end);
        params.serial_number = Some(SERIAL.into());
        params.subject_alt_names = names.iter().map(|name| any_name(name)).collect();
        let certificate = params.signed_by(&key, &self.root).expect("a leaf can be signed");
        issued(&certificate, &key)
    }

    /// A list that revokes a serial number, PEM.
    pub fn revoking(&self, serial: u64) -> String {
        let now = SystemTime::now();
        let revoked = RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: (now - HOUR).into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (now - HOUR).into(),
            next_update: (now + HOUR).into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.root).expect("a list can be signed");
        list.pem().expect("a list can be written")
    }

    /// A certificate for `identity` that is wrong in one way.
    pub fn issue_wrong(&self, identity: &Identity, wrong: Wrong) -> Issued {
        let key = KeyPair::generate().expect("a P-256 key can be generated");
        let params = wrong_params(identity, wrong);
        let certificate = match wrong {
            Wrong::SelfSigned => params.self_signed(&key),
            Wrong::UnknownIssuer => params.signed_by(&key, &Self::named("unknown root").root),
            Wrong::ForgedIssuer => params.signed_by(&key, &Self::new().root),
            Wrong::TrustDomain
            | Wrong::Identity
            | Wrong::Expired
            | Wrong::NotYetValid
            | Wrong::NoSan
            | Wrong::DnsSanOnly
            | Wrong::TwoUriSans
            | Wrong::OtherUri
            | Wrong::Usage
            | Wrong::CaAsLeaf => params.signed_by(&key, &self.root),
        };
        issued(&certificate.expect("a leaf can be signed"), &key)
    }

    /// TLS configurations with a certificate as it should be.
    pub fn hbone(&self, identity: &Identity) -> Hbone {
        self.unchecked_hbone(identity, &self.issue(identity))
    }

    /// TLS configurations that present a wrong certificate and trust this CA.
    pub fn wrong_hbone(&self, identity: &Identity, wrong: Wrong) -> Hbone {
        self.unchecked_hbone(identity, &self.issue_wrong(identity, wrong))
    }

    fn unchecked_hbone(&self, identity: &Identity, issued: &Issued) -> Hbone {
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("the key is PEM");
        Parts::parse(identity, &issued.chain_pem, key, &self.root_pem(), &[])
            .and_then(Parts::build)
            .expect("the parts are well-formed")
    }

    /// Signs a request for `identity`, valid from `now - 60 s` for `lifetime`, without any check.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        (now, lifetime): (SystemTime, Duration),
    ) -> SignedCertificate {
        let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).expect("the CSR is PEM");
        let request = CertificateSigningRequestParams::from_der(&der).expect("the CSR is well-formed");
        self.certify(&request.public_key, identity, (now, lifetime))
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        (now, lifetime): (SystemTime, Duration),
    ) -> SignedCertificate {
        let params = leaf(&identity.to_string(), now - Duration::from_secs(60), now + lifetime);
        let certificate = params.signed_by(key, &self.root).expect("a leaf can be signed");
        SignedCertificate { chain_pem: vec![certificate.pem()], roots_pem: vec![self.root_pem()] }
    }
}

/// A [`CaClient`] that gives everybody everything: certificates of `lifetime` from `ca`.
pub struct TestCaClient {
    /// The CA.
    pub ca: Arc<TestCa>,
    /// Life of the certificates.
    pub lifetime: Duration,
}

impl CaClient for TestCaClient {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        let signed = self.ca.sign(csr_pem, identity, (SystemTime::now(), self.lifetime));
        Box::pin(std::future::ready(Ok(signed)))
    }
}

fn issued(certificate: &Certificate, key: &KeyPair) -> Issued {
    Issued { chain_pem: certificate.pem(), key_pem: key.serialize_pem() }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("the URI is ASCII"))
}

fn any_name(text: &str) -> SanType {
    match text.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if text.contains("://") => uri(text),
        Err(_) => SanType::DnsName(text.try_into().expect("the name is ASCII")),
    }
}

fn leaf(name: &str, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(name)];
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn wrong_params(identity: &Identity, wrong: Wrong) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = leaf(&identity.to_string(), now - HOUR, now + HOUR);
    let (namespace, account) = (identity.namespace(), identity.service_account());
    match wrong {
        Wrong::TrustDomain => {
            let other = Identity::new("other.example", namespace, account);
            params.subject_alt_names = vec![uri(&other.to_string())];
        }
        Wrong::Identity => {
            let other = Identity::new(identity.trust_domain(), namespace, "somebody-else");
            params.subject_alt_names = vec![uri(&other.to_string())];
        }
        Wrong::Expired => {
            (params.not_before, params.not_after) = ((now - 2 * HOUR).into(), (now - HOUR).into());
        }
        Wrong::NotYetValid => {
            (params.not_before, params.not_after) = ((now + HOUR).into(), (now + 2 * HOUR).into());
        }
        Wrong::NoSan => params.subject_alt_names.clear(),
        Wrong::DnsSanOnly => {
            let name = "cart.shop.svc.cluster.local".try_into().expect("the name is ASCII");
            params.subject_alt_names = vec![SanType::DnsName(name)];
        }
        Wrong::TwoUriSans => params.subject_alt_names.push(uri("spiffe://cluster.local/ns/other/sa/other")),
        Wrong::OtherUri => params.subject_alt_names = vec![uri("https://cluster.local/ns/shop/sa/cart")],
        Wrong::Usage => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        Wrong::CaAsLeaf => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        Wrong::SelfSigned | Wrong::UnknownIssuer | Wrong::ForgedIssuer => {}
    }
    params
}
