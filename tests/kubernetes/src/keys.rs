//! Keys and certificates of a cluster: P-256, one authority, names as Kubernetes' built-in roles expect them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

/// OID of `organizationName`, as a type of its own: a name of rcgen holds one value of each type.
const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        fs::write(&certificate, &self.certificate)?;
        fs::write(&key, &self.key)?;
        Ok((certificate, key))
    }
}

/// The authority for servers and clients.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "kubernetes-for-tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// For a server that is reached by `names` and `addresses`; it is a client with that name and group too.
    pub(crate) fn server(
        &self,
        user: &str,
        groups: &[&str],
        names: &[&str],
        addresses: &[IpAddr],
    ) -> Result<Pair> {
        let names = names.iter().map(|name| Ok(SanType::DnsName((*name).try_into()?)));
        let alternatives: Result<Vec<SanType>> =
            names.chain(addresses.iter().map(|address| Ok(SanType::IpAddress(*address)))).collect();
        self.issue(user, groups, alternatives?)
    }

    /// For the user `user` in `groups` (two at most, as the name of a certificate made here holds no more).
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Result<Pair> {
        self.issue(user, groups, Vec::new())
    }

    fn issue(&self, user: &str, groups: &[&str], alternatives: Vec<SanType>) -> Result<Pair> {
        ensure!(groups.len() <= 2, "a certificate of the tests holds two groups at most");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION.to_vec())];
        for (kind, group) in kinds.into_iter().zip(groups) {
            params.distinguished_name.push(kind, *group);
        }
        params.distinguished_name.push(DnType::CommonName, user);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = alternatives;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer).context("a certificate cannot be signed")?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// The pair that signs tokens of service accounts: `sa.key` (PKCS#8) and `sa.pub`.
pub(crate) fn write_service_account_keys(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let key = KeyPair::generate()?;
    let (private, public) = (dir.join("sa.key"), dir.join("sa.pub"));
    fs::write(&private, key.serialize_pem())?;
    fs::write(&public, key.public_key_pem())?;
    Ok((private, public))
}
