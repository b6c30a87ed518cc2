//! Connections: TCP, and TLS of the application's own.

use std::net::SocketAddr;

use weft_core::decide::http::Caller;
use weft_core::decide::route_connection_traced;
use weft_core::resource::PortProtocol;

use super::chance::Chance;
use super::destination::{Destination, Exchange};
use super::gather::gather;
use super::hop::Outcome;
use super::http::picked;
use super::reach::{Reach, dialled};
use super::{DestinationView, Explanation, Inquiry, Spoken, rule};

/// Fills in the answer to a question about a connection.
pub(super) fn explain(inquiry: &Inquiry<'_>, spoken: Spoken, answer: &mut Explanation) {
    let dialled = dialled(inquiry, &mut answer.steps);
    if inquiry.source.in_mesh
        && let Some(destinations) = routed(inquiry, &dialled, spoken, answer)
    {
        return gather(answer, destinations);
    }
    let reach = Reach::of(inquiry, &dialled, &mut answer.steps);
    if reach.candidates.is_empty() && reach.unready.is_empty() {
        return nowhere(answer, reach.otherwise);
    }
    let view = inquiry.unrouted_view();
    let destination = inquiry.endpoints(view, &reach.candidates, reach.unready, Exchange::default());
    gather(answer, vec![destination]);
}

/// The destinations of what was dialled, where that is a Service.
fn routed(
    inquiry: &Inquiry<'_>,
    dialled: &[SocketAddr],
    spoken: Spoken,
    answer: &mut Explanation,
) -> Option<Vec<Destination>> {
    // Only where TLS is declared does the proxy wait for the name.
    let declared = inquiry.declared() == PortProtocol::Tls;
    let sni = inquiry.sni().filter(|_| spoken == Spoken::Tls && declared);
    let (decision, trace) = route_connection_traced(inquiry.snapshot, &inquiry.caller(dialled), sni);
    if decision.targets.is_empty() {
        return None;
    }
    rule::describe_connection(&decision, &trace, answer);
    let mut chance = inquiry.question.seed.map(Chance::new);
    let targets = picked(&decision.targets, chance.as_mut(), answer);
    let destinations = targets.into_iter().map(|(target, weight)| match &target.cluster {
        Ok(cluster) => inquiry.cluster(cluster, weight, dialled, Exchange::default()),
        Err(name) => inquiry.missing(name, weight, &Exchange::default()),
    });
    Some(destinations.collect())
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
    /// Who asks, in the terms of the decisions.
    pub(super) fn caller(&self, dialled: &[SocketAddr]) -> Caller<'_> {
        let workload = &self.source.workload;
        let unknown = SocketAddr::new(super::unspecified(), self.target.port);
        let original = dialled.first().copied().unwrap_or(unknown);
        Caller { workload, original, labels: &workload.pod_labels }
    }

    /// The destination of what no rule routes.
    pub(super) fn unrouted_view(&self) -> DestinationView {
        let chosen = self.target.service().is_some_and(|service| !service.vips.is_empty());
        DestinationView {
            host: self.target.host(),
            port: self.target.port,
            weight: 100.0,
            load_balancer: if chosen { "LEAST_REQUEST" } else { "PASSTHROUGH" }.into(),
            ..DestinationView::default()
        }
    }
}
