//! Into the mesh and out of it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::{Metrics, get, poll_until};

use super::travel::{agents, plain, protected, travel};
use super::{OUTSIDE, SHOP};
use crate::suite::{LIMIT, agent_pods, namespace, start};

const CLIENT: (&str, &str) = (SHOP, "client");
const WEB: (&str, &str) = (SHOP, "web");

/// Pods that run already are taken in, without a restart.
pub(super) fn label(cluster: &Cluster) -> Result<()> {
    namespace(cluster, OUTSIDE)?;
    start(cluster, &[super::pods::stranger()])?;
    let before = travel(cluster, CLIENT, WEB)?;
    ensure!(before.answered() && before.readable, "nothing is in the mesh yet: {before:?}");
    cluster.kubectl(&["label", "namespace", SHOP, "weft.dev/mesh=enabled"])?;
    protected(cluster, CLIENT, WEB)?;
    let restarts = "-o=jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = cluster.kubectl(&["get", "pods", "-n", SHOP, restarts])?;
    ensure!(restarts.split(' ').all(|count| count == "0"), "pods were restarted: {restarts}");
    // Strangers are still let in: nothing demands the mesh.
    plain(cluster, (OUTSIDE, "stranger"), WEB)
}

/// The agent of the server's node counts the request with both identities.
pub(super) fn metrics(cluster: &Cluster) -> Result<()> {
    let wanted = [
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/default"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/default"),
        ("source_workload_namespace", SHOP),
        ("reporter", "destination"),
    ];
    protected(cluster, CLIENT, WEB)?;
    poll_until(LIMIT, || {
        let mut text = String::new();
        for pod in agent_pods(cluster)? {
            let address = format!("{}:15020", pod.address).parse()?;
            text += &get(Path::new("/proc/self/ns/net"), address, "/metrics")?.body;
        }
        let metrics = Metrics::parse(&text);
        let count = metrics.value("istio_requests_total", &wanted)
            + metrics.value("istio_tcp_connections_opened_total", &wanted);
        let have: Vec<&str> = text
            .lines()
            .filter(|l| {
                l.starts_with("istio_requests_total") || l.starts_with("istio_tcp_connections_opened")
            })
            .take(4)
            .collect();
        ensure!(count > 0.0, "no agent has counted the request; they have {have:#?}");
        Ok(())
    })
    .with_context(|| agents(cluster))
}

/// Running pods are let go, without a restart.
pub(super) fn unlabel(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["label", "namespace", SHOP, "weft.dev/mesh-"])?;
    plain(cluster, CLIENT, WEB)?;
    plain(cluster, (OUTSIDE, "stranger"), WEB)
}
