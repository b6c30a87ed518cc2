//! What the CA shows at `/metrics`.

use std::time::SystemTime;

use weft_identity::csr_api::Outcome;
use weft_telemetry::{Family, Kind, ScrapeSink};

use super::Readings;

const REQUESTS: Family = Family {
    name: "weft_ca_requests_total",
    help: "Requests for certificates, by how they ended.",
    kind: Kind::Counter,
    labels: &["result"],
};
const REVIEWS: Family = Family {
    name: "weft_ca_token_reviews_total",
    help: "Tokens that were looked at, by who knew them: the API server or our memory of it.",
    kind: Kind::Counter,
    labels: &["source"],
};
const HANDSHAKES: Family = Family {
    name: "weft_ca_handshake_failures_total",
    help: "Connections to the CA that ended before TLS stood; an agent that does not know our root looks like this.",
    kind: Kind::Counter,
    labels: &[],
};
const EXPIRY: Family = Family {
    name: "weft_ca_expiry_seconds",
    help: "Seconds until the first certificate between a leaf and its root expires.",
    kind: Kind::Gauge,
    labels: &[],
};
const ROOTS: Family = Family {
    name: "weft_ca_roots",
    help: "Roots that are handed out; more than one during a rotation.",
    kind: Kind::Gauge,
    labels: &[],
};
const SECRET: Family = Family {
    name: "weft_ca_secret_failed",
    help: "1 while the CA's Secret is missing or damaged and an earlier CA serves on.",
    kind: Kind::Gauge,
    labels: &[],
};

impl Readings {
    /// Adds all samples.
    pub(in crate::controller) fn collect(&self, sink: &mut ScrapeSink) {
        let counters = &self.counters;
        for outcome in Outcome::ALL {
            sink.set(&REQUESTS, &[outcome.name()], counters.ended(outcome) as f64);
        }
        sink.set(&REVIEWS, &["api_server"], counters.reviews() as f64);
        sink.set(&REVIEWS, &["memory"], counters.remembered() as f64);
        sink.set(&HANDSHAKES, &[], counters.handshakes_failed() as f64);
        let ca = self.ca.current();
        let left = ca.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        sink.set(&EXPIRY, &[], left.as_secs_f64());
        sink.set(&ROOTS, &[], ca.root_pem().matches("BEGIN CERTIFICATE").count() as f64);
        sink.set(&SECRET, &[], f64::from(u8::from(self.state.failed())));
    }
}
