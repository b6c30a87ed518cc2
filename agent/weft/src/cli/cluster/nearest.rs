//! Which agent knows most about a connection: that of the node where it begins, else of the node where it ends.

use std::net::IpAddr;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;

use super::{Agent, Cluster, reading};

impl Cluster {
    /// The agent to ask about a connection, as `--from` and `--to` name its ends.
    pub(in super::super) async fn nearest(&self, from: &str, to: &str) -> anyhow::Result<Agent> {
        let agents = self.agents(None).await?;
        let source = self.node_of_source(from).await?;
        let namespace = from.split_once('/').map(|(namespace, _)| namespace);
        let node = match source {
            Some(node) => Some(node),
            None => self.node_of_destination(to, namespace).await?,
        };
        if let Some(node) = &node {
            return match agents.iter().find(|agent| agent.node == *node) {
                Some(agent) => running(agent.clone()),
                None => bail!(
                    "no agent runs on the node {node}, where the connection begins or ends; see `weft check`, or \
                     use --from-cluster"
                ),
            };
        }
        // Neither end is a pod: all agents know the same about it.
        let any = agents.into_iter().find(|agent| agent.not_running.is_none());
        any.context("no agent is running; see `weft check`, or use --from-cluster")
    }

    /// The node of the pod that connects; `None` for what is no pod of the cluster.
    async fn node_of_source(&self, from: &str) -> anyhow::Result<Option<String>> {
        if let Ok(ip) = from.trim_matches(['[', ']']).parse::<IpAddr>() {
            return self.node_of_ip(ip).await;
        }
        if from.contains("://") {
            return Ok(None);
        }
        let Some((namespace, name)) = from.split_once('/') else { return Ok(None) };
        let pods: Api<Pod> = Api::namespaced(self.client().clone(), namespace);
        let pod = pods.get_opt(name).await.map_err(|error| reading(&format!("the pod {from}"), &error))?;
        let pod = pod.with_context(|| {
            format!("--from {from}: there is no such pod; see `kubectl get pods --namespace {namespace}`")
        })?;
        Ok(pod.spec.and_then(|spec| spec.node_name))
    }

    async fn node_of_ip(&self, ip: IpAddr) -> anyhow::Result<Option<String>> {
        let pods: Api<Pod> = Api::all(self.client().clone());
        let with_ip = ListParams::default().fields(&format!("status.podIP={ip}"));
        let pods = pods.list(&with_ip).await.map_err(|error| reading("pods by their address", &error))?;
        Ok(pods.items.into_iter().find_map(|pod| pod.spec?.node_name))
    }

    /// The node of a pod that may answer.
    async fn node_of_destination(&self, to: &str, namespace: Option<&str>) -> anyhow::Result<Option<String>> {
        let host = host_of(to);
        if let Ok(ip) = host.parse::<IpAddr>() {
            return match self.node_of_ip(ip).await? {
                Some(node) => Ok(Some(node)),
                None => self.node_of_vip(ip).await,
            };
        }
        match service_of(host, namespace) {
            Some((namespace, name)) => self.node_of_service(&namespace, &name).await,
            None => Ok(None),
        }
    }

    async fn node_of_vip(&self, ip: IpAddr) -> anyhow::Result<Option<String>> {
        let services: Api<Service> = Api::all(self.client().clone());
        let services = services.list(&ListParams::default()).await;
        let services = services.map_err(|error| reading("the Services", &error))?;
        let has_ip = |service: &&Service| {
            let ips = service.spec.as_ref().and_then(|spec| spec.cluster_ips.as_deref()).unwrap_or_default();
            ips.iter().any(|one| one.parse() == Ok(ip))
        };
        let Some(service) = services.items.iter().find(has_ip) else { return Ok(None) };
        let metadata = &service.metadata;
        match (&metadata.namespace, &metadata.name) {
            (Some(namespace), Some(name)) => self.node_of_service(namespace, name).await,
            (_, _) => Ok(None),
        }
    }

    async fn node_of_service(&self, namespace: &str, name: &str) -> anyhow::Result<Option<String>> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client().clone(), namespace);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let slices = slices.list(&of_service).await;
        let slices =
            slices.map_err(|error| reading(&format!("the endpoints of {namespace}/{name}"), &error))?;
        Ok(slices.items.into_iter().flat_map(|slice| slice.endpoints).find_map(|endpoint| endpoint.node_name))
    }
}

fn running(agent: Agent) -> anyhow::Result<Agent> {
    match &agent.not_running {
        None => Ok(agent),
        Some(why) => bail!(
            "the agent of the node {} cannot be asked: {why}; see `weft check`, or use --from-cluster",
            agent.node
        ),
    }
}

/// The host in `--to`, without brackets.
fn host_of(to: &str) -> &str {
    let rest = to.split_once("://").map_or(to, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Namespace and name of the Service that a name in the cluster's DNS means.
fn service_of(host: &str, namespace: Option<&str>) -> Option<(String, String)> {
    let mut labels = host.split('.');
    let name = labels.next().filter(|name| !name.is_empty())?;
    let (second, third) = (labels.next(), labels.next());
    let namespace = match (second, third) {
        (None, _) => namespace?,
        (Some(namespace), None | Some("svc")) => namespace,
        (Some(_), Some(_)) => return None,
    };
    Some((namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_what_is_dialled() {
        for (to, host) in [
            ("http://reviews:9080/x?y=1", "reviews"),
            ("reviews.shop:9080", "reviews.shop"),
            ("https://[fd00::1]:80/", "fd00::1"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("http://a?b", "a"),
            ("", ""),
        ] {
            assert_eq!(host_of(to), host, "{to}");
        }
    }

    #[test]
    fn names_mean_services() {
        let of = |host, namespace| service_of(host, namespace);
        let cart = Some(("shop".to_owned(), "cart".to_owned()));
        assert_eq!(of("cart", Some("shop")), cart);
        assert_eq!(of("cart", None), None);
        assert_eq!(of("cart.shop", Some("other")), cart);
        assert_eq!(of("cart.shop.svc.cluster.local", None), cart);
        assert_eq!(of("www.example.com", None), None);
        assert_eq!(of("", Some("shop")), None);
    }
}
