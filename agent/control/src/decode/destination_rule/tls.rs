//! `tls` (D-18).

use std::sync::Arc;

use weft_core::resource::destination_rule::{ClientCertificates, ClientTls, ClientTlsMode};

use super::super::networking::{Reader, shown};
use super::super::report::Path;
use super::wire::TlsWire;
use crate::codes;

/// The beginning of a `credentialName` that names a ConfigMap.
const CONFIG_MAP: &str = "configmap://";

pub(super) fn tls(wire: &TlsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> ClientTls {
    let mode = mode(wire, &at.field("mode"), reader);
    check_credential(wire, &at.field("credentialName"), reader);
    let originates = match mode {
        ClientTlsMode::Simple | ClientTlsMode::Mutual => true,
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => false,
    };
    if originates {
        check_certificates(wire, mode, at, reader);
        if wire.credential_name.non_empty().is_some() {
            warn_of_secret(&at.field("credentialName"), reader);
        } else if wire.ca_certificates.non_empty().is_none() && !wire.subject_alt_names.items.is_empty() {
            warn_of_names(&at.field("subjectAltNames"), reader);
        }
    } else {
        tell_what_is_not_applied(wire, at, reader);
    }
    ClientTls {
        mode,
        sni: reader.optional(&wire.sni),
        subject_alt_names: reader.texts(&wire.subject_alt_names),
        certificates: if originates { certificates(wire, reader) } else { None },
    }
}

/// What the block wants to present or to verify with.
fn certificates(wire: &TlsWire<'_>, reader: &mut Reader<'_, '_>) -> Option<Arc<ClientCertificates>> {
    let named = ClientCertificates {
        namespace: reader.namespace.clone(),
        authorities: reader.optional(&wire.ca_certificates),
        revoked: reader.optional(&wire.ca_crl),
        certificate: reader.optional(&wire.client_certificate),
        key: reader.optional(&wire.private_key),
        credential: reader.optional(&wire.credential_name),
        unverified: wire.insecure_skip_verify == Some(true),
    };
    let all = [&named.authorities, &named.revoked, &named.certificate, &named.key, &named.credential];
    let any = all.into_iter().any(Option::is_some);
    any.then(|| Arc::new(named))
}

fn mode(wire: &TlsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> ClientTlsMode {
    match wire.mode.as_ref().map_or("DISABLE", |mode| mode.as_str()) {
        "DISABLE" => ClientTlsMode::Disable,
        "SIMPLE" => ClientTlsMode::Simple,
        "MUTUAL" => ClientTlsMode::Mutual,
        "ISTIO_MUTUAL" => ClientTlsMode::IstioMutual,
        other => {
            let message = format!("{} is not a mode.", shown(other));
            reader.report.reject(at, message, "Write DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL.");
            ClientTlsMode::IstioMutual
        }
    }
}

/// A ConfigMap has to stand in the namespace of the DestinationRule.
fn check_credential(wire: &TlsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let Some(rest) = wire.credential_name.as_str().strip_prefix(CONFIG_MAP) else { return };
    let mut parts = rest.split('/');
    let namespace = parts.next().unwrap_or_default();
    let name = parts.next().unwrap_or_default();
    if namespace.is_empty() || name.is_empty() || namespace != &*reader.namespace {
        let message = "The ConfigMap has to be named with the DestinationRule's own namespace.";
        let fix = format!("Write `{CONFIG_MAP}{}/<name>`.", reader.namespace);
        reader.report.reject(at, message, fix);
    }
}

/// What SIMPLE and MUTUAL need and exclude.
fn check_certificates(wire: &TlsWire<'_>, mode: ClientTlsMode, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let has_credential = wire.credential_name.non_empty().is_some();
    let has_ca = wire.ca_certificates.non_empty().is_some();
    let has_certificate = wire.client_certificate.non_empty().is_some();
    let has_key = wire.private_key.non_empty().is_some();
    let verifies = has_ca
        || !wire.subject_alt_names.items.is_empty()
        || (mode == ClientTlsMode::Simple && has_credential);
    if wire.insecure_skip_verify == Some(true) && verifies {
        let message = "`insecureSkipVerify` switches off what other fields of the block ask for.";
        let fix = "Remove it, or remove `caCertificates`, `credentialName` and `subjectAltNames`.";
        reader.report.reject(at.field("insecureSkipVerify"), message, fix);
    }
    if has_credential {
        if has_certificate || has_ca || has_key || wire.ca_crl.non_empty().is_some() {
            let message = "`credentialName` brings all certificates; files cannot stand beside it.";
            let fix = "Remove `clientCertificate`, `privateKey`, `caCertificates` and `caCrl`, or `credentialName`.";
            reader.report.reject(at.field("credentialName"), message, fix);
        }
        return;
    }
    for (name, _) in [("clientCertificate", has_certificate), ("privateKey", has_key)]
        .into_iter()
        .filter(|(_, written)| !written && mode == ClientTlsMode::Mutual)
    {
        reader.report.reject(at.field(name), format!("MUTUAL needs `{name}`."), "Name the file.");
    }
}

/// Rather than connect with less than was asked for, the mesh does not connect.
fn warn_of_secret(at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let message = "Agents have no right to read Secrets: unless it is mounted below their `--tls-files`, the mesh \
                   connects to none of the host's endpoints (D-18).";
    let fix = "Mount it there as CLIENT-NAMESPACE/NAME/ with its keys as files, or name files.";
    reader.report.add(codes::NO_EFFECT, at, message, fix);
}

/// Names that nobody vouches for.
fn warn_of_names(at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let message = "Names prove nothing in a certificate that no authority vouches for: the mesh connects to none of \
                   the host's endpoints (D-18).";
    reader.report.add(
        codes::NO_EFFECT,
        at,
        message,
        "Name the authorities' certificates with `caCertificates`.",
    );
}

/// Istio reads these fields in two modes only.
fn tell_what_is_not_applied(wire: &TlsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let fields = [
        ("clientCertificate", wire.client_certificate.non_empty().is_some()),
        ("privateKey", wire.private_key.non_empty().is_some()),
        ("caCertificates", wire.ca_certificates.non_empty().is_some()),
        ("caCrl", wire.ca_crl.non_empty().is_some()),
        ("credentialName", wire.credential_name.non_empty().is_some()),
    ];
    for (name, _) in fields.into_iter().filter(|(_, written)| *written) {
        reader.not_applied(at.field(name), "only SIMPLE and MUTUAL use certificates of their own (D-18)");
    }
}
