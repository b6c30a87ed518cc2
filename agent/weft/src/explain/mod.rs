//! Why does a connection go where it goes? The same functions of `core` that the proxy asks, in words.
//!
//! Works on any snapshot: one that was compiled from files without a node (every pod is local then), or that
//! of the running agent (which knows the policies of its own pods only).

mod answer;
mod authorization;
mod hop;
mod source;
mod target;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weft_core::Snapshot;
use weft_core::decide::outbound::{Candidate, Destination, OutboundDecision, outbound};
use weft_core::kernel_view::LearnedPorts;
use weft_core::resource::PortProtocol;
use weft_core::snapshot::{CompiledPort, CompiledService};

pub(crate) use self::answer::{
    AuthorizationView, DestinationView, DryRunView, EndpointView, Explanation, ObjectView,
    PeerAuthenticationView, RequestAuthenticationView, ResponseView, ServiceView, SourceView,
};
use self::hop::{Hop, Outcome};
use self::source::Source;
use self::target::{Scheme, Target, To};

/// What is asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Question {
    /// `NAMESPACE/POD`, an IP address, `spiffe://…` or `outside`.
    pub(crate) from: String,
    /// A URL, `HOST:PORT` or `IP:PORT`.
    pub(crate) to: String,
    /// The client does not use mTLS.
    pub(crate) plaintext: bool,
    /// Server name of the client's own TLS.
    pub(crate) sni: Option<String>,
}

/// A question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unanswerable(pub(crate) String);

/// Answers a question.
pub(crate) fn explain(
    snapshot: &Snapshot,
    learned: &LearnedPorts,
    question: &Question,
) -> Result<Explanation, Unanswerable> {
    let source = Source::parse(snapshot, question)?;
    let target = Target::parse(snapshot, &question.to, source.namespace())?;
    let mut steps = vec![source.sentence(), target.sentence(&question.to)];
    let route = Route::of(snapshot, &source, &target, &mut steps);
    let asked = hop::Asked { snapshot, learned, source: &source, sni: question.sni.as_deref() };
    let hops: Vec<Hop> = route.candidates.iter().map(|candidate| asked.hop(candidate)).collect();
    hop::describe(&hops, &mut steps);
    Ok(assemble(&source, &target, route, hops, steps))
}

/// Where the connection may go.
struct Route {
    candidates: Vec<Candidate>,
    /// Endpoints that take no new connections, for the answer's list.
    unready: Vec<SocketAddr>,
    /// The verdict when there is nothing to dial inside the mesh.
    otherwise: Outcome,
}

impl Route {
    fn nowhere(otherwise: Outcome) -> Self {
        Self { candidates: Vec::new(), unready: Vec::new(), otherwise }
    }

    fn of(snapshot: &Snapshot, source: &Source, target: &Target, steps: &mut Vec<String>) -> Self {
        match &target.to {
            To::Address(ip) => Self::decided(snapshot, source, SocketAddr::new(*ip, target.port), steps),
            To::Service(service) => Self::to_service(snapshot, source, service, target.port, steps),
            To::Stranger(host) => Self::stranger(snapshot, source, host, steps),
        }
    }

    fn to_service(
        snapshot: &Snapshot,
        source: &Source,
        service: &Arc<CompiledService>,
        number: u16,
        steps: &mut Vec<String>,
    ) -> Self {
        if let Some(vip) = service.vips.first() {
            let mut route = Self::decided(snapshot, source, SocketAddr::new(*vip, number), steps);
            let endpoints = service.port(number).map_or(&[][..], |port| &port.endpoints);
            route
                .unready
                .extend(endpoints.iter().filter(|endpoint| !endpoint.ready).map(|endpoint| endpoint.addr));
            return route;
        }
        Self::to_headless(snapshot, source, service, number, steps)
    }

    /// The name of a headless Service resolves to its pods: the client dials one of them on the port it names.
    fn to_headless(
        snapshot: &Snapshot,
        source: &Source,
        service: &CompiledService,
        number: u16,
        steps: &mut Vec<String>,
    ) -> Self {
        steps.push(format!(
            "Service {} is headless: its name resolves to the addresses of its pods, and the client chooses one of them.",
            service.key
        ));
        let endpoints = service.ports.iter().flat_map(|port| port.endpoints.iter());
        let mut ips: Vec<IpAddr> =
            endpoints.filter(|endpoint| endpoint.ready).map(|endpoint| endpoint.addr.ip()).collect();
        ips.sort();
        ips.dedup();
        let mut route = Self::nowhere(Outcome::Unreachable);
        for ip in ips {
            let one = Self::decided(snapshot, source, SocketAddr::new(ip, number), &mut Vec::new());
            route.candidates.extend(one.candidates);
        }
        if route.candidates.is_empty() {
            steps.push(format!(
                "Service {} has no ready endpoint: its name resolves to nothing.",
                service.key
            ));
        }
        route
    }

    fn stranger(snapshot: &Snapshot, source: &Source, host: &str, steps: &mut Vec<String>) -> Self {
        if source.in_mesh && snapshot.mesh().registry_only {
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

    fn decided(snapshot: &Snapshot, source: &Source, original: SocketAddr, steps: &mut Vec<String>) -> Self {
        match outbound(snapshot, &source.workload, original) {
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

fn assemble(
    source: &Source,
    target: &Target,
    route: Route,
    hops: Vec<Hop>,
    mut steps: Vec<String>,
) -> Explanation {
    let outcome = Outcome::of(&hops).unwrap_or(route.otherwise);
    let decisive = hops.iter().find(|hop| hop.outcome == outcome);
    steps.push(outcome.sentence(hops.iter().filter(|hop| hop.outcome == outcome).count(), hops.len()));
    let path = match outcome {
        Outcome::Passthrough => Some("passthrough"),
        Outcome::Allow | Outcome::Deny | Outcome::Unreachable => decisive.map(|hop| hop.path),
    };
    let declared = target.declared_port();
    Explanation {
        verdict: outcome.as_str().into(),
        protocol: protocol(target, declared).into(),
        path: path.map(Into::into),
        service: target
            .service()
            .map(|service| ServiceView { host: service.host.to_string(), port: target.port }),
        route: None,
        destinations: destinations(target, &route, &hops),
        response: None,
        source: source.view(),
        peer_authentication: decisive.and_then(|hop| hop.peer_authentication.clone()),
        authorization: decisive.map(|hop| hop.authorization.clone()).unwrap_or_default(),
        steps,
    }
}

fn protocol(target: &Target, declared: Option<&CompiledPort>) -> &'static str {
    match (declared.map(|port| port.protocol), target.scheme) {
        (Some(PortProtocol::Http | PortProtocol::Http2), _) => "http",
        (Some(PortProtocol::Grpc | PortProtocol::GrpcWeb), _) => "grpc",
        (Some(PortProtocol::Tls), _) => "tls",
        (Some(PortProtocol::Tcp | PortProtocol::Udp), _) => "tcp",
        (Some(PortProtocol::Undeclared) | None, Scheme::Http) => "http",
        (Some(PortProtocol::Undeclared) | None, Scheme::Https) => "tls",
        (Some(PortProtocol::Undeclared) | None, Scheme::None) => "tcp",
    }
}

fn destinations(target: &Target, route: &Route, hops: &[Hop]) -> Vec<DestinationView> {
    if hops.is_empty() && route.unready.is_empty() {
        return Vec::new();
    }
    let mut endpoints: Vec<EndpointView> = hops.iter().map(Hop::endpoint).collect();
    endpoints.extend(route.unready.iter().map(|addr| EndpointView {
        address: addr.to_string(),
        ready: false,
        weight: 0,
        ..EndpointView::default()
    }));
    // The path says how bytes travel; `tls` is the mode in the sense of a DestinationRule.
    let mutual = hops.iter().any(|hop| hop.path != "plaintext");
    vec![DestinationView {
        host: target.host(),
        port: target.port,
        subset: None,
        weight: 100,
        policy: None,
        load_balancer: if target.service().is_some() { "LEAST_REQUEST" } else { "PASSTHROUGH" }.into(),
        tls: if mutual { "ISTIO_MUTUAL" } else { "DISABLE" }.into(),
        endpoints,
    }]
}

/// An address of which nothing is known but its family.
fn unspecified() -> IpAddr {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

#[cfg(test)]
mod tests;
