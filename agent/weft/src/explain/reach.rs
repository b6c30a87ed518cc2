//! Where a connection may go when no rule routes it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::decide::outbound::{Candidate, Destination, OutboundDecision, outbound};
use weft_core::snapshot::CompiledService;

use super::Inquiry;
use super::hop::Outcome;
use super::source::Source;
use super::target::To;

/// What the client may dial, as resolving the name would answer; empty for names that the mesh does not know.
pub(super) fn dialled(inquiry: &Inquiry<'_>, steps: &mut Vec<String>) -> Vec<SocketAddr> {
    let port = inquiry.target.port;
    match &inquiry.target.to {
        To::Address(ip) => vec![SocketAddr::new(*ip, port)],
        To::Service(service) => match service.vips.first() {
            Some(vip) => vec![SocketAddr::new(*vip, port)],
            None => pods_of(service, port, steps),
        },
        To::Stranger(_) => Vec::new(),
    }
}

/// The name of a headless Service resolves to its pods: the client dials one of them on the port it names.
fn pods_of(service: &CompiledService, port: u16, steps: &mut Vec<String>) -> Vec<SocketAddr> {
    steps.push(format!(
        "Service {} is headless: its name resolves to the addresses of its pods, and the client chooses one of them.",
        service.key
    ));
    let endpoints = service.ports.iter().flat_map(|port| port.endpoints.iter());
    let ready = endpoints.filter(|endpoint| endpoint.ready);
    let mut ips: Vec<IpAddr> = ready.map(|endpoint| endpoint.addr().ip()).collect();
    ips.sort();
    ips.dedup();
    if ips.is_empty() {
        steps.push(format!("Service {} has no ready endpoint: its name resolves to nothing.", service.key));
    }
    ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

/// Where the connection may go.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) candidates: Vec<Candidate>,
    /// The addressed Service's endpoints that take no new connections, for the answer's list.
    pub(super) unready: Vec<SocketAddr>,
    /// What becomes of it when there is no candidate.
    pub(super) otherwise: Outcome,
}

impl Reach {
    fn nowhere(otherwise: Outcome) -> Self {
        Self { candidates: Vec::new(), unready: Vec::new(), otherwise }
    }

    /// Over all addresses that the client may dial.
    pub(super) fn of(inquiry: &Inquiry<'_>, dialled: &[SocketAddr], steps: &mut Vec<String>) -> Self {
        if let To::Stranger(host) = &inquiry.target.to {
            return Self::stranger(inquiry, host, steps);
        }
        if let [original] = dialled {
            let mut reach = Self::decided(inquiry, *original, steps);
            reach.unready = unready(inquiry.target.service(), original.port());
            return reach;
        }
        let mut reach = Self::nowhere(Outcome::Unreachable);
        for original in dialled {
            let one = Self::decided(inquiry, *original, &mut Vec::new());
            reach.candidates.extend(one.candidates);
        }
        reach
    }

    fn stranger(inquiry: &Inquiry<'_>, host: &str, steps: &mut Vec<String>) -> Self {
        if inquiry.source.in_mesh && inquiry.snapshot.mesh().registry_only {
            steps.push(format!(
                "outboundTrafficPolicy is REGISTRY_ONLY and no Service is named {host}: refused."
            ));
            return Self::nowhere(Outcome::Unreachable);
        }
        steps.push(format!(
            "The mesh knows no Service {host}: the connection goes to whatever address DNS gives."
        ));
        Self::nowhere(Outcome::Passthrough)
    }

    fn decided(inquiry: &Inquiry<'_>, original: SocketAddr, steps: &mut Vec<String>) -> Self {
        let source = inquiry.source;
        match outbound(inquiry.snapshot, &source.seeing(), original) {
            OutboundDecision::Endpoints { candidates, destination } => {
                steps.extend(choice(source, &destination, candidates.len()));
                Self { candidates, unready: Vec::new(), otherwise: Outcome::Unreachable }
            }
            OutboundDecision::Passthrough { .. } => {
                steps.push(format!(
                    "{original} belongs to no Service and no Pod: it is dialled as it stands."
                ));
                Self::nowhere(Outcome::Passthrough)
            }
            // Nobody keeps a client outside the mesh from dialling addresses that the mesh does not know.
            OutboundDecision::Unreachable { destination: Destination::Unknown, flag: "UH", .. }
                if !source.in_mesh =>
            {
                Self::nowhere(Outcome::Passthrough)
            }
            OutboundDecision::Unreachable { reason, flag, .. } => {
                steps.push(format!("Nobody to send to: {reason} (response flag {flag})."));
                Self::nowhere(Outcome::Unreachable)
            }
        }
    }
}

fn unready(service: Option<&Arc<CompiledService>>, number: u16) -> Vec<SocketAddr> {
    let endpoints = service.and_then(|service| service.port(number)).map(|port| &*port.endpoints);
    let unready = endpoints.unwrap_or_default().iter().filter(|endpoint| !endpoint.ready);
    unready.map(|endpoint| endpoint.addr()).collect()
}

/// Ruling 17: who chooses the endpoint, and how.
fn choice(source: &Source, destination: &Destination, ready: usize) -> Option<String> {
    let (service, port) = destination.service_port()?;
    if ready < 2 {
        return Some(format!("Port {} of Service {} has one ready endpoint.", port.port, service.key));
    }
    let how = if source.in_mesh {
        "the proxy takes the one with fewer open connections of two chosen at random, the kernel (direct path) any one at random"
    } else {
        "the cluster's own service proxy chooses one"
    };
    Some(format!("Port {} of Service {} has {ready} ready endpoints: {how}.", port.port, service.key))
}
