use rcgen::{BasicConstraints, CertifiedIssuer, DnType};

use super::*;
use crate::bundle;

const HOUR: Duration = Duration::from_hours(1);

fn authority(name: &str, until: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = until.into();
    params
}

/// A root, an intermediate, and one below it that signs.
fn chain(key: KeyPair, until: SystemTime) -> (CaMaterial, String) {
    let year = SystemTime::now() + 9000 * HOUR;
    let root = CertifiedIssuer::self_signed(authority("root", year), KeyPair::generate().unwrap()).unwrap();
    let middle =
        CertifiedIssuer::signed_by(authority("middle", until), KeyPair::generate().unwrap(), &root).unwrap();
    let signing = authority("signing", year).signed_by(&key, &middle).unwrap();
    let material = CaMaterial {
        certificate_pem: signing.pem(),
        key_pem: key.serialize_pem(),
        chain_pem: format!("{}{}{}", signing.pem(), middle.pem(), root.pem()),
        roots_pem: root.pem(),
    };
    (material, middle.pem())
}

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn csr() -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn refusal(material: &CaMaterial) -> String {
    Ca::from_material(material, "cluster.local").unwrap_err().to_string()
}

#[test]
fn an_intermediate_sends_what_leads_to_its_root() {
    let (material, middle) = chain(KeyPair::generate().unwrap(), SystemTime::now() + 2000 * HOUR);
    let ca = Ca::from_material(&material, "cluster.local").unwrap();
    let signed = ca.sign(&csr(), &cart(), HOUR).unwrap();
    assert_eq!(signed.chain_pem.len(), 3);
    assert_eq!(signed.chain_pem[2], middle);
    assert_eq!(signed.roots_pem.concat(), material.roots_pem);
    // As cert-manager writes it: the chain is in the certificate's file.
    let together = CaMaterial {
        certificate_pem: material.chain_pem.clone(),
        chain_pem: String::new(),
        ..material.clone()
    };
    let ca = Ca::from_material(&together, "cluster.local").unwrap();
    assert_eq!(ca.sign(&csr(), &cart(), HOUR).unwrap().chain_pem.len(), 3);
}

#[test]
fn a_leaf_outlives_no_certificate_above_it() {
    let until = SystemTime::now() + Duration::from_secs(600);
    let (material, _) = chain(KeyPair::generate().unwrap(), until);
    let ca = Ca::from_material(&material, "cluster.local").unwrap();
    let signed = ca.sign(&csr(), &cart(), 10 * HOUR).unwrap();
    let leaf = bundle::blocks(&signed.chain_pem[0]).unwrap().remove(0);
    let not_after: SystemTime = leaf.parse().unwrap().validity().not_after.to_datetime().into();
    assert!(not_after <= until, "{not_after:?}");
    let ca = ca.with_max_lifetime(Duration::MAX);
    ca.sign(&csr(), &cart(), Duration::MAX).expect("a life beyond the end of time is cut");
}

#[test]
fn several_roots_are_handed_out_each_once() {
    let (material, _) = chain(KeyPair::generate().unwrap(), SystemTime::now() + HOUR);
    let other = CaMaterial::generate("cluster.local").unwrap().roots_pem;
    let roots_pem = format!("{}{other}{}", material.roots_pem, material.roots_pem);
    let both = CaMaterial { roots_pem, ..material.clone() };
    let ca = Ca::from_material(&both, "cluster.local").unwrap();
    assert_eq!(ca.root_pem(), format!("{}{other}", material.roots_pem));
}

#[test]
fn keys_of_all_usual_kinds_sign() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256]
    {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let (material, _) = chain(key, SystemTime::now() + HOUR);
        let ca = Ca::from_material(&material, "cluster.local").unwrap();
        ca.sign(&csr(), &cart(), HOUR).unwrap();
    }
}

#[test]
fn what_cannot_work_is_refused_at_once() {
    let (good, _) = chain(KeyPair::generate().unwrap(), SystemTime::now() + HOUR);
    let (other, _) = chain(KeyPair::generate().unwrap(), SystemTime::now() + HOUR);
    let (expired, _) = chain(KeyPair::generate().unwrap(), SystemTime::now() - HOUR);
    let change = |change: &dyn Fn(&mut CaMaterial)| {
        let mut material = good.clone();
        change(&mut material);
        refusal(&material)
    };
    for (error, expected) in [
        (change(&|material| material.key_pem = "garbage".to_owned()), "the key is no PEM"),
        (change(&|material| material.key_pem.clone_from(&other.key_pem)), "does not belong to the key"),
        (change(&|material| material.roots_pem.clear()), "there is no root certificate"),
        (
            change(&|material| material.roots_pem.clone_from(&other.roots_pem)),
            "does not lead to one of its roots",
        ),
        (change(&|material| material.chain_pem.clear()), "does not lead to one of its roots"),
        (change(&|material| material.certificate_pem.truncate(200)), "the certificate is not usable"),
        (refusal(&expired), "it expired at 2"),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn the_certificate_of_the_server_follows_the_ca() {
    use std::sync::Arc;

    let of = |name: &str| {
        let material = CaMaterial::generate(name).unwrap();
        Ca::from_material(&material, "cluster.local").unwrap()
    };
    let ca = Arc::new(LiveCa::new(of("one")));
    let tls = ServingTls::new(Arc::clone(&ca), vec!["weft-controller.weft-system.svc".to_owned()], &["h2"]);
    let tls = tls.unwrap();
    let before = tls.config();
    let keeping = Arc::clone(&tls);
    let task = tokio::spawn(async move { keeping.keep_fresh().await });
    tokio::task::yield_now().await;
    ca.replace(of("two"));
    while Arc::ptr_eq(&before, &tls.config()) {
        tokio::task::yield_now().await;
    }
    task.abort();
}
