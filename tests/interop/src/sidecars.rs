//! One Envoy that is both sidecars of a call: that of the client and those of the servers, with mTLS between them.
//!
//! What depends on YAML (virtual hosts, filters of the server's side) comes from a fixture; what every Istio sidecar has
//! is here.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::authority::Authority;
use crate::envoy::{socket_address, tls, typed};

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// The service account of the client.
const CLIENT: &str = "client";

/// A set of rules: YAML for us, and what becomes of it in sidecars.
#[derive(Debug)]
pub struct Fixture {
    /// Istio's objects.
    pub yaml: String,
    /// Virtual hosts of the client's side by port.
    hosts: BTreeMap<u16, Vec<Value>>,
    /// HTTP filters of the server's side by application.
    filters: BTreeMap<String, Vec<Value>>,
}

impl Fixture {
    /// Reads `NAME.yaml` and `NAME.json`.
    pub fn read(directory: &Path, name: &str) -> Self {
        let read = |kind: &str| {
            let text = fs::read_to_string(directory.join(format!("{name}.{kind}")));
            text.expect("a fixture has both files")
        };
        let envoy: Map<String, Value> = serde_json::from_str(&read("json")).expect("it is an object of JSON");
        let mut fixture =
            Self { yaml: read("yaml"), hosts: BTreeMap::default(), filters: BTreeMap::default() };
        for (key, value) in envoy {
            match key.parse() {
                Ok(port) => {
                    let hosts = serde_json::from_value(value).expect("virtual hosts are a list");
                    fixture.hosts.insert(port, hosts);
                }
                Err(_) => fixture.filters = serde_json::from_value(value).expect("filters are lists"),
            }
        }
        fixture
    }
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

    /// Where its sidecar listens.
    fn sidecar(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port + 10_000)
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
}

impl Sidecars<'_> {
    /// Envoy's configuration: the client's side listens on the loopback, on these ports; the last ones speak HTTP/2.
    pub fn config(&self, http1: u16, http2: u16) -> Value {
        let mut listeners = vec![self.outbound(http1), self.outbound(http2)];
        let mut clusters = self.outbound_clusters(http2);
        for application in self.applications {
            listeners.push(self.inbound(application));
            clusters.push(local_cluster(application));
        }
        json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
    }

    /// Hosts that nobody knows are refused, as with `outboundTrafficPolicy: REGISTRY_ONLY`.
    fn outbound(&self, port: u16) -> Value {
        let of_port = self.fixtures.iter().filter_map(|fixture| fixture.hosts.get(&port));
        let mut hosts: Vec<Value> = of_port.flatten().cloned().collect();
        let block =
            json!({"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}});
        hosts.push(json!({"name": "block_all", "domains": ["*"], "routes": [block]}));
        let filters = [
            filter("fault", "fault.v3.HTTPFault"),
            filter("cors", "cors.v3.Cors"),
            filter("router", "router.v3.Router"),
        ];
        let manager = manager(json!({"virtual_hosts": hosts}), filters.into());
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        json!({
            "name": address.to_string(),
            "address": socket_address(address),
            "filter_chains": [{"filters": [network_filter(manager)]}],
        })
    }

    fn inbound(&self, application: &Application) -> Value {
        let own = self.fixtures.iter().filter_map(|fixture| fixture.filters.get(application.account));
        let mut filters: Vec<Value> = own.flatten().cloned().collect();
        filters.push(filter("router", "router.v3.Router"));
        let cluster = format!("inbound|{}", application.port);
        let route = json!({"name": "default", "match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}});
        let mut manager = manager(
            json!({"virtual_hosts": [{"name": "inbound|http", "domains": ["*"], "routes": [route]}]}),
            filters,
        );
        if let Value::Object(fields) = &mut manager {
            fields.insert("server_name".into(), "istio-envoy".into());
            fields.insert("forward_client_cert_details".into(), "APPEND_FORWARD".into());
            let details = json!({"subject": true, "dns": true, "uri": true});
            fields.insert("set_current_client_cert_details".into(), details);
        }
        let common = self.common_tls(application.account, &[&spiffe(CLIENT)], &json!(["h2", "http/1.1"]));
        let context = json!({"require_client_certificate": true, "common_tls_context": common});
        json!({
            "name": application.sidecar().to_string(),
            "address": socket_address(application.sidecar()),
            "filter_chains": [{
                "transport_socket": transport_socket("DownstreamTlsContext", context),
                "filters": [network_filter(manager)],
            }],
        })
    }

    fn common_tls(&self, account: &str, peers: &[&str], protocols: &Value) -> Value {
        let mut common = tls(&self.authority.root, &self.authority.issue(account), peers);
        if let Value::Object(fields) = &mut common {
            fields.insert("alpn_protocols".into(), protocols.clone());
        }
        common
    }

    /// The clusters that the virtual hosts name, by Istio's names for them: `outbound|PORT|SUBSET|HOST`. One of a subset
    /// that no rule defines is not there, as Istio leaves it out.
    fn outbound_clusters(&self, http2: u16) -> Vec<Value> {
        let mut names = Vec::new();
        for host in self.fixtures.iter().flat_map(|fixture| fixture.hosts.values().flatten()) {
            collect_names(host, &mut names);
        }
        names.sort_unstable();
        names.dedup();
        names.iter().filter_map(|name| self.outbound_cluster(name, http2)).collect()
    }

    fn outbound_cluster(&self, name: &str, http2: u16) -> Option<Value> {
        let mut parts = name.split('|').skip(1);
        let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
        let service = host.split('.').next()?;
        let serves =
            |it: &&Application| if subset.is_empty() { it.account == service } else { it.version == subset };
        let application = self.applications.iter().find(serves)?;
        let two = port == http2.to_string();
        let (protocol, options) =
            if two { ("h2", "http2_protocol_options") } else { ("http/1.1", "http_protocol_options") };
        let common = self.common_tls(CLIENT, &[&spiffe(application.account)], &json!([protocol]));
        let mut cluster =
            cluster(name, application.sidecar(), &json!({"explicit_http_config": {options: {}}}));
        if let Value::Object(fields) = &mut cluster {
            let context = json!({"common_tls_context": common});
            fields.insert("transport_socket".into(), transport_socket("UpstreamTlsContext", context));
        }
        Some(cluster)
    }
}

fn collect_names(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::String(text) if text.starts_with("outbound|") => names.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| collect_names(value, names)),
        Value::Object(fields) => fields.values().for_each(|value| collect_names(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

fn local_cluster(application: &Application) -> Value {
    let both = json!({"http_protocol_options": {}, "http2_protocol_options": {}});
    let options = json!({"use_downstream_protocol_config": both});
    cluster(&format!("inbound|{}", application.port), application.address(), &options)
}

fn cluster(name: &str, endpoint: SocketAddr, options: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "typed_extension_protocol_options": {OPTIONS: typed(OPTIONS, options.clone())},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(endpoint)}}]}],
        },
    })
}

fn transport_socket(context: &str, config: Value) -> Value {
    let kind = format!("envoy.extensions.transport_sockets.tls.v3.{context}");
    json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(&kind, config)})
}

fn filter(name: &str, kind: &str) -> Value {
    let kind = format!("envoy.extensions.filters.http.{kind}");
    json!({"name": format!("envoy.filters.http.{name}"), "typed_config": typed(&kind, json!({}))})
}

fn network_filter(manager: Value) -> Value {
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": typed(MANAGER, manager)})
}

/// As in a sidecar: the client's headers are believed, paths are normalised at level BASE.
fn manager(mut routes: Value, filters: Vec<Value>) -> Value {
    if let Value::Object(fields) = &mut routes {
        fields.insert("validate_clusters".into(), false.into());
    }
    json!({
        "stat_prefix": "sidecar",
        "codec_type": "AUTO",
        "use_remote_address": false,
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "stream_idle_timeout": "0s",
        "proxy_100_continue": true,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": routes,
        "http_filters": filters,
    })
}
