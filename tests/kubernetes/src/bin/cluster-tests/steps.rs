//! What is tried.

use anyhow::{Result, ensure};
use weft_kubernetes_tests::cluster::Cluster;

use crate::suite::{Peer, Suite, address, namespace, peer, start};

/// Runs all steps.
pub(crate) fn run(suite: &mut Suite) {
    if !suite.required("pods of both nodes reach each other", |cluster, _| plain_pods(cluster)) {
        return;
    }
}

fn plain_pods(cluster: &Cluster) -> Result<()> {
    namespace(cluster, "shop")?;
    let peers = [
        Peer {
            namespace: "shop",
            name: "web",
            node: "two",
            command: &["app", "--version", "web", "8080"],
            probe: Some(8080),
        },
        Peer { namespace: "shop", name: "client", node: "one", command: &["serve", "echo:7"], probe: None },
    ];
    start(cluster, &peers)?;
    let url = format!("http://{}:8080/", address(cluster, "shop", "web")?);
    let answer = peer(cluster, "shop", "client", &["get", &url])?;
    ensure!(answer.get("status").is_some_and(|status| status == 200), "{answer}");
    Ok(())
}
