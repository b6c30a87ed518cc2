//! `tls` (D-18).

use weft_core::resource::destination_rule::{ClientTls, ClientTlsMode};

use super::super::networking::{Reader, shown};
use super::super::report::Path;
use super::wire::TlsWire;
use crate::codes;

/// The beginning of a `credentialName` that names a ConfigMap.
const CONFIG_MAP: &str = "configmap://";

pub(super) fn tls(wire: &TlsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> ClientTls {
    let mode = mode(wire, &at.field("mode"), reader);
    check_credential(wire, &at.field("credentialName"), reader);
    match mode {
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            check_certificates(wire, mode, at, reader);
            if mode == ClientTlsMode::Mutual || names_certificates(wire) {
                warn_of_certificates(mode, &at.field("mode"), reader);
            }
        }
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => {}
    }
    if !wire.subject_alt_names.items.is_empty() {
        warn_of_names(mode, &at.field("subjectAltNames"), reader);
    }
    tell_what_is_not_applied(wire, at, reader);
    ClientTls {
        mode,
        sni: reader.optional(&wire.sni),
        subject_alt_names: reader.texts(&wire.subject_alt_names),
        certificates: names_certificates(wire),
    }
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

/// Whether the block wants to present or to verify with something of its own.
fn names_certificates(wire: &TlsWire<'_>) -> bool {
    let names = [&wire.client_certificate, &wire.ca_certificates, &wire.ca_crl, &wire.credential_name];
    names.into_iter().any(|text| text.non_empty().is_some())
}

/// Rather than connect with less than was asked for, the mesh does not connect.
fn warn_of_certificates(mode: ClientTlsMode, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let message = format!(
        "`{}` with certificates cannot be kept: this version does not read them, and connects to none of the host's \
         endpoints rather than without what was asked for (D-18).",
        mode.as_str()
    );
    let fix = "Let the application speak TLS itself, or write ISTIO_MUTUAL, or SIMPLE without certificates.";
    reader.report.add(codes::NO_EFFECT, at, message, fix);
}

/// What becomes of the names that a certificate should have.
fn warn_of_names(mode: ClientTlsMode, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    match mode {
        ClientTlsMode::IstioMutual => {
            reader.not_applied(
                at,
                "an endpoint of the mesh proves the identity of its own pod, whatever the list says (D-18)",
            );
        }
        ClientTlsMode::Simple => {
            let message = "Names prove nothing in a certificate that is not verified, and this version reads no \
                           certificates: the mesh connects to none of the host's endpoints (D-18).";
            let fix = "Remove the names, write ISTIO_MUTUAL, or let the application speak TLS itself.";
            reader.report.add(codes::NO_EFFECT, at, message, fix);
        }
        // Nobody's certificate is looked at; or the block is refused as a whole.
        ClientTlsMode::Disable | ClientTlsMode::Mutual => {}
    }
}

/// Certificates of an application's own are not presented yet; what is told must be told.
fn tell_what_is_not_applied(wire: &TlsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let fields = [
        ("clientCertificate", wire.client_certificate.non_empty().is_some()),
        ("privateKey", wire.private_key.non_empty().is_some()),
        ("caCertificates", wire.ca_certificates.non_empty().is_some()),
        ("caCrl", wire.ca_crl.non_empty().is_some()),
        ("credentialName", wire.credential_name.non_empty().is_some()),
    ];
    for (name, _) in fields.into_iter().filter(|(_, written)| *written) {
        reader.not_applied(at.field(name), "certificates that the block names are not read (D-18)");
    }
}
