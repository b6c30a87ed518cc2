//! Why does a connection or a request go where it goes? The same functions of `core` that the proxy asks, in words.
//!
//! Works on any snapshot: one that was compiled from files without a node (every pod is local then), or that
//! of the running agent (which knows the policies of its own pods only).

mod answer;
mod authorization;
mod chance;
mod connection;
mod destination;
mod gather;
mod hop;
mod http;
mod question;
mod reach;
mod reply;
mod rule;
mod source;
mod target;

use std::net::{IpAddr, Ipv4Addr};

use weft_core::Snapshot;
use weft_core::kernel_view::LearnedPorts;
use weft_core::resource::PortProtocol;
use weft_core::snapshot::TrafficHint;

pub(crate) use self::answer::{
    AbortView, AuthorizationView, DelayView, DestinationView, DryRunView, EndpointView, Explanation,
    FaultView, HashView, MirrorView, ObjectView, PeerAuthenticationView, RequestAuthenticationView,
    RequestView, ResponseView, RetryView, RouteView, ServiceView, SourceView,
};
pub(crate) use self::destination::load_balancer;
pub(crate) use self::question::{Question, Unanswerable};
use self::source::Source;
use self::target::{Scheme, Target, To};

/// Ports on which servers speak first, unless somebody declares something else.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// A question with everything that stays the same while it is answered.
struct Inquiry<'a> {
    snapshot: &'a Snapshot,
    learned: &'a LearnedPorts,
    question: &'a Question,
    source: &'a Source,
    target: &'a Target,
}

/// Answers a question.
pub(crate) fn explain(
    snapshot: &Snapshot,
    learned: &LearnedPorts,
    question: &Question,
) -> Result<Explanation, Unanswerable> {
    if let Some(gateway) = &question.at {
        return Err(Unanswerable(format!(
            "--at {gateway}: Gateways are checked but not executed; ask without --at."
        )));
    }
    let source = Source::parse(snapshot, question)?;
    let target = Target::parse(snapshot, &question.to, source.namespace())?;
    let inquiry = Inquiry { snapshot, learned, question, source: &source, target: &target };
    let spoken = inquiry.spoken();
    let mut answer = Explanation {
        protocol: spoken.as_str().into(),
        service: target
            .service()
            .map(|service| ServiceView { host: service.host.to_string(), port: target.port }),
        source: source.view(),
        steps: vec![source.sentence(), target.sentence(&question.to)],
        ..Explanation::default()
    };
    answer.steps.extend(inquiry.surprise(spoken));
    match spoken {
        Spoken::Http | Spoken::Grpc => http::explain(&inquiry, &mut answer)?,
        Spoken::Tls | Spoken::Tcp => connection::explain(&inquiry, spoken, &mut answer),
    }
    Ok(answer)
}

/// What the mesh takes the bytes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Http,
    Grpc,
    Tls,
    Tcp,
}

impl Spoken {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

impl Inquiry<'_> {
    /// as the port is declared; by the first bytes where it is not.
    fn spoken(&self) -> Spoken {
        let opaque = if self.speaks_tls() { Spoken::Tls } else { Spoken::Tcp };
        match self.declared() {
            PortProtocol::Http | PortProtocol::Http2 if self.target.scheme != Scheme::Tcp => Spoken::Http,
            PortProtocol::Grpc | PortProtocol::GrpcWeb if self.target.scheme != Scheme::Tcp => Spoken::Grpc,
            PortProtocol::Undeclared if self.target.scheme == Scheme::Http => Spoken::Http,
            PortProtocol::Undeclared
                if self.target.scheme == Scheme::None && self.question.is_about_a_request() =>
            {
                Spoken::Http
            }
            PortProtocol::Tls => Spoken::Tls,
            PortProtocol::Http
            | PortProtocol::Http2
            | PortProtocol::Grpc
            | PortProtocol::GrpcWeb
            | PortProtocol::Undeclared
            | PortProtocol::Tcp
            | PortProtocol::Udp => opaque,
        }
    }

    /// Whether the client begins with TLS of its own.
    fn speaks_tls(&self) -> bool {
        self.target.scheme == Scheme::Https || self.question.sni.is_some() || self.question.alpn.is_some()
    }

    /// Server name of the client's own TLS: as asked, else that of the URL.
    fn sni(&self) -> Option<&str> {
        let of_url = match (self.target.scheme, &self.target.to) {
            (Scheme::Https, To::Service(_) | To::Stranger(_)) => Some(self.target.name.as_str()),
            (_, _) => None,
        };
        self.question.sni.as_deref().or(of_url)
    }

    /// What the dialled port speaks as far as anybody says; `Tcp` where the mesh does not look into it.
    fn declared(&self) -> PortProtocol {
        let (protocol, pod) = match (self.target.service(), &self.target.to) {
            (Some(service), _) => match service.port(self.target.port) {
                Some(port) => (port.protocol, port.endpoints.first().map(|endpoint| endpoint.addr.ip())),
                // Nobody answers there, whatever is spoken.
                None if !service.vips.is_empty() => (PortProtocol::Tcp, None),
                None => (PortProtocol::Undeclared, None),
            },
            (None, To::Address(ip)) => (self.declared_by_pod(ip), Some(*ip)),
            (None, To::Stranger(_) | To::Service(_)) => (PortProtocol::Undeclared, None),
        };
        let local = |ip| self.snapshot.local_workload(&self.snapshot.workload_by_ip(&ip)?.key);
        // Ruling 5: the annotation has the last word.
        match pod.and_then(local).and_then(|local| local.traffic) {
            Some(TrafficHint::L4) => PortProtocol::Tcp,
            Some(TrafficHint::L7) if !protocol.is_http() => PortProtocol::Undeclared,
            Some(TrafficHint::L7) | None => protocol,
        }
    }

    fn declared_by_pod(&self, ip: &IpAddr) -> PortProtocol {
        let workload = self.snapshot.workload_by_ip(ip);
        let Some(local) = workload.and_then(|workload| self.snapshot.local_workload(&workload.key)) else {
            let server_first = SERVER_FIRST.contains(&self.target.port);
            return if server_first { PortProtocol::Tcp } else { PortProtocol::Undeclared };
        };
        let found = local.declared_ports.iter().find(|(port, _)| *port == self.target.port);
        found.map_or(PortProtocol::Undeclared, |(_, protocol)| *protocol)
    }

    /// Where the port is not taken for what the question says.
    fn surprise(&self, spoken: Spoken) -> Option<String> {
        let text = match (spoken, self.target.scheme) {
            (Spoken::Http | Spoken::Grpc, Scheme::None) if !self.question.is_about_a_request() => {
                "The port speaks HTTP: this is the answer for `GET /`; ask with a URL for another request."
            }
            (Spoken::Tcp | Spoken::Tls, Scheme::Http) => {
                "The mesh does not take this port for HTTP: a request is bytes like all others, and no rule about requests applies."
            }
            (_, _) if self.question.is_about_a_request() && matches!(spoken, Spoken::Tcp | Spoken::Tls) => {
                "The mesh does not see requests here: what the question says about one has no effect."
            }
            (_, _) => return None,
        };
        Some(text.into())
    }
}

/// An address of which nothing is known but its family.
fn unspecified() -> IpAddr {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod tests;
