//! From whom this agent has taken over, and who has taken over from it.

use std::sync::{Arc, OnceLock};

use weft_telemetry::{Family, Kind, ScrapeSink};

const HANDOVERS: Family = Family {
    name: "weft_handovers",
    help: "1 where this agent has taken over from another one that ran (role successor), or was replaced by one \
           (predecessor).",
    kind: Kind::Gauge,
    labels: &["role"],
};

/// Shared by status, metrics and the end.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing(Arc<Facts>);

#[derive(Debug, Default)]
struct Facts {
    predecessor: OnceLock<String>,
    successor: OnceLock<String>,
}

impl Standing {
    /// This agent goes on with what another one had.
    pub(super) fn took_over(&self, from: &str) {
        // There is one beginning.
        let _ = self.0.predecessor.set(from.to_owned());
    }

    /// Another agent goes on with what this one had.
    pub(super) fn handed_over(&self, to: &str) {
        // There is one end.
        let _ = self.0.successor.set(to.to_owned());
    }

    /// From whom this agent has taken over.
    pub(super) fn predecessor(&self) -> Option<String> {
        self.0.predecessor.get().cloned()
    }

    /// Who has taken over from this agent.
    pub(super) fn successor(&self) -> Option<String> {
        self.0.successor.get().cloned()
    }

    pub(super) fn measure(&self, sink: &mut ScrapeSink) {
        for (role, agent) in [("successor", &self.0.predecessor), ("predecessor", &self.0.successor)] {
            sink.set(&HANDOVERS, &[role], f64::from(u8::from(agent.get().is_some())));
        }
    }
}
