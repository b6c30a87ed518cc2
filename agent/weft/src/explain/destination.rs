//! One of a rule's destinations: its policy, its endpoints, and what leaves for it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use weft_core::decide::Candidate;
use weft_core::decide::http::{Cluster, ClusterPolicy, cluster_candidates, is_endpoint_of_headless};
use weft_core::kernel_view::kernel_chooses;
use weft_core::resource::destination_rule::{HashKey, LoadBalancer};

use super::hop::{Hop, Outcome};
use super::question::AskedRequest;
use super::{DestinationView, EndpointView, HashView, Inquiry, ObjectView, RequestView, ResponseView, reply};

/// What leaves for one destination, and what is done to its answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Exchange {
    /// `None` for connections.
    pub(super) request: Option<AskedRequest>,
    pub(super) response_headers: Vec<(String, Option<String>)>,
}

/// A destination with everything decided about it.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) view: DestinationView,
    pub(super) hops: Vec<Hop>,
    pub(super) outcome: Outcome,
    /// How an endpoint is chosen, or why there is none, as the end of a sentence about the destination.
    pub(super) choice: Option<String>,
    /// What the rule changes about the request, in words.
    pub(super) changes: Vec<String>,
    pub(super) request: Option<RequestView>,
    pub(super) response: Option<ResponseView>,
    pub(super) response_headers: Vec<(String, Option<String>)>,
    pub(super) hash: Option<HashView>,
}

impl Destination {
    /// The endpoint that stands for the destination's verdict.
    pub(super) fn decisive(&self) -> Option<&Hop> {
        self.hops.iter().find(|hop| hop.outcome == self.outcome).or(self.hops.first())
    }
}

impl Inquiry<'_> {
    /// The endpoints of a cluster, each with its decision.
    pub(super) fn cluster(
        &self,
        cluster: &Arc<Cluster>,
        weight: f64,
        dialled: &[SocketAddr],
        exchange: Exchange,
    ) -> Destination {
        let candidates = self.candidates(cluster, dialled);
        let own_choice = dialled.iter().any(|original| is_endpoint_of_headless(cluster, *original));
        let view = DestinationView {
            host: cluster.host.to_string(),
            port: cluster.port,
            subset: cluster.subset.as_deref().map(Into::into),
            weight,
            policy: cluster.policy.object.as_ref().map(ObjectView::from),
            load_balancer: match own_choice {
                true => "PASSTHROUGH".into(),
                false => load_balancer(&cluster.policy.load_balancer).into(),
            },
            ..DestinationView::default()
        };
        let unready = cluster.endpoints.iter().filter(|endpoint| !(endpoint.ready || own_choice));
        let unready = unready.map(|endpoint| endpoint.addr()).collect();
        let mut destination = self.endpoints(view, &candidates, unready, exchange);
        destination.view.tls = tls(&cluster.policy, &destination.hops).into();
        destination.choice = Some(if destination.hops.is_empty() {
            nobody(cluster)
        } else if own_choice {
            "is headless: the client dials one of its endpoints itself".into()
        } else {
            let kernel = kernel_chooses(self.snapshot, &cluster.service);
            choice(cluster, &destination.hops, (destination.request.is_some(), kernel))
        });
        self.prefer(cluster, &mut destination);
        destination.hash = hash(&cluster.policy, destination.request.is_some());
        destination
    }

    fn candidates(&self, cluster: &Cluster, dialled: &[SocketAddr]) -> Vec<Candidate> {
        // Where a name of the user's DNS leads is not known: both families count.
        let port = self.target.port;
        let unknown = [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
        let dialled = if dialled.is_empty() { &unknown[..] } else { dialled };
        let mut candidates: Vec<Candidate> = Vec::new();
        for original in dialled {
            let more = cluster_candidates(self.snapshot, &self.source.workload, cluster, *original);
            let new = |candidate: &Candidate| {
                let known = candidates.iter().any(|known| known.addr == candidate.addr);
                !known && !candidate.addr.ip().is_unspecified()
            };
            let more: Vec<_> = more.into_iter().filter(new).collect();
            candidates.extend(more);
        }
        candidates
    }

    /// A destination of given endpoints.
    pub(super) fn endpoints(
        &self,
        mut view: DestinationView,
        candidates: &[Candidate],
        unready: Vec<SocketAddr>,
        exchange: Exchange,
    ) -> Destination {
        let asked = exchange.request.as_ref();
        let hops: Vec<Hop> = candidates.iter().map(|candidate| self.hop(candidate, asked)).collect();
        view.endpoints = hops.iter().map(Hop::endpoint).collect();
        let listed = |addr: &SocketAddr| candidates.iter().any(|candidate| candidate.addr == *addr);
        let unready = unready.iter().filter(|addr| !listed(addr));
        view.endpoints.extend(unready.map(|addr| self.unready(addr)));
        // The path says how bytes travel; `tls` is the mode in the sense of a DestinationRule.
        let mutual = hops.iter().any(|hop| hop.path != "plaintext");
        view.tls = if mutual { "ISTIO_MUTUAL" } else { "DISABLE" }.into();
        let outcome = Outcome::of(&hops).unwrap_or(Outcome::Unreachable);
        let mut destination = Destination {
            view,
            hops,
            outcome,
            choice: None,
            changes: Vec::new(),
            request: None,
            response: None,
            response_headers: exchange.response_headers,
            hash: None,
        };
        destination.answer(exchange.request);
        destination
    }

    /// An endpoint that takes no new connections.
    fn unready(&self, addr: &SocketAddr) -> EndpointView {
        let workload = self.snapshot.workload_by_ip(&addr.ip());
        EndpointView {
            address: addr.to_string(),
            pod: workload.map(|workload| workload.key.to_string()),
            node: workload.and_then(|workload| workload.node.as_deref().map(Into::into)),
            ..EndpointView::default()
        }
    }

    /// A destination that does not exist: 503 for requests (E25), an end for connections.
    pub(super) fn missing(&self, name: &str, weight: f64, exchange: &Exchange) -> Destination {
        let grpc = exchange.request.as_ref().map(AskedRequest::is_grpc);
        let (host, port, subset) = name_parts(name);
        Destination {
            view: DestinationView {
                host: host.into(),
                port: port.unwrap_or(self.target.port),
                subset: subset.map(Into::into),
                weight,
                load_balancer: "LEAST_REQUEST".into(),
                tls: "DISABLE".into(),
                ..DestinationView::default()
            },
            hops: Vec::new(),
            outcome: if grpc.is_some() { Outcome::Respond } else { Outcome::Unreachable },
            changes: Vec::new(),
            choice: Some("does not exist: there is no such host, port or subset (response flag NC)".into()),
            request: exchange.request.as_ref().map(|request| request_view(request, None)),
            response: grpc.map(|grpc| reply::plain(503, "", "no_cluster", grpc)),
            response_headers: Vec::new(),
            hash: None,
        }
    }
}

impl Destination {
    fn answer(&mut self, request: Option<AskedRequest>) {
        let Some(request) = request else { return };
        if self.hops.is_empty() {
            self.outcome = Outcome::Respond;
            self.response = Some(reply::plain(503, "no healthy upstream", "no_endpoints", request.is_grpc()));
        } else {
            self.response = self.decisive().and_then(|hop| hop.response.clone());
        }
        self.request = Some(request_view(&request, self.decisive()));
    }
}

/// Ruling 17: who chooses the endpoint, and how.
fn choice(cluster: &Cluster, hops: &[Hop], (request, kernel): (bool, bool)) -> String {
    if let [_] = hops {
        return "has one ready endpoint".into();
    }
    let open = if request { "requests" } else { "connections" };
    let how = match &cluster.policy.load_balancer {
        LoadBalancer::LeastRequest => format!("the one with fewer open {open} of two chosen at random"),
        LoadBalancer::RoundRobin => "one after the other".into(),
        LoadBalancer::Random => "any one at random".into(),
        LoadBalancer::Passthrough => "the one that the client dialled".into(),
        LoadBalancer::ConsistentHash { .. } => match hash(&cluster.policy, request) {
            Some(hash) => format!("the one that the hash of {} gives", hash.source),
            None => {
                format!("the one with fewer open {open} of two chosen at random, as there is nothing to hash")
            }
        },
    };
    let by = cluster.policy.object.as_ref().map(|object| format!(" (loadBalancer of {object})"));
    let direct = kernel && hops.iter().any(|hop| hop.path == "direct");
    let kernel = if direct { ", the kernel (direct path) any one at random" } else { "" };
    let (ready, by) = (hops.len(), by.unwrap_or_default());
    format!("has {ready} ready endpoints: the proxy takes {how}{by}{kernel}")
}

fn nobody(cluster: &Cluster) -> String {
    let ready = cluster.endpoints.iter().any(|endpoint| endpoint.ready);
    match &cluster.policy.object {
        Some(object) if ready && cluster.policy.tls.is_some() => {
            format!(
                "has no endpoint that speaks mTLS, which tls.mode ISTIO_MUTUAL of {object} demands (response flag UH)"
            )
        }
        Some(_) | None => "has no ready endpoint (response flag UH)".into(),
    }
}

fn request_view(request: &AskedRequest, hop: Option<&Hop>) -> RequestView {
    let headers = hop.and_then(|hop| hop.headers.as_ref()).unwrap_or(&request.headers);
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    RequestView {
        method: request.method.clone(),
        authority: Some(request.authority.clone()),
        path: Some(hop.and_then(|hop| hop.target.as_ref()).unwrap_or(&request.target).clone()),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
    }
}

/// `outbound|PORT|SUBSET|HOST`, or a bare host.
pub(super) fn name_parts(name: &str) -> (&str, Option<u16>, Option<&str>) {
    let mut parts = name.split('|').skip(1);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(port), Some(subset), Some(host)) => {
            (host, port.parse().ok(), Some(subset).filter(|subset| !subset.is_empty()))
        }
        _ => (name, None, None),
    }
}

/// The API's constant.
pub(crate) fn load_balancer(load_balancer: &LoadBalancer) -> &'static str {
    match load_balancer {
        LoadBalancer::LeastRequest => "LEAST_REQUEST",
        LoadBalancer::RoundRobin => "ROUND_ROBIN",
        LoadBalancer::Random => "RANDOM",
        LoadBalancer::Passthrough => "PASSTHROUGH",
        LoadBalancer::ConsistentHash { .. } => "CONSISTENT_HASH",
    }
}

/// The configured mode; without one what automatic mTLS does.
fn tls(policy: &ClusterPolicy, hops: &[Hop]) -> &'static str {
    match &policy.tls {
        Some(tls) => tls.mode.as_str(),
        None if hops.iter().any(|hop| hop.path != "plaintext") => "ISTIO_MUTUAL",
        None => "DISABLE",
    }
}

/// What is hashed: of a connection only its source address (D-7).
fn hash(policy: &ClusterPolicy, request: bool) -> Option<HashView> {
    let source = match policy.hash_key()? {
        HashKey::Header(name) if request => format!("header:{name}"),
        HashKey::Cookie { name, .. } if request => format!("cookie:{name}"),
        HashKey::Query(name) if request => format!("query:{name}"),
        HashKey::SourceIp => "source-ip".into(),
        HashKey::Header(_) | HashKey::Cookie { .. } | HashKey::Query(_) => return None,
    };
    Some(HashView { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clusters_are_taken_apart() {
        assert_eq!(name_parts("outbound|80|v1|a.b"), ("a.b", Some(80), Some("v1")));
        assert_eq!(name_parts("outbound|80||a.b"), ("a.b", Some(80), None));
        assert_eq!(name_parts("a.b"), ("a.b", None, None));
    }
}
