//! What a CA's server has done, for its metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A certificate was issued.
    Issued,
    /// The token is missing or worth nothing.
    Unauthenticated,
    /// The caller may not have the identity.
    Forbidden,
    /// The request is malformed.
    Invalid,
    /// The node or the address asks too often.
    Limited,
    /// The token could not be reviewed.
    Unavailable,
    /// The CA itself failed.
    Failed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Issued,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Invalid,
        Self::Limited,
        Self::Unavailable,
        Self::Failed,
    ];

    /// As a label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Invalid => "invalid",
            Self::Limited => "limited",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }
}

/// Counts of one server; they only grow.
#[derive(Debug, Default)]
pub struct Counters {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    reviews: AtomicU64,
    remembered: AtomicU64,
    handshakes_failed: AtomicU64,
}

impl Counters {
    /// Requests that ended like this.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.cell(outcome).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Tokens that were reviewed by the authenticator.
    pub fn reviews(&self) -> u64 {
        self.reviews.load(Ordering::Relaxed)
    }

    /// Tokens whose review was remembered.
    pub fn remembered(&self) -> u64 {
        self.remembered.load(Ordering::Relaxed)
    }

    /// Connections that ended before TLS stood.
    pub fn handshakes_failed(&self) -> u64 {
        self.handshakes_failed.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self, outcome: Outcome) {
        if let Some(cell) = self.cell(outcome) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn reviewed(&self) {
        self.reviews.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn was_remembered(&self) {
        self.remembered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    fn cell(&self, outcome: Outcome) -> Option<&AtomicU64> {
        self.outcomes.get(Outcome::ALL.iter().position(|one| *one == outcome)?)
    }
}
