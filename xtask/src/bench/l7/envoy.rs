//! Envoys that do the same hop: a pair with mTLS between two pods, and a single one without.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_lab::{Lab, Pod, Process, envoy_binary, poll_until, run};

use super::{GRPC, HTTP};

/// Where the client's Envoy listens in its pod: HTTP/1.1 and HTTP/2 over mTLS to the other node, HTTP/1.1 over mTLS on the own one, one plain hop.
pub(super) const PAIR: u16 = 1101;
pub(super) const PAIR_H2: u16 = 1102;
pub(super) const PAIR_NEAR: u16 = 1104;
pub(super) const HOP: u16 = 1103;
/// Where the server's Envoy takes TLS.
const INBOUND: u16 = 1111;
const INBOUND_H2: u16 = 1112;

/// All Envoys of the bench. Killed when dropped.
#[derive(Debug)]
pub(super) struct Envoys {
    client: Process,
    far: Process,
    near: Process,
    hop: Process,
}

impl Envoys {
    /// Starts them in the pods of namespace `envoy`.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let binary = envoy_binary()?;
        let tls = Tls::new(&lab.dir())?;
        let [client, far, near] = ["envoy/client", "envoy/far", "envoy/near"].map(|pod| lab.pod(pod));
        let (client, far, near) = (client?, far?, near?);
        let outbound = [
            listener(PAIR, false, None, "far"),
            listener(PAIR_H2, true, None, "far-h2"),
            listener(PAIR_NEAR, false, None, "near"),
        ];
        let outbound_clusters = [
            cluster("far", at(far, INBOUND), false, Some(&tls)),
            cluster("far-h2", at(far, INBOUND_H2), true, Some(&tls)),
            cluster("near", at(near, INBOUND), false, Some(&tls)),
        ];
        let inbound =
            [listener(INBOUND, false, Some(&tls), "app"), listener(INBOUND_H2, true, Some(&tls), "grpc")];
        let inbound_clusters =
            [cluster("app", local(HTTP), false, None), cluster("grpc", local(GRPC), true, None)];
        let starter = Starter { lab, binary };
        Ok(Self {
            client: starter.start(client, "egress", &outbound, &outbound_clusters)?,
            far: starter.start(far, "ingress-far", &inbound, &inbound_clusters)?,
            near: starter.start(near, "ingress-near", &inbound, &inbound_clusters)?,
            hop: starter.start(
                client,
                "hop",
                &[listener(HOP, false, None, "near")],
                &[cluster("near", at(near, HTTP), false, None)],
            )?,
        })
    }

    /// The pair between two nodes.
    pub(super) fn cross_pair(&self) -> [u32; 2] {
        [self.client.pid(), self.far.pid()]
    }

    /// The pair on one node.
    pub(super) fn same_pair(&self) -> [u32; 2] {
        [self.client.pid(), self.near.pid()]
    }

    /// The one without TLS.
    pub(super) fn hop(&self) -> [u32; 1] {
        [self.hop.pid()]
    }
}

struct Starter<'a> {
    lab: &'a Lab,
    binary: PathBuf,
}

impl Starter<'_> {
    fn start(&self, pod: &Pod, name: &str, listeners: &[Value], clusters: &[Value]) -> Result<Process> {
        let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
        let file = self.lab.dir().join(format!("envoy-{name}.json"));
        fs::write(&file, config.to_string())?;
        let file = file.display().to_string();
        // As many workers as the agents have.
        let workers = std::thread::available_parallelism()?.get().min(8).to_string();
        let args = ["-c", &file, "--concurrency", &workers, "--disable-hot-restart", "--log-level", "info"];
        let mut process = Process::spawn(pod.place(), name, &self.binary, &args)?;
        poll_until(Duration::from_secs(20), || {
            ensure!(process.is_running(), "{}", process.report("ended"));
            ensure!(process.stderr().contains("starting workers"), "Envoy {name} does not listen yet");
            Ok(())
        })?;
        Ok(process)
    }
}

/// One certificate for everybody, who all trust it alone: the handshake is not what is measured.
struct Tls {
    certificate: String,
    key: String,
}

impl Tls {
    fn new(dir: &Path) -> Result<Self> {
        let (key, certificate) = (dir.join("envoy-key.pem"), dir.join("envoy-cert.pem"));
        let (key_text, certificate_text) = (key.display().to_string(), certificate.display().to_string());
        let generate = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let about = ["-subj", "/CN=bench", "-days", "2", "-addext", "subjectAltName=DNS:bench"];
        let output = ["-keyout", key_text.as_str(), "-out", certificate_text.as_str()];
        run("openssl", &[&generate[..], &about, &output].concat())?;
        Ok(Self { certificate: fs::read_to_string(certificate)?, key: fs::read_to_string(key)? })
    }

    fn context(&self, h2: bool) -> Value {
        json!({
            "alpn_protocols": [if h2 { "h2" } else { "http/1.1" }],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"inline_string": self.certificate},
                "private_key": {"inline_string": self.key},
            }],
            "validation_context": {"trusted_ca": {"inline_string": self.certificate}},
        })
    }
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(pod.ipv4()), port)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn typed(kind: &str, mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.insert("@type".into(), format!("type.googleapis.com/envoy.extensions.{kind}").into());
    }
    value
}

fn cluster(name: &str, to: SocketAddr, h2: bool, tls: Option<&Tls>) -> Value {
    const OPTIONS: &str = "upstreams.http.v3.HttpProtocolOptions";
    const TLS: &str = "transport_sockets.tls.v3.UpstreamTlsContext";
    let protocol = if h2 { "http2_protocol_options" } else { "http_protocol_options" };
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            format!("envoy.extensions.{OPTIONS}"): typed(OPTIONS, json!({"explicit_http_config": {protocol: {}}})),
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(to)}}]}],
        },
    });
    if let (Value::Object(fields), Some(tls)) = (&mut cluster, tls) {
        let context = typed(TLS, json!({"sni": "bench", "common_tls_context": tls.context(h2)}));
        let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
        fields.insert("transport_socket".into(), socket);
    }
    cluster
}

fn listener(port: u16, h2: bool, tls: Option<&Tls>, cluster: &str) -> Value {
    const MANAGER: &str = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    const ROUTER: &str = "filters.http.router.v3.Router";
    const TLS: &str = "transport_sockets.tls.v3.DownstreamTlsContext";
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}});
    let manager = json!({
        "stat_prefix": "bench",
        "codec_type": if h2 { "HTTP2" } else { "HTTP1" },
        "generate_request_id": true,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": typed(ROUTER, json!({}))}],
    });
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": typed(MANAGER, manager)});
    let mut chain = json!({"filters": [filter]});
    if let (Value::Object(fields), Some(tls)) = (&mut chain, tls) {
        let context = json!({"require_client_certificate": true, "common_tls_context": tls.context(h2)});
        let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(TLS, context)});
        fields.insert("transport_socket".into(), socket);
    }
    let any = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port);
    json!({"name": format!("port-{port}"), "address": address(any), "filter_chains": [chain]})
}
