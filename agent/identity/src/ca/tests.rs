use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;

use proptest::prelude::*;
use rcgen::{BasicConstraints, DnType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::*;
use crate::Hbone;

const DAY: Duration = Duration::from_hours(24);

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn new_ca() -> (TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), "cluster.local").unwrap();
    (dir, ca)
}

fn csr(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn simple_csr() -> String {
    csr(&KeyPair::generate().unwrap(), |_| {})
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn reopen_error(dir: &TempDir) -> String {
    Ca::open(dir.path(), "cluster.local").unwrap_err().to_string()
}

#[test]
fn a_root_is_made_once_and_kept() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state/ca");
    let first = Ca::open(&dir, "cluster.local").unwrap().root_pem().to_owned();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("root-key.pem")), 0o600);
    assert_eq!(mode(&dir.join("root-cert.pem")), 0o644);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file is left");
    assert_eq!(Ca::open(&dir, "cluster.local").unwrap().root_pem(), first);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    for bad in [0o640, 0o604, 0o660] {
        let (dir, _) = new_ca();
        chmod(&dir.path().join("root-key.pem"), bad);
        let error = reopen_error(&dir);
        assert!(error.contains(&format!("mode {bad:04o}")) && error.contains("chmod 600"), "{error}");
    }
}

#[test]
fn files_that_others_can_replace_are_refused() {
    let (dir, _) = new_ca();
    chmod(&dir.path().join("root-cert.pem"), 0o666);
    let error = reopen_error(&dir);
    assert!(
        error.contains("root-cert.pem has mode 0666, so that others than its owner can change it"),
        "{error}"
    );
    let (dir, _) = new_ca();
    chmod(dir.path(), 0o777);
    let error = reopen_error(&dir);
    assert!(error.contains("directory") && error.contains("chmod 700"), "{error}");
}

#[test]
fn a_key_of_another_user_is_refused() {
    if rustix::process::geteuid().as_raw() != 0 {
        eprintln!("skipped: giving a file to another user takes root");
        return;
    }
    let (dir, _) = new_ca();
    std::os::unix::fs::chown(dir.path().join("root-key.pem"), Some(12_345), None).unwrap();
    let error = reopen_error(&dir);
    assert!(error.contains("belongs to user 12345"), "{error}");
}

#[test]
fn half_a_pair_is_never_completed() {
    for (removed, kept) in [("root-key.pem", "root-cert.pem"), ("root-cert.pem", "root-key.pem")] {
        let (dir, _) = new_ca();
        let before = fs::read(dir.path().join(kept)).unwrap();
        fs::remove_file(dir.path().join(removed)).unwrap();
        let error = reopen_error(&dir);
        assert!(error.contains(&format!("but not {}", dir.path().join(removed).display())), "{error}");
        assert_eq!(fs::read(dir.path().join(kept)).unwrap(), before);
        assert!(!dir.path().join(removed).exists());
    }
}

#[test]
fn a_pair_that_does_not_match_is_refused() {
    let ((one, _), (other, _)) = (new_ca(), new_ca());
    fs::copy(other.path().join("root-key.pem"), one.path().join("root-key.pem")).unwrap();
    let error = reopen_error(&one);
    assert!(error.contains("does not belong to the key"), "{error}");
}

#[test]
fn garbage_in_the_files_is_named() {
    for (file, expected) in [("root-key.pem", "the CA key"), ("root-cert.pem", "the root certificate")] {
        let (dir, _) = new_ca();
        fs::write(dir.path().join(file), "garbage").unwrap();
        let error = reopen_error(&dir);
        assert!(error.contains(expected) && error.contains(file), "{error}");
    }
}

#[test]
fn a_root_that_is_expired_or_no_ca_is_refused() {
    for (is_ca, not_after, expected) in [
        (IsCa::Ca(BasicConstraints::Unconstrained), SystemTime::now() - DAY, "it expired at 2"),
        (IsCa::ExplicitNoCa, SystemTime::now() + DAY, "it is not the certificate of a CA"),
    ] {
        let (dir, _) = new_ca();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = is_ca;
        params.not_after = not_after.into();
        fs::write(dir.path().join("root-key.pem"), key.serialize_pem()).unwrap();
        fs::write(dir.path().join("root-cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let error = reopen_error(&dir);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_leaf_has_the_identity_and_nothing_of_the_request() {
    let (_dir, ca) = new_ca();
    let key = KeyPair::generate().unwrap();
    let greedy = csr(&key, |params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names =
            vec![SanType::DnsName("kubernetes.default".try_into().unwrap()), uri_name(&cart()).unwrap()];
    });
    let signed = ca.sign(&greedy, &cart(), Duration::from_hours(1)).unwrap();
    let der = rustls_pki_types::CertificateDer::from_pem_slice(signed.chain_pem[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "without a subject the names are critical");
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any);
    assert_eq!(leaf.raw_serial().len(), 16);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert!((3719..=3721).contains(&life), "{life}");
    let (chain, roots) = (signed.chain_pem.concat(), signed.roots_pem.concat());
    let hbone = Hbone::from_pem(&cart(), &chain, &key.serialize_pem(), &roots, &[]).unwrap();
    assert_eq!(hbone.identity(), &cart());
}

fn lifetime_of(signed: &SignedCertificate) -> Duration {
    let der = rustls_pki_types::CertificateDer::from_pem_slice(signed.chain_pem[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    let not_after: SystemTime = leaf.validity().not_after.to_datetime().into();
    not_after.duration_since(SystemTime::now()).unwrap()
}

#[test]
fn lifetimes_are_capped() {
    let (_dir, ca) = new_ca();
    assert!(lifetime_of(&ca.sign(&simple_csr(), &cart(), 30 * DAY).unwrap()) <= DAY);
    let ca = ca.with_max_lifetime(Duration::from_secs(60));
    assert!(lifetime_of(&ca.sign(&simple_csr(), &cart(), DAY).unwrap()) <= Duration::from_secs(60));
    let error = ca.sign(&simple_csr(), &cart(), Duration::ZERO).unwrap_err();
    assert!(matches!(error, CaError::InvalidRequest(_)), "{error:?}");
}

#[test]
fn a_leaf_does_not_outlive_the_root() {
    let (_dir, mut ca) = new_ca();
    ca.not_after = SystemTime::now() + Duration::from_secs(600);
    assert!(lifetime_of(&ca.sign(&simple_csr(), &cart(), DAY).unwrap()) <= Duration::from_secs(600));
    ca.not_after = SystemTime::now() - Duration::from_secs(1);
    let error = ca.sign(&simple_csr(), &cart(), DAY).unwrap_err().to_string();
    assert!(error.contains("the CA's certificate expired at 2"), "{error}");
}

#[test]
fn bad_requests_are_refused_with_the_reason() {
    let (_dir, ca) = new_ca();
    let key = KeyPair::generate().unwrap();
    let other = uri_name(&Identity::new("cluster.local", "shop", "other")).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for (request, expected) in [
        (String::new(), "is no PEM"),
        ("x".repeat(16 * 1024 + 1), "is longer than 16384 bytes"),
        (ca.root_pem().to_owned(), "is no PEM"),
        (forged(), "is not signed by its own key"),
        (csr(&ed25519, |_| {}), "must have an EC key on curve P-256 or P-384"),
        (
            csr(&key, |params| params.subject_alt_names = vec![other]),
            "names `spiffe://cluster.local/ns/shop/sa/other`",
        ),
    ] {
        let error = ca.sign(&request, &cart(), DAY).unwrap_err();
        assert!(matches!(error, CaError::InvalidRequest(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        ca.sign(&csr(&key, |_| {}), &cart(), DAY).unwrap();
    }
    let error = ca.sign(SHORT_RSA, &cart(), DAY).unwrap_err().to_string();
    assert!(error.contains("an RSA key of 2048 to 4096 bits"), "{error}");
    let foreign = Identity::new("other.example", "shop", "cart");
    assert!(matches!(ca.sign(&simple_csr(), &foreign, DAY), Err(CaError::Forbidden(_))));
}

/// A request with an RSA key of 1024 bits.
const SHORT_RSA: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBPzCBqQIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDD3mpy4IIE
kKC8RJijutgjabF/wtUGh7k8sczE7HOpYXfsEeUR0UtQbnzqIkXN+58eAgaRb4/S
CrpgiYiSTAOvV9fClaQw7jzgJrXED63/a+e4CJSI5QWGy+sgouDi18C6HwF/jQ5M
/0P8XUd2zDrty2SNAL/u1+KGJldbw4C01QIDAQABoAAwDQYJKoZIhvcNAQELBQAD
gYEAHIeyQaM0TSnFzKrMYZSYdxCPIJjXX3wTQWnOM71hj2h7i+hOHM44vh2k3Eej
jxVn3O1HQha+3Zf0aMeY/8d08UJpbJv6aTboPHDOpQOst23Z3KzfOXApvpkwGsFh
aXHdGKG/WcKKabpTTpWmdJsc08xIn0/txKml59bM3a8UfMg=
-----END CERTIFICATE REQUEST-----
";

/// A request for somebody else's public key: the key is exchanged after signing.
fn forged() -> String {
    let (own, victim) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let pem = csr(&own, |_| {});
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut bytes = der.to_vec();
    let key = own.public_key_raw();
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at..at + key.len()].copy_from_slice(victim.public_key_raw());
    to_pem(&bytes)
}

fn to_pem(der: &[u8]) -> String {
    use std::fmt::Write;

    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for group in der.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let sextet = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= group.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    write!(text, "\n-----END CERTIFICATE REQUEST-----\n").unwrap();
    text
}

fn shared() -> &'static (TempDir, Ca, Vec<u8>) {
    static SHARED: OnceLock<(TempDir, Ca, Vec<u8>)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (dir, ca) = new_ca();
        let pem = csr(&KeyPair::generate().unwrap(), |params| {
            params.subject_alt_names = vec![uri_name(&cart()).unwrap()];
        });
        (dir, ca, CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec())
    })
}

/// Where in a request the signed content lies.
fn content_of(der: &[u8]) -> std::ops::Range<usize> {
    let (_, csr) = X509CertificationRequest::from_der(der).unwrap();
    let content = csr.certification_request_info.raw;
    let start = der.windows(content.len()).position(|window| window == content).unwrap();
    start..start + content.len()
}

fn public_key_in(csr_der: &[u8]) -> Vec<u8> {
    let (_, csr) = X509CertificationRequest::from_der(csr_der).unwrap();
    csr.certification_request_info.subject_pki.raw.to_vec()
}

fn public_key_of(signed: &SignedCertificate) -> Vec<u8> {
    let der = rustls_pki_types::CertificateDer::from_pem_slice(signed.chain_pem[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    leaf.public_key().raw.to_vec()
}

#[test]
fn the_untouched_request_is_signed() {
    let (_, ca, der) = shared();
    let signed = ca.sign(&to_pem(der), &cart(), DAY).unwrap();
    assert_eq!(public_key_of(&signed), public_key_in(der));
}

proptest! {
    // Seeds of failures belong into tests of their own, not into files beside the sources.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_never_signed(text in ".{0,400}") {
        prop_assert!(matches!(shared().1.sign(&text, &cart(), DAY), Err(CaError::InvalidRequest(_))));
    }

    #[test]
    fn arbitrary_der_is_never_signed(der in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(matches!(shared().1.sign(&to_pem(&der), &cart(), DAY), Err(CaError::InvalidRequest(_))));
    }

    /// The signature covers the key and the names to the last bit.
    #[test]
    fn a_request_with_changed_content_is_never_signed(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let (_, ca, der) = shared();
        let mut bytes = der.clone();
        let content = content_of(der);
        bytes[content.start + at.index(content.len())] ^= flip;
        prop_assert!(matches!(ca.sign(&to_pem(&bytes), &cart(), DAY), Err(CaError::InvalidRequest(_))));
    }

    /// Around the content the parser forgives odd tags, which can change nothing of what is signed.
    #[test]
    fn a_request_changed_outside_its_content_gets_the_same_key_or_nothing(
        at in any::<prop::sample::Index>(), flip in 1_u8..
    ) {
        let (_, ca, der) = shared();
        let mut bytes = der.clone();
        let content = content_of(der);
        let at = at.index(der.len() - content.len());
        bytes[if at < content.start { at } else { at + content.len() }] ^= flip;
        match ca.sign(&to_pem(&bytes), &cart(), DAY) {
            Ok(signed) => prop_assert_eq!(public_key_of(&signed), public_key_in(der)),
            Err(error) => prop_assert!(matches!(error, CaError::InvalidRequest(_))),
        }
    }

    #[test]
    fn a_truncated_request_is_never_signed(at in any::<prop::sample::Index>()) {
        let (_, ca, der) = shared();
        let cut = &der[..at.index(der.len())];
        prop_assert!(matches!(ca.sign(&to_pem(cut), &cart(), DAY), Err(CaError::InvalidRequest(_))));
    }
}
