//! What the CA shows at `/metrics`.

use std::time::SystemTime;

use weft_identity::csr_api::Outcome;
use weft_telemetry::{Family, ScrapeSink};

use super::Readings;

const REQUESTS: Family =
    Family::counter("weft_ca_requests_total", "Requests for certificates, by how they ended.", &["result"]);
const REVIEWS: Family = Family::counter(
    "weft_ca_token_reviews_total",
    "Tokens that were looked at, by who knew them: the API server or our memory of it.",
    &["source"],
);
const HANDSHAKES: Family = Family::counter(
    "weft_ca_handshake_failures_total",
    "Connections to the CA that ended before TLS stood; an agent that does not know our root looks like this.",
    &[],
);
const EXPIRY: Family = Family::gauge(
    "weft_ca_expiry_seconds",
    "Seconds until the first certificate between a leaf and its root expires.",
    &[],
);
const ROOTS: Family =
    Family::gauge("weft_ca_roots", "Roots that are handed out; more than one during a rotation.", &[]);
const SECRET: Family = Family::gauge(
    "weft_ca_secret_failed",
    "1 while the CA's Secret is missing or damaged and an earlier CA serves on.",
    &[],
);
const RESTORED: Family = Family::counter(
    "weft_ca_secret_restored_total",
    "Times that this controller put the CA's Secret back after it was deleted.",
    &[],
);

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
        sink.set(&RESTORED, &[], self.state.restored() as f64);
    }
}
