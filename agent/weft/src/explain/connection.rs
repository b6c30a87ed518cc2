//! Connections: TCP, and TLS of the application's own.

use super::destination::Exchange;
use super::gather::gather;
use super::hop::Outcome;
use super::reach::{Reach, dialled};
use super::{DestinationView, Explanation, Inquiry};

/// Fills in the answer to a question about a connection.
pub(super) fn explain(inquiry: &Inquiry<'_>, answer: &mut Explanation) {
    let dialled = dialled(inquiry, &mut answer.steps);
    let reach = Reach::of(inquiry, &dialled, &mut answer.steps);
    if reach.candidates.is_empty() && reach.unready.is_empty() {
        nowhere(answer, reach.otherwise);
        return;
    }
    let view = inquiry.unrouted_view();
    let destination = inquiry.endpoints(view, &reach.candidates, reach.unready, Exchange::default());
    gather(answer, vec![destination]);
}

/// There is nothing to dial inside the mesh.
pub(super) fn nowhere(answer: &mut Explanation, outcome: Outcome) {
    answer.verdict = outcome.as_str().into();
    if outcome == Outcome::Passthrough {
        answer.path = Some("passthrough".into());
        answer.steps.push("It goes to its original address, unrouted.".into());
    } else {
        answer.steps.push("The connection is closed: there is nobody to send it to.".into());
    }
}

impl Inquiry<'_> {
    /// The destination of what no rule routes.
    pub(super) fn unrouted_view(&self) -> DestinationView {
        let known = self.target.service().is_some();
        DestinationView {
            host: self.target.host(),
            port: self.target.port,
            weight: 100.0,
            load_balancer: if known { "LEAST_REQUEST" } else { "PASSTHROUGH" }.into(),
            ..DestinationView::default()
        }
    }
}
