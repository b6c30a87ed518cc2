//! What `dump` says (spec: machine-readable contract of the commands).

use std::collections::BTreeMap;

use serde::Serialize;
use weft_core::Snapshot;
use weft_core::resource::request_authentication::KeySource;
use weft_core::snapshot::{
    CaptureRules, CompiledService, EffectiveMode, JwtPolicy, LocalWorkload, Membership, TrafficHint, Workload,
};

use crate::explain::{ObjectView, PeerAuthenticationView};
use crate::view::Finding;

/// `weft dump`: the compiled snapshot in the terms of the objects that it came from.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Dump {
    revision: u64,
    mesh: MeshDump,
    workloads: Vec<WorkloadDump>,
    services: Vec<ServiceDump>,
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
                .map(|endpoint| EndpointDump { address: endpoint.addr.to_string(), ready: endpoint.ready })
                .collect(),
        });
        Self {
            service: service.key.to_string(),
            host: service.host.to_string(),
            vips: strings(service.vips.iter()),
            ports: ports.collect(),
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
