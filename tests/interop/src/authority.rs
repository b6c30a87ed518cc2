//! Certificates from the key of the lab's controller, right ones and wrong ones.

use std::fs;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use weft_core::Identity;
use weft_lab::Lab;

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The leaf.
    pub certificate: String,
    /// PKCS#8.
    pub key: String,
}

/// The mesh's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The root, PEM.
    pub root: String,
}

impl Authority {
    /// The authority of a lab whose controller has started.
    pub fn of(lab: &Lab) -> Self {
        let read = |name: &str| {
            let path = lab.dir().join("controller").join(name);
            fs::read_to_string(&path).expect("the controller has written its root")
        };
        let root = read("root-cert.pem");
        Self { issuer: issuer(&root, &read("root-key.pem")), root }
    }

    /// An authority that nobody trusts.
    pub fn stranger() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be generated");
        let root = params.self_signed(&key).expect("a root can be signed").pem();
        Self { issuer: issuer(&root, &key.serialize_pem()), root }
    }

    /// A certificate as it should be.
    pub fn issue(&self, account: &str) -> Credentials {
        self.issue_with(account, |_| {})
    }

    /// A certificate that is as it should be but for a change.
    pub fn issue_with(&self, account: &str, change: impl FnOnce(&mut CertificateParams)) -> Credentials {
        let key = KeyPair::generate().expect("a key can be generated");
        let mut params = leaf(account);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf can be signed").pem();
        Credentials { certificate, key: key.serialize_pem() }
    }

    /// A certificate that is as it should be but signed by itself.
    pub fn self_signed(account: &str) -> Credentials {
        let key = KeyPair::generate().expect("a key can be generated");
        let certificate = leaf(account).self_signed(&key).expect("a leaf can be signed").pem();
        Credentials { certificate, key: key.serialize_pem() }
    }
}

fn issuer(root: &str, key: &str) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(key).expect("the root's key is PEM");
    Issuer::from_ca_cert_pem(root, key).expect("the root is a certificate")
}

fn leaf(account: &str) -> CertificateParams {
    let hour = Duration::from_secs(3600);
    let identity = Identity::new("cluster.local", "shop", account).to_string();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        vec![SanType::URI(identity.as_str().try_into().expect("identities are ASCII"))];
    params.not_before = (SystemTime::now() - hour).into();
    params.not_after = (SystemTime::now() + hour).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}
