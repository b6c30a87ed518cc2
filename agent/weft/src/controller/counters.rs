//! What the controller counts and shows at `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use weft_telemetry::{Family, ScrapeSink};

const LEADER: Family = Family::gauge(
    "weft_controller_leader",
    "1 on the controller that holds the Lease and writes, else 0.",
    &[],
);
const WRITES: Family = Family::counter(
    "weft_controller_status_writes_total",
    "Statuses of objects that were written, by result.",
    &["result"],
);
const OBJECTS: Family = Family::gauge(
    "weft_controller_objects",
    "Objects of the mesh that the leader has judged, by what became of them.",
    &["standing"],
);
const REVIEWS: Family = Family::counter(
    "weft_controller_admission_reviews_total",
    "Objects that the API server asked about before it stored them, by decision.",
    &["decision"],
);

/// What came of writing a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Done,
    /// The object had changed.
    Conflict,
    Failed,
}

/// What was answered to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Allowed,
    Denied,
    /// The question could not be understood, or we could not answer it.
    Failed,
}

/// Everything that is counted. Atomic additions; read at a scrape.
#[derive(Debug, Default)]
pub(super) struct Counters {
    writes: [AtomicU64; 3],
    reviews: [AtomicU64; 3],
    judged: AtomicU64,
    rejected: AtomicU64,
}

impl Counters {
    pub(super) fn wrote(&self, result: Write) {
        let [done, conflict, failed] = &self.writes;
        let counter = match result {
            Write::Done => done,
            Write::Conflict => conflict,
            Write::Failed => failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reviewed(&self, decision: Decision) {
        let [allowed, denied, failed] = &self.reviews;
        let counter = match decision {
            Decision::Allowed => allowed,
            Decision::Denied => denied,
            Decision::Failed => failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Of all objects, so many are rejected.
    pub(super) fn judged(&self, all: usize, rejected: usize) {
        self.judged.store(all as u64, Ordering::Relaxed);
        self.rejected.store(rejected as u64, Ordering::Relaxed);
    }

    /// Adds all samples; those of objects only on the leader, who alone knows them.
    pub(super) fn collect(&self, leads: bool, sink: &mut ScrapeSink) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        sink.set(&LEADER, &[], f64::from(u8::from(leads)));
        for (result, counter) in ["done", "conflict", "failed"].iter().zip(&self.writes) {
            sink.set(&WRITES, &[result], get(counter));
        }
        for (decision, counter) in ["allowed", "denied", "failed"].iter().zip(&self.reviews) {
            sink.set(&REVIEWS, &[decision], get(counter));
        }
        if leads {
            let (all, rejected) = (get(&self.judged), get(&self.rejected));
            sink.set(&OBJECTS, &["valid"], all - rejected);
            sink.set(&OBJECTS, &["rejected"], rejected);
        }
    }
}
