//! The endpoints of a cluster as one client reaches them.

use std::net::SocketAddr;

use super::Cluster;
use crate::Snapshot;
use crate::decide::outbound::{self, Candidate, Path};
use crate::resource::destination_rule::{ClientTlsMode, LoadBalancer};
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
    let mode = cluster.policy.tls.as_ref().map(|tls| tls.mode);
    if cluster.policy.load_balancer == LoadBalancer::Passthrough || dialled_headless(cluster, original) {
        return with_tls(mode, outbound::candidate(snapshot, source, original)).into_iter().collect();
    }
    // A client of one address family may have no route in the other.
    let dialable = |addr: &SocketAddr| addr.is_ipv4() == original.is_ipv4();
    let ready = cluster.endpoints.iter().filter(|endpoint| endpoint.ready && dialable(&endpoint.addr));
    ready
        .filter_map(|endpoint| with_tls(mode, outbound::candidate(snapshot, source, endpoint.addr)))
        .collect()
}

fn dialled_headless(cluster: &Cluster, original: SocketAddr) -> bool {
    let endpoint = || cluster.endpoints.binary_search_by_key(&original, |endpoint| endpoint.addr);
    cluster.service.vips.is_empty() && endpoint().is_ok()
}

fn with_tls(mode: Option<ClientTlsMode>, candidate: Candidate) -> Option<Candidate> {
    match (mode, &candidate.path) {
        (None, _) | (Some(ClientTlsMode::IstioMutual), Path::SameNode(_) | Path::Hbone(_)) => Some(candidate),
        (Some(ClientTlsMode::IstioMutual), Path::Plaintext) => None,
        // No tunnel: the bytes are the client's own, or TLS that the policy asks for. That is plaintext on one node as
        // well: the endpoint's listener captures it, and nobody proves an identity (PA-5).
        (Some(ClientTlsMode::Disable | ClientTlsMode::Simple | ClientTlsMode::Mutual), _) => {
            Some(Candidate { path: Path::Plaintext, ..candidate })
        }
    }
}
