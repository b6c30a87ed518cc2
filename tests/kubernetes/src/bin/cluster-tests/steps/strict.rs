//! Only the mesh may speak to the pods.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::poll_until;

use super::travel::{agents, protected, travel};
use super::{OUTSIDE, SHOP};
use crate::suite::{LIMIT, Peer, peer, start};

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
const WEB: (&str, &str) = (SHOP, "web");

/// Only the mesh may speak to the pods of `shop`.
pub(super) fn apply_strict(cluster: &Cluster) -> Result<()> {
    cluster.plane().apply(STRICT)
}

/// Kubelet's probes reach the application, strangers do not.
pub(super) fn strict(cluster: &Cluster) -> Result<()> {
    apply_strict(cluster)?;
    poll_until(LIMIT, || {
        let stranger = travel(cluster, (OUTSIDE, "stranger"), WEB)?;
        ensure!(!stranger.answered(), "a stranger is let in: {stranger:?}");
        Ok(())
    })
    .with_context(|| agents(cluster))?;
    protected(cluster, (SHOP, "client"), WEB)?;
    let probes = probes(cluster)?;
    poll_until(LIMIT, || {
        let now = self::probes(cluster)?;
        ensure!(now > probes + 3, "the application has seen {now} probes, and {probes} before");
        Ok(())
    })?;
    // One that is born under STRICT becomes ready as well.
    let newcomer = Peer {
        namespace: SHOP,
        name: "newcomer",
        node: "one",
        command: &["app", "--version", "new", "8080"],
        probe: Some(8080),
    };
    start(cluster, &[newcomer]).with_context(|| agents(cluster))?;
    let restarts = "-o=jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = cluster.kubectl(&["get", "pods", "-n", SHOP, restarts])?;
    ensure!(restarts.split(' ').all(|count| count == "0"), "a probe has failed until a restart: {restarts}");
    Ok(())
}

/// So many probes have come to the application; it is asked from inside of its own pod.
fn probes(cluster: &Cluster) -> Result<u64> {
    let answer = peer(cluster, SHOP, "web", &["get", "http://127.0.0.1:8080/seen"])?;
    let count = answer.pointer("/body/paths/~1healthz").and_then(Value::as_u64);
    count.with_context(|| format!("the application has seen no probe: {answer}"))
}
