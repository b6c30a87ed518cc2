//! One Envoy that is both sidecars of a call: that of the client and those of the servers, with mTLS between them.
//!
//! Its configuration is what istiod tells such sidecars (recorded by `cargo xtask record`); added here is what differs
//! in every world: addresses, certificates.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::authority::Authority;
use crate::envoy::{socket_address, tls, typed};

/// The service account of the client.
const CLIENT: &str = "client";

/// A set of rules: YAML for us, and what becomes of it in the sidecar of a client.
#[derive(Debug)]
pub struct Fixture {
    /// Istio's objects.
    pub yaml: String,
    /// Virtual hosts by port, and clusters.
    told: Value,
}

impl Fixture {
    /// Reads `NAME.yaml` and `NAME.json`.
    pub fn read(directory: &Path, name: &str) -> Self {
        let yaml = fs::read_to_string(directory.join(format!("{name}.yaml")));
        Self {
            yaml: yaml.expect("a fixture has both files"),
            told: read_json(&directory.join(format!("{name}.json"))),
        }
    }

    fn list(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.told.get(name).and_then(Value::as_array).into_iter().flatten()
    }
}

fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("it is recorded; see `cargo xtask record`");
    serde_json::from_str(&text).expect("it is JSON")
}

/// An application behind Envoy, on the loopback of its namespace.
#[derive(Debug, Clone, Copy)]
pub struct Application {
    /// Its service account, which is its label `app` too.
    pub account: &'static str,
    /// Its label `version`.
    pub version: &'static str,
    /// Where it listens.
    pub port: u16,
}

impl Application {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port)
    }
}

/// What the configuration is made of.
pub struct Sidecars<'a> {
    /// Issues the certificates.
    pub authority: &'a Authority,
    /// The rules.
    pub fixtures: &'a [Fixture],
    /// The applications.
    pub applications: &'a [Application],
    /// Ports of every Service.
    pub ports: &'a [u16],
    /// What sidecars have in common, and the servers' side: `sidecars/told.json`.
    told: Value,
}

impl<'a> Sidecars<'a> {
    /// Reads what sidecars have in common from the directory of the fixtures.
    pub fn new(
        authority: &'a Authority,
        directory: &Path,
        fixtures: &'a [Fixture],
        applications: &'a [Application],
        ports: &'a [u16],
    ) -> Self {
        let told = read_json(&directory.join("sidecars/told.json"));
        Self { authority, fixtures, applications, ports, told }
    }

    /// Envoy's configuration: the client's side listens on the loopback, on the ports of the Services.
    pub fn config(&self) -> Value {
        let mut listeners = Vec::new();
        let mut clusters = self.outbound_clusters();
        for port in self.ports {
            listeners.push(self.outbound(*port));
            for application in self.applications {
                listeners.push(self.inbound(application, *port));
                clusters.push(self.local_cluster(application, *port));
            }
        }
        json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
    }

    fn part(&self, path: &str) -> Map<String, Value> {
        let part = self.told.pointer(path).and_then(Value::as_object);
        part.cloned().expect("it is recorded; see `cargo xtask record`")
    }

    fn outbound(&self, port: u16) -> Value {
        let mut manager = self.part(&format!("/outbound/{port}/manager"));
        let mut routes = self.part(&format!("/outbound/{port}/routes"));
        let name = port.to_string();
        let mut hosts: Vec<Value> =
            self.fixtures.iter().flat_map(|fixture| fixture.list(&name)).cloned().collect();
        if let Some(Value::Array(others)) = routes.remove("virtual_hosts") {
            hosts.extend(others);
        }
        routes.insert("virtual_hosts".into(), hosts.into());
        routes.insert("validate_clusters".into(), false.into());
        manager.remove("rds");
        manager.insert("route_config".into(), routes.into());
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        json!({
            "name": address.to_string(),
            "address": socket_address(address),
            "filter_chains": [{"filters": [network_filter(manager)]}],
        })
    }

    fn inbound(&self, application: &Application, port: u16) -> Value {
        let mut manager = Value::from(self.part(&format!("/inbound/{}/{port}/manager", application.account)));
        rename(&mut manager, &format!("inbound|{port}||"), &self.local_name(application, port));
        let manager = manager.as_object().cloned().unwrap_or_default();
        let common = self.common_tls(application.account, &[&spiffe(CLIENT)], &json!(["h2", "http/1.1"]));
        let context = json!({"require_client_certificate": true, "common_tls_context": common});
        let address = self.sidecar(application, port);
        json!({
            "name": address.to_string(),
            "address": socket_address(address),
            "filter_chains": [{
                "transport_socket": transport_socket("DownstreamTlsContext", context),
                "filters": [network_filter(manager)],
            }],
        })
    }

    /// Where the sidecar of an application listens for a port of its pod.
    fn sidecar(&self, application: &Application, port: u16) -> SocketAddr {
        let number = self.ports.iter().position(|it| *it == port).unwrap_or_default();
        let number = u16::try_from(number).expect("ports are few");
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), application.port + 10_000 * (number + 1))
    }

    fn local_name(&self, application: &Application, port: u16) -> String {
        format!("inbound|{port}|{}", application.version)
    }

    fn common_tls(&self, account: &str, peers: &[&str], protocols: &Value) -> Value {
        let mut common = tls(&self.authority.root, &self.authority.issue(account), peers);
        if let Value::Object(fields) = &mut common {
            fields.insert("alpn_protocols".into(), protocols.clone());
        }
        common
    }

    /// The clusters of the Services, by Istio's names for them: `outbound|PORT|SUBSET|HOST`.
    fn outbound_clusters(&self) -> Vec<Value> {
        let recorded = self.fixtures.iter().flat_map(|fixture| fixture.list("clusters"));
        recorded.filter_map(|cluster| self.outbound_cluster(cluster)).collect()
    }

    fn outbound_cluster(&self, recorded: &Value) -> Option<Value> {
        let mut parts = recorded.get("name")?.as_str()?.split('|').skip(1);
        let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
        let service = host.split('.').next()?;
        let serves =
            |it: &&Application| if subset.is_empty() { it.account == service } else { it.version == subset };
        let application = self.applications.iter().find(serves)?;
        let options = recorded.get("typed_extension_protocol_options").map(Value::to_string);
        let two = options.is_some_and(|options| options.contains("\"http2_protocol_options\""));
        let protocol = if two { "h2" } else { "http/1.1" };
        let common = self.common_tls(CLIENT, &[&spiffe(application.account)], &json!([protocol]));
        let socket = transport_socket("UpstreamTlsContext", json!({"common_tls_context": common}));
        let mut cluster = recorded.as_object()?.clone();
        cluster.insert("transport_socket".into(), socket);
        Some(with_endpoint(cluster, self.sidecar(application, port.parse().ok()?)))
    }

    fn local_cluster(&self, application: &Application, port: u16) -> Value {
        let mut cluster = self.part(&format!("/inbound/{}/{port}/cluster", application.account));
        cluster.insert("name".into(), self.local_name(application, port).into());
        with_endpoint(cluster, application.address())
    }
}

/// istiod tells endpoints apart from clusters.
fn with_endpoint(mut cluster: Map<String, Value>, endpoint: SocketAddr) -> Value {
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": socket_address(endpoint)}}]}]);
    let assignment = json!({"cluster_name": cluster.get("name"), "endpoints": endpoints});
    cluster.insert("type".into(), "STATIC".into());
    cluster.insert("load_assignment".into(), assignment);
    cluster.into()
}

/// Replaces a text wherever it stands.
fn rename(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) if text == from => to.clone_into(text),
        Value::Array(values) => values.iter_mut().for_each(|value| rename(value, from, to)),
        Value::Object(fields) => fields.values_mut().for_each(|value| rename(value, from, to)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

fn transport_socket(context: &str, config: Value) -> Value {
    let kind = format!("envoy.extensions.transport_sockets.tls.v3.{context}");
    json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(&kind, config)})
}

fn network_filter(manager: Map<String, Value>) -> Value {
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
}
