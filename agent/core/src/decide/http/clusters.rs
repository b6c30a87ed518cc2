//! The endpoints of a cluster as one client reaches them.

use std::net::SocketAddr;

use super::Cluster;
use crate::Snapshot;
use crate::decide::outbound::{self, Candidate, Path};
use crate::resource::destination_rule::{ClientTls, ClientTlsMode, LoadBalancer};
use crate::snapshot::Workload;

/// The ready endpoints of a cluster, each with how `source` reaches it. `original` is what the client dialled.
///
/// With PASSTHROUGH, and for a headless Service of which the client dialled an endpoint, that is the only
/// one. Where the client's policy demands ISTIO_MUTUAL, endpoints that cannot speak it are left out (D-18).
pub fn cluster_candidates(
    snapshot: &Snapshot,
    source: &Workload,
    cluster: &Cluster,
    original: SocketAddr,
) -> Vec<Candidate> {
    let tls = cluster.policy.tls.as_ref();
    if cluster.policy.load_balancer == LoadBalancer::Passthrough || is_endpoint_of_headless(cluster, original)
    {
        return under_policy(tls, outbound::candidate(snapshot, source, original)).into_iter().collect();
    }
    // A client of one address family may have no route in the other.
    let dialable = |addr: &SocketAddr| addr.is_ipv4() == original.is_ipv4();
    let ready = cluster.endpoints.iter().filter(|endpoint| endpoint.ready && dialable(&endpoint.addr()));
    ready
        .filter_map(|endpoint| under_policy(tls, outbound::candidate(snapshot, source, endpoint.addr())))
        .collect()
}

/// Whether the client that dialled `original` chose an endpoint of a headless Service itself.
pub fn is_endpoint_of_headless(cluster: &Cluster, original: SocketAddr) -> bool {
    let endpoint = || cluster.endpoints.binary_search_by_key(&original, |endpoint| endpoint.addr());
    cluster.service.vips.is_empty() && endpoint().is_ok()
}

/// How an endpoint is reached under a client's policy (D-18); `None` where the policy cannot be kept with it.
pub fn under_policy(tls: Option<&ClientTls>, candidate: Candidate) -> Option<Candidate> {
    let Some(tls) = tls else { return Some(candidate) };
    match (tls.mode, &candidate.path) {
        (ClientTlsMode::IstioMutual, Path::SameNode(_) | Path::Hbone(_)) => {
            is_named(tls, &candidate).then_some(candidate)
        }
        (ClientTlsMode::IstioMutual, Path::Plaintext) => None,
        // No tunnel: the bytes are the client's own, or TLS that the policy asks for. That is plaintext on one node as
        // well: the endpoint's listener captures it, and nobody proves an identity (PA-5).
        (ClientTlsMode::Disable | ClientTlsMode::Simple | ClientTlsMode::Mutual, _) => {
            Some(Candidate { path: Path::Plaintext, ..candidate })
        }
    }
}

/// A pod of the mesh has to prove its own identity in any case; `subjectAltNames` says which identities will do.
fn is_named(tls: &ClientTls, candidate: &Candidate) -> bool {
    let identity = candidate.workload.as_ref().map(|workload| &workload.labels.principal);
    tls.subject_alt_names.is_empty() || identity.is_some_and(|own| tls.subject_alt_names.contains(own))
}
