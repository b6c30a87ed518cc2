//! Why does a connection or a request go where it goes? The same functions of `core` that the proxy asks, in words.
//!
//! Works on any snapshot: one that was compiled from files without a node (every pod is local then), or that
//! of the running agent (which knows the policies of its own pods only).

mod answer;
mod authorization;
mod capture;
mod chance;
mod connection;
mod destination;
mod gather;
mod hop;
mod http;
mod near;
mod question;
mod reach;
mod reply;
mod rule;
mod source;
mod target;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weft_core::Snapshot;
use weft_core::decide::protocol;
use weft_core::kernel_view::LearnedPorts;
use weft_core::resource::PortProtocol;

pub(crate) use self::answer::{
    AbortView, AuthorizationView, DelayView, DestinationView, DryRunView, EndpointView, Explanation,
    FaultView, HashView, MirrorView, ObjectView, PeerAuthenticationView, RequestAuthenticationView,
    RequestView, ResponseView, RetryView, RouteView, ServiceView, SourceView,
};
use self::capture::LeftAlone;
pub(crate) use self::destination::load_balancer;
use self::hop::Outcome;
pub(crate) use self::question::{Question, Unanswerable};
use self::source::Source;
use self::target::{Scheme, Target, To};

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
    let mut source = Source::parse(snapshot, question)?;
    let mut target = Target::parse(snapshot, &question.to, source.namespace())?;
    let mut steps = vec![source.sentence(), target.sentence(&question.to)];
    let left_alone = LeftAlone::of(snapshot, &source, &target);
    steps.extend(left_alone.map(|left| left.sentence().to_owned()));
    if left_alone == Some(LeftAlone::Excluded) {
        source = source.uncaptured();
    }
    if source.in_mesh {
        let (seen, hidden) = target.seen_from(&source.workload.key.namespace);
        target = seen;
        steps.extend(hidden);
    }
    let inquiry = Inquiry { snapshot, learned, question, source: &source, target: &target };
    let spoken = inquiry.spoken();
    let mut answer = Explanation {
        protocol: spoken.as_str().into(),
        service: target
            .service()
            .map(|service| ServiceView { host: service.host.to_string(), port: target.port }),
        source: source.view(),
        steps,
        ..Explanation::default()
    };
    if left_alone == Some(LeftAlone::Own) {
        connection::nowhere(&mut answer, Outcome::Passthrough);
        return Ok(answer);
    }
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
        let port = self.target.port;
        match (self.target.service(), &self.target.to) {
            // The pods of a headless Service may listen on any port.
            (Some(service), _) if service.vips.is_empty() && service.port(port).is_none() => {
                PortProtocol::Undeclared
            }
            (Some(service), _) => protocol::of_service(self.snapshot, service, port),
            (None, To::Address(ip)) => protocol::of_address(self.snapshot, SocketAddr::new(*ip, port)),
            (None, To::Stranger(_) | To::Service(_)) => PortProtocol::Undeclared,
        }
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
