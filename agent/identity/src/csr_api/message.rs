//! The messages of Istio's `security/v1alpha1/ca.proto`, as far as they are used.

use std::collections::HashMap;
use std::time::Duration;

/// The key in the request's metadata that names the identity.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct IstioCertificateRequest {
    /// PEM.
    #[prost(string, tag = "1")]
    pub(super) csr: String,
    /// Seconds; 0 leaves it to the CA.
    #[prost(int64, tag = "3")]
    pub(super) validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    pub(super) metadata: Option<Struct>,
}

impl IstioCertificateRequest {
    /// A request for `identity`; without a lifetime the CA chooses it.
    pub(super) fn new(csr: &str, identity: &str, lifetime: Duration) -> Self {
        let validity_seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let value = Value { string_value: Some(identity.to_owned()) };
        let fields = HashMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]);
        Self { csr: csr.to_owned(), validity_duration: validity_seconds, metadata: Some(Struct { fields }) }
    }

    /// The identity that is asked for.
    pub(super) fn impersonated_identity(&self) -> Option<&str> {
        self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?.string_value.as_deref()
    }
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct IstioCertificateResponse {
    /// PEM: leaf, intermediates, and last the bundle of roots.
    #[prost(string, repeated, tag = "1")]
    pub(super) cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Struct {
    #[prost(map = "string, message", tag = "1")]
    pub(super) fields: HashMap<String, Value>,
}

/// `google.protobuf.Value`: of its alternatives only the string is read; on the wire a member of a `oneof`
/// is an ordinary field, and the others are skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Value {
    #[prost(string, optional, tag = "3")]
    pub(super) string_value: Option<String>,
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn bytes_are_those_of_the_published_schema() {
        let request = IstioCertificateRequest::new("CSR", "id", Duration::from_secs(60));
        let expected = [
            &b"\x0a\x03CSR"[..],             // csr = 1
            b"\x18\x3c",                     // validity_duration = 3
            b"\x22\x1e",                     // metadata = 4: Struct
            b"\x0a\x1c",                     // fields = 1: map entry
            b"\x0a\x14ImpersonatedIdentity", // key
            b"\x12\x04\x1a\x02id",           // value: Value{string_value = 3}
        ]
        .concat();
        assert_eq!(request.encode_to_vec(), expected);
        let decoded = IstioCertificateRequest::decode(&*expected).unwrap();
        assert_eq!(decoded.impersonated_identity(), Some("id"));
    }

    #[test]
    fn an_identity_that_is_no_string_is_missing() {
        // metadata { fields { "ImpersonatedIdentity": Value{bool_value = 4: true} } }
        let bytes = [&b"\x22\x1c\x0a\x1a\x0a\x14ImpersonatedIdentity"[..], b"\x12\x02\x20\x01"].concat();
        assert_eq!(IstioCertificateRequest::decode(&*bytes).unwrap().impersonated_identity(), None);
    }
}
