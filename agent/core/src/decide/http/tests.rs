//! The rules of routing, one by one. Names say the behaviour, comments the row.

mod actions;
mod connections;
mod discovery;
mod hosts;
mod matching;
mod naive;
mod policies;
mod small;
mod visibility;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::Snapshot;
use crate::compile::Compiler;
use crate::resource::virtual_service::{
    DestinationRef, ExportTo, HeaderChanges, HttpAction, HttpMatch, HttpRule, RouteDestination, TextMatch,
    VirtualService,
};
use crate::resource::*;
use crate::testing::*;

/// Namespaces `default` and `other` with Services and pods, and a client in each.
pub(crate) fn world() -> Vec<Resource> {
    let web = |vip: &str, name: &str, app: &str| {
        let ports = [
            port("http", 80, 8080, PortProtocol::Http),
            port("tcp", 9090, 9090, PortProtocol::Tcp),
            port("https", 443, 8443, PortProtocol::Tls),
        ];
        Resource::Service(service(name, &[vip], &format!("app={app}"), &ports))
    };
    let mut resources = vec![
        web("10.96.0.1", "default/a", "a"),
        web("10.96.0.2", "default/b", "b"),
        web("10.96.0.3", "default/c", "c"),
        web("10.96.0.4", "other/d", "d"),
        Resource::Service(service(
            "default/two",
            &["10.96.0.5"],
            "app=b",
            &[port("http", 8000, 8080, PortProtocol::Http), port("http-b", 8001, 8081, PortProtocol::Http)],
        )),
        Resource::Service(service(
            "default/one",
            &["10.96.0.6"],
            "app=c",
            &[port("http", 7000, 8080, PortProtocol::Http)],
        )),
        Resource::Service(service(
            "default/db",
            &[],
            "app=db",
            &[port("http", 80, 8080, PortProtocol::Http)],
        )),
    ];
    let pods = [
        ("default/client", "10.0.0.100", "app=client"),
        ("other/client", "10.0.0.101", "app=client"),
        ("default/a", "10.0.0.1", "app=a,version=v1"),
        ("default/b-v1", "10.0.0.2", "app=b,version=v1"),
        ("default/b-v2", "10.0.0.3", "app=b,version=v2"),
        ("default/c", "10.0.0.4", "app=c,version=v1"),
        ("other/d", "10.0.0.5", "app=d,version=v1"),
        ("default/db-0", "10.0.0.6", "app=db,version=v1"),
        ("default/db-1", "10.0.0.7", "app=db,version=v1"),
    ];
    resources.extend(pods.map(|(name, ip, labels)| Resource::Pod(pod(name, &[ip], labels))));
    resources
}

/// The world with more objects in it.
pub(crate) fn with(more: impl IntoIterator<Item = Resource>) -> Arc<Snapshot> {
    compile(world().into_iter().chain(more))
}

pub(crate) fn full(host: &str) -> Arc<str> {
    if host.contains('.') || host.starts_with('*') {
        return host.into();
    }
    format!("{host}.default.svc.cluster.local").into()
}

pub(crate) fn to(host: &str) -> RouteDestination {
    let (host, subset) =
        host.split_once('/').map_or((host, None), |(host, subset)| (host, Some(subset.into())));
    let destination = DestinationRef { host: full(host), subset, port: None };
    RouteDestination { destination, weight: 0, headers: HeaderOperations::default() }
}

/// A rule to these destinations with these matches.
pub(crate) fn rule(matches: Vec<HttpMatch>, destinations: &[&str]) -> HttpRule {
    let destinations = destinations.iter().map(|host| to(host)).collect();
    HttpRule { matches, action: HttpAction::Route(destinations), ..HttpRule::default() }
}

/// A rule that answers with a status of its own, by which tests know it.
pub(crate) fn answers(status: u16, matches: Vec<HttpMatch>) -> HttpRule {
    let response = crate::resource::virtual_service::DirectResponse { status, body: Arc::default() };
    HttpRule { matches, action: HttpAction::DirectResponse(response), ..HttpRule::default() }
}

pub(crate) fn virtual_service(name: &str, hosts: &[&str], http: Vec<HttpRule>) -> VirtualService {
    VirtualService {
        meta: meta(name),
        hosts: hosts.iter().map(|host| full(host)).collect(),
        gateways: vec!["mesh".into()],
        export_to: Vec::new(),
        http,
        tls: Vec::new(),
        tcp: Vec::new(),
    }
}

pub(crate) fn vs(name: &str, hosts: &[&str], http: Vec<HttpRule>) -> Resource {
    Resource::VirtualService(virtual_service(name, hosts, http))
}

pub(crate) fn exact(text: &str) -> Option<TextMatch> {
    Some(TextMatch::Exact(text.into()))
}

pub(crate) fn prefix(text: &str) -> Option<TextMatch> {
    Some(TextMatch::Prefix(text.into()))
}

pub(crate) fn regex(text: &str) -> Option<TextMatch> {
    Some(TextMatch::Regex(text.into()))
}

pub(crate) fn uri(uri: Option<TextMatch>) -> HttpMatch {
    HttpMatch { uri, ..HttpMatch::default() }
}

pub(crate) fn set(name: &str, value: &str) -> HeaderOperations {
    let request = HeaderChanges { set: vec![(name.into(), value.into())], ..HeaderChanges::default() };
    HeaderOperations { request, response: HeaderChanges::default() }
}

/// What a test sends.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    from: &'static str,
    original: SocketAddr,
    method: String,
    authority: String,
    target: String,
    headers: HeaderMap,
}

/// `GET target` from `default/client` to Service `b` on port 80, with Host `host`.
pub(crate) fn ask(host: &str, target: &str) -> Ask {
    Ask {
        from: "default/client",
        original: addr("10.96.0.2:80"),
        method: "GET".into(),
        authority: host.into(),
        target: target.into(),
        headers: HeaderMap::new(),
    }
}

/// What is known about every one of these requests.
pub(crate) fn circumstances() -> Circumstances<'static> {
    Circumstances {
        client: addr("10.244.0.9:40000"),
        original: addr("10.96.0.2:80"),
        protocol: "HTTP/1.1",
        pod: "client",
        time: &|format| format!("<{}>", format.unwrap_or("now")),
    }
}

impl Ask {
    pub(crate) fn from(self, from: &'static str) -> Self {
        Self { from, ..self }
    }

    pub(crate) fn dials(self, original: &str) -> Self {
        Self { original: addr(original), ..self }
    }

    pub(crate) fn method(self, method: &str) -> Self {
        Self { method: method.into(), ..self }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        self.headers.append(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    fn with<T>(&self, snapshot: &Snapshot, take: impl FnOnce(&Caller<'_>, &Request<'_>) -> T) -> T {
        let workload = snapshot.workload(&key(self.from)).expect("the client");
        let caller = Caller { workload, original: self.original, labels: &workload.pod_labels };
        let request = Request {
            method: &self.method,
            scheme: "http",
            authority: &self.authority,
            target: &self.target,
            headers: &self.headers,
        };
        take(&caller, &request)
    }

    pub(crate) fn route(&self, snapshot: &Snapshot) -> RouteDecision {
        self.with(snapshot, |caller, request| route(snapshot, caller, request))
    }

    fn traced(&self, snapshot: &Snapshot) -> (RouteDecision, Trace) {
        self.with(snapshot, |caller, request| route_traced(snapshot, caller, request))
    }

    /// How it leaves for the first target.
    fn leaves(&self, snapshot: &Snapshot) -> Outgoing {
        let decision = self.route(snapshot);
        let Action::Forward(forward) = &decision.action else { panic!("not forwarded: {decision:?}") };
        let target = &forward.targets[0];
        self.with(snapshot, |_, request| prepare(&decision, target, request, &circumstances()))
    }

    /// The headers with which it leaves for the first target.
    fn leaves_with(&self, snapshot: &Snapshot) -> HeaderMap {
        let mut headers = self.headers.clone();
        self.leaves(snapshot)
            .request_headers
            .iter()
            .for_each(|changes| apply(&changes.request, &mut headers));
        headers
    }

    /// The decision in short: clusters without their fixed beginning and end, a status, or `passthrough`.
    pub(crate) fn goes(&self, snapshot: &Snapshot) -> String {
        short(&self.route(snapshot))
    }
}

pub(crate) fn short(decision: &RouteDecision) -> String {
    match &decision.action {
        Action::Passthrough => "passthrough".into(),
        Action::Respond(reply) => format!("{} {}", reply.status, reply.by),
        Action::Forward(forward) => {
            let name = |target: &Target| match &target.cluster {
                Ok(cluster) => short_name(&cluster.name),
                Err(name) => format!("NC {}", short_name(name)),
            };
            forward.targets.iter().map(name).collect::<Vec<_>>().join(" ")
        }
    }
}

fn short_name(name: &str) -> String {
    let name = name.strip_prefix("outbound|").unwrap_or(name);
    name.strip_suffix(".svc.cluster.local").unwrap_or(name).to_owned()
}

fn forward_of(decision: &RouteDecision) -> &Forward {
    match &decision.action {
        Action::Forward(forward) => forward,
        Action::Respond(_) | Action::Passthrough => panic!("not forwarded: {decision:?}"),
    }
}

pub(crate) fn cluster_at(decision: &RouteDecision, at: usize) -> &Arc<Cluster> {
    forward_of(decision).targets[at].cluster.as_ref().expect("a cluster")
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.endpoints.iter().map(|endpoint| endpoint.addr().to_string()).collect()
}

fn applied(compiler: &mut Compiler, changes: impl IntoIterator<Item = Change>) -> Arc<Snapshot> {
    compiler.apply(changes);
    compiler.snapshot()
}
