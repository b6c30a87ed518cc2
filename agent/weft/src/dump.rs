//! What `dump` says (spec: machine-readable contract of the commands).

use std::collections::BTreeMap;

use serde::Serialize;
use weft_core::Snapshot;
use weft_core::resource::request_authentication::KeySource;
use weft_core::routing_view::{HostPolicy, RoutedHost, RoutedRule};
use weft_core::snapshot::{
    CaptureRules, CompiledService, EffectiveMode, JwtPolicy, LocalWorkload, Membership, TrafficHint, Workload,
};

use crate::explain::{ObjectView, PeerAuthenticationView, load_balancer};
use crate::view::Finding;

/// `weft dump`: the compiled snapshot in the terms of the objects that it came from.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Dump {
    revision: u64,
    mesh: MeshDump,
    workloads: Vec<WorkloadDump>,
    services: Vec<ServiceDump>,
    /// VirtualServices by host; for each client the first that it sees owns the host.
    hosts: Vec<HostDump>,
    destination_rules: Vec<DestinationRuleDump>,
    /// Pods of this node, with what their inbound side enforces.
    local: Vec<LocalDump>,
    problems: Vec<Finding>,
}

#[derive(Debug, Clone, Serialize)]
struct MeshDump {
    trust_domain: String,
    trust_domain_aliases: Vec<String>,
    root_namespace: String,
    access_log: bool,
    outbound_traffic_policy: &'static str,
    encrypt_same_node: bool,
}

#[derive(Debug, Clone, Serialize)]
struct WorkloadDump {
    pod: String,
    ips: Vec<String>,
    node: Option<String>,
    principal: String,
    workload: String,
    in_mesh: bool,
    excluded: Option<String>,
    ready: bool,
}

#[derive(Debug, Clone, Serialize)]
struct ServiceDump {
    service: String,
    host: String,
    vips: Vec<String>,
    /// The host that it is another name of.
    alias: Option<String>,
    ports: Vec<PortDump>,
}

#[derive(Debug, Clone, Serialize)]
struct PortDump {
    port: u16,
    name: Option<String>,
    protocol: String,
    endpoints: Vec<EndpointDump>,
}

#[derive(Debug, Clone, Serialize)]
struct EndpointDump {
    address: String,
    ready: bool,
}

#[derive(Debug, Clone, Serialize)]
struct HostDump {
    host: String,
    virtual_services: Vec<VirtualServiceDump>,
}

#[derive(Debug, Clone, Serialize)]
struct VirtualServiceDump {
    object: ObjectView,
    /// Whether clients of the mesh take part.
    mesh: bool,
    gateways: Vec<String>,
    http: Vec<RuleDump>,
    tls: usize,
    tcp: usize,
}

#[derive(Debug, Clone, Serialize)]
struct RuleDump {
    /// The delegate, where the rule stands in one.
    object: ObjectView,
    rule: usize,
    name: Option<String>,
    /// `null` takes everything.
    matches: Option<usize>,
}

#[derive(Debug, Clone, Serialize)]
struct DestinationRuleDump {
    host: String,
    namespace: String,
    object: Option<ObjectView>,
    load_balancer: &'static str,
    tls: Option<&'static str>,
    outlier_detection: bool,
    subsets: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
struct LocalDump {
    pod: String,
    netns: Option<String>,
    peer_authentication: PeerAuthenticationView,
    port_peer_authentication: BTreeMap<String, PeerAuthenticationView>,
    policies: Vec<PolicyDump>,
    request_authentications: Vec<JwtDump>,
    capture: CaptureDump,
    traffic: Option<&'static str>,
    bypass: bool,
    pass_when_agent_gone: bool,
}

#[derive(Debug, Clone, Serialize)]
struct PolicyDump {
    object: ObjectView,
    action: &'static str,
    dry_run: bool,
    rules: usize,
}

#[derive(Debug, Clone, Serialize)]
struct JwtDump {
    object: ObjectView,
    issuer: String,
    audiences: Vec<String>,
    /// `inline`, `discovery` or the address.
    keys: String,
    forward_original_token: bool,
}

#[derive(Debug, Clone, Serialize)]
struct CaptureDump {
    include_outbound_ranges: Option<Vec<String>>,
    exclude_outbound_ranges: Vec<String>,
    include_outbound_ports: Vec<u16>,
    exclude_outbound_ports: Vec<u16>,
    include_inbound_ports: Option<Vec<u16>>,
    exclude_inbound_ports: Vec<u16>,
}

impl Dump {
    /// Everything in the snapshot, sorted by namespace and name.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let mesh = snapshot.mesh();
        let mut workloads: Vec<&Workload> = snapshot.workloads().map(|workload| &**workload).collect();
        workloads.sort_by(|a, b| a.key.cmp(&b.key));
        let mut services: Vec<&CompiledService> = snapshot.services().map(|service| &**service).collect();
        services.sort_by(|a, b| a.key.cmp(&b.key));
        Self {
            revision: snapshot.revision(),
            mesh: MeshDump {
                trust_domain: mesh.trust_domain.to_string(),
                trust_domain_aliases: strings(mesh.trust_domain_aliases.iter()),
                root_namespace: mesh.root_namespace.to_string(),
                access_log: mesh.access_log,
                outbound_traffic_policy: if mesh.registry_only { "REGISTRY_ONLY" } else { "ALLOW_ANY" },
                encrypt_same_node: mesh.encrypt_same_node,
            },
            workloads: workloads.into_iter().map(WorkloadDump::of).collect(),
            services: services.into_iter().map(ServiceDump::of).collect(),
            hosts: snapshot.routed_hosts().iter().map(HostDump::of).collect(),
            destination_rules: snapshot.host_policies().iter().map(DestinationRuleDump::of).collect(),
            local: snapshot.local().iter().map(|local| LocalDump::of(local)).collect(),
            problems: snapshot.problems().iter().map(Finding::from).collect(),
        }
    }
}

impl WorkloadDump {
    fn of(workload: &Workload) -> Self {
        Self {
            pod: workload.key.to_string(),
            ips: strings(workload.ips.iter()),
            node: workload.node.as_deref().map(Into::into),
            principal: workload.identity.principal(),
            workload: workload.labels.workload.to_string(),
            in_mesh: workload.in_mesh(),
            excluded: match &workload.membership {
                Membership::Excluded(why) => Some(why.to_string()),
                Membership::InMesh | Membership::OutOfMesh => None,
            },
            ready: workload.ready,
        }
    }
}

impl ServiceDump {
    fn of(service: &CompiledService) -> Self {
        let ports = service.ports.iter().map(|port| PortDump {
            port: port.port,
            name: port.name.as_deref().map(Into::into),
            protocol: format!("{:?}", port.protocol),
            endpoints: port
                .endpoints
                .iter()
                .map(|endpoint| EndpointDump { address: endpoint.addr().to_string(), ready: endpoint.ready })
                .collect(),
        });
        Self {
            service: service.key.to_string(),
            host: service.host.to_string(),
            vips: strings(service.vips.iter()),
            alias: service.alias.as_deref().map(Into::into),
            ports: ports.collect(),
        }
    }
}

impl HostDump {
    fn of(routed: &RoutedHost) -> Self {
        let virtual_services = routed.virtual_services.iter().map(|routed| VirtualServiceDump {
            object: ObjectView::from(&routed.object),
            mesh: routed.mesh,
            gateways: strings(routed.source.gateways.iter()),
            http: routed.http.iter().map(RuleDump::of).collect(),
            tls: routed.source.tls.len(),
            tcp: routed.source.tcp.len(),
        });
        Self { host: routed.host.clone(), virtual_services: virtual_services.collect() }
    }
}

impl RuleDump {
    fn of(rule: &RoutedRule) -> Self {
        Self {
            object: ObjectView::from(&rule.object),
            rule: rule.rule,
            name: rule.name.as_deref().map(Into::into),
            matches: rule.matches,
        }
    }
}

impl DestinationRuleDump {
    fn of(rule: &HostPolicy) -> Self {
        Self {
            host: rule.host.clone(),
            namespace: rule.namespace.to_string(),
            object: rule.policy.object.as_ref().map(ObjectView::from),
            load_balancer: load_balancer(&rule.policy.load_balancer),
            tls: rule.policy.tls.as_ref().map(|tls| tls.mode.as_str()),
            outlier_detection: rule.policy.outlier_detection.is_some(),
            subsets: strings(rule.subsets.iter()),
        }
    }
}

impl LocalDump {
    fn of(local: &LocalWorkload) -> Self {
        let modes = &local.peer_authentication;
        let policies = local.policies.policies().map(|policy| PolicyDump {
            object: ObjectView {
                kind: "AuthorizationPolicy".into(),
                namespace: Some(policy.meta.key.namespace.to_string()),
                name: policy.meta.key.name.to_string(),
            },
            action: policy.action.as_str(),
            dry_run: policy.dry_run,
            rules: policy.rules.len(),
        });
        Self {
            pod: local.workload.key.to_string(),
            netns: local.netns.as_ref().map(|path| path.display().to_string()),
            peer_authentication: mode(&modes.default),
            port_peer_authentication: modes
                .ports
                .iter()
                .map(|(port, set)| (port.to_string(), mode(set)))
                .collect(),
            policies: policies.collect(),
            request_authentications: local
                .request_authentication
                .iter()
                .map(|rule| JwtDump::of(rule))
                .collect(),
            capture: CaptureDump::of(&local.capture),
            traffic: local.traffic.map(|hint| match hint {
                TrafficHint::L4 => "l4",
                TrafficHint::L7 => "l7",
            }),
            bypass: local.bypass,
            pass_when_agent_gone: local.pass_when_agent_gone,
        }
    }
}

impl JwtDump {
    fn of(policy: &JwtPolicy) -> Self {
        let rule = &policy.rule;
        Self {
            object: ObjectView::from(&policy.object),
            issuer: rule.issuer.to_string(),
            audiences: strings(rule.audiences.iter()),
            keys: match &rule.keys {
                KeySource::Inline(_) => "inline".into(),
                KeySource::Uri(address) => address.to_string(),
                KeySource::Discovery => "discovery".into(),
            },
            forward_original_token: rule.forward_original_token,
        }
    }
}

impl CaptureDump {
    fn of(capture: &CaptureRules) -> Self {
        Self {
            include_outbound_ranges: capture
                .include_outbound_ranges
                .as_ref()
                .map(|ranges| strings(ranges.iter())),
            exclude_outbound_ranges: strings(capture.exclude_outbound_ranges.iter()),
            include_outbound_ports: capture.include_outbound_ports.clone(),
            exclude_outbound_ports: capture.exclude_outbound_ports.clone(),
            include_inbound_ports: capture.include_inbound_ports.clone(),
            exclude_inbound_ports: capture.exclude_inbound_ports.clone(),
        }
    }
}

fn mode(effective: &EffectiveMode) -> PeerAuthenticationView {
    PeerAuthenticationView {
        mode: effective.mode.as_str().into(),
        object: effective.object.as_ref().map(ObjectView::from),
    }
}

fn strings<T: ToString>(items: impl Iterator<Item = T>) -> Vec<String> {
    items.map(|item| item.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {weft.dev/mesh: enabled}}
spec: {nodeName: a, serviceAccountName: a}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: shop}
spec:
  hosts: [reviews, '*.example.com']
  http:
  - {match: [{uri: {prefix: /a}}], delegate: {name: part}}
  - {name: rest, route: [{destination: {host: reviews}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: part, namespace: shop}
spec: {http: [{match: [{uri: {prefix: /a/b}}], route: [{destination: {host: reviews}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
  subsets: [{name: v2, labels: {version: v2}}, {name: v1, labels: {version: v1}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {jwtRules: [{issuer: me, jwksUri: 'https://example.com/keys'}]}
";

    #[test]
    fn routing_stands_there_as_it_was_compiled() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), FILES).unwrap();
        let snapshot = crate::config::load(&[dir.path().to_owned()]).unwrap().snapshot;
        let dump = serde_json::to_value(Dump::of(&snapshot)).unwrap();
        let part = |key: &str| serde_json::to_string_pretty(&dump[key]).unwrap();
        insta::assert_snapshot!([part("hosts"), part("destination_rules")].join("\n"));
        assert_eq!(dump["local"][0]["request_authentications"][0]["keys"], "https://example.com/keys");
    }
}
