//! `defaultProviders`: who gets logs, spans and metrics where no Telemetry says it.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::fields::{List, Text, nullable};
use super::super::networking::Reader;
use super::super::report::Path;

/// Istio's own access log: on standard output, in the mesh's format.
const ENVOY: &str = "envoy";
/// Istio's own metrics, which are always there.
const PROMETHEUS: &str = "prometheus";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct DefaultsWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    default_providers: ProvidersWire<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of lists")]
struct ProvidersWire<'a> {
    #[serde(borrow, default)]
    access_logging: List<Text<'a>>,
    #[serde(borrow, default)]
    metrics: List<Text<'a>>,
    #[serde(default)]
    tracing: List<IgnoredAny>,
}

/// Whether they switch the access log on (L-1); what is not applied is reported. `at` is the place of the MeshConfig.
pub(super) fn access_log(wire: &DefaultsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> bool {
    let ProvidersWire { access_logging, metrics, tracing } = &wire.default_providers;
    let at = at.field("defaultProviders");
    let only = |list: &List<Text<'_>>, known: &str| list.items.iter().all(|name| name.as_str() == known);
    if !only(access_logging, ENVOY) {
        reader.not_applied(
            at.field("accessLogging"),
            "the access log goes to standard output, for which `envoy` stands",
        );
    }
    if !only(metrics, PROMETHEUS) {
        reader.not_applied(at.field("metrics"), "metrics are there for Prometheus to fetch");
    }
    if !tracing.items.is_empty() {
        reader
            .not_applied(at.field("tracing"), "no spans are sent; headers with traces are passed on (TR-1)");
    }
    access_logging.items.iter().any(|name| name.as_str() == ENVOY)
}
