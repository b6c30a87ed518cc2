//! Real Envoys to be measured beside: what they need to listen, to go on, and to speak TLS.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_lab::{Lab, Pod, Process, envoy_binary, poll_until, run};

/// What an Envoy makes of the bytes of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Nothing.
    Tcp,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, for gRPC.
    Http2,
}

impl Protocol {
    fn alpn(self) -> Option<&'static str> {
        match self {
            Self::Tcp => None,
            Self::Http1 => Some("http/1.1"),
            Self::Http2 => Some("h2"),
        }
    }
}

/// One thing that an Envoy does: takes connections at a port and passes them on to an address.
#[derive(Debug)]
pub(super) struct Hop<'a> {
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) to: SocketAddr,
    /// Who connects begins with TLS.
    pub(super) accepts: Option<&'a Tls>,
    /// It begins with TLS itself.
    pub(super) originates: Option<&'a Tls>,
}

impl<'a> Hop<'a> {
    /// From clients in its own pod, with mTLS to another Envoy.
    pub(super) fn egress(port: u16, protocol: Protocol, to: SocketAddr, tls: &'a Tls) -> Self {
        Self { port, protocol, to, accepts: None, originates: Some(tls) }
    }

    /// From another Envoy to an application of its own pod.
    pub(super) fn ingress(port: u16, protocol: Protocol, application: u16, tls: &'a Tls) -> Self {
        let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), application);
        Self { port, protocol, to, accepts: Some(tls), originates: None }
    }

    /// Without TLS on either side.
    pub(super) fn plain(port: u16, protocol: Protocol, to: SocketAddr) -> Self {
        Self { port, protocol, to, accepts: None, originates: None }
    }

    fn listener(&self) -> Value {
        const TLS: &str = "transport_sockets.tls.v3.DownstreamTlsContext";
        let mut chain = json!({"filters": [self.filter()]});
        if let (Value::Object(fields), Some(tls)) = (&mut chain, self.accepts) {
            let context =
                json!({"require_client_certificate": true, "common_tls_context": tls.context(self.protocol)});
            let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(TLS, context)});
            fields.insert("transport_socket".into(), socket);
        }
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.port);
        json!({"name": self.name(), "address": address(any), "filter_chains": [chain]})
    }

    fn filter(&self) -> Value {
        const PROXY: &str = "filters.network.tcp_proxy.v3.TcpProxy";
        const MANAGER: &str = "filters.network.http_connection_manager.v3.HttpConnectionManager";
        const ROUTER: &str = "filters.http.router.v3.Router";
        let codec = match self.protocol {
            Protocol::Tcp => {
                let proxy = json!({"stat_prefix": "bench", "cluster": self.name()});
                return json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": typed(PROXY, proxy)});
            }
            Protocol::Http1 => "HTTP1",
            Protocol::Http2 => "HTTP2",
        };
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": self.name(), "timeout": "0s"}});
        let manager = json!({
            "stat_prefix": "bench",
            "codec_type": codec,
            "generate_request_id": true,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": typed(ROUTER, json!({}))}],
        });
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": typed(MANAGER, manager)})
    }

    fn cluster(&self) -> Value {
        const OPTIONS: &str = "upstreams.http.v3.HttpProtocolOptions";
        const TLS: &str = "transport_sockets.tls.v3.UpstreamTlsContext";
        let mut cluster = json!({
            "name": self.name(),
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": self.name(),
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(self.to)}}]}],
            },
        });
        let Value::Object(fields) = &mut cluster else { return cluster };
        let options = match self.protocol {
            Protocol::Tcp => None,
            Protocol::Http1 => Some("http_protocol_options"),
            Protocol::Http2 => Some("http2_protocol_options"),
        };
        if let Some(options) = options {
            let options = typed(OPTIONS, json!({"explicit_http_config": {options: {}}}));
            let extension = json!({format!("envoy.extensions.{OPTIONS}"): options});
            fields.insert("typed_extension_protocol_options".into(), extension);
        }
        if let Some(tls) = self.originates {
            let context = json!({"sni": "bench", "common_tls_context": tls.context(self.protocol)});
            let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(TLS, context)});
            fields.insert("transport_socket".into(), socket);
        }
        cluster
    }

    fn name(&self) -> String {
        format!("port-{}", self.port)
    }
}

/// Starts Envoys in the pods of a lab.
pub(super) struct Starter<'a> {
    lab: &'a Lab,
    binary: PathBuf,
}

impl<'a> Starter<'a> {
    /// Fails, and says what to do, where there is no Envoy.
    pub(super) fn new(lab: &'a Lab) -> Result<Self> {
        Ok(Self { lab, binary: envoy_binary()? })
    }

    /// Starts one that listens when this returns. Killed when dropped.
    pub(super) fn start(&self, pod: &Pod, name: &str, hops: &[Hop<'_>]) -> Result<Process> {
        let listeners: Vec<Value> = hops.iter().map(Hop::listener).collect();
        let clusters: Vec<Value> = hops.iter().map(Hop::cluster).collect();
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

/// One certificate for everybody, who all trust it alone: no chain has to be followed.
#[derive(Debug)]
pub(super) struct Tls {
    certificate: String,
    key: String,
}

impl Tls {
    /// Makes one; its files are in `dir`.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let (key, certificate) = (dir.join("envoy-key.pem"), dir.join("envoy-cert.pem"));
        let (key_text, certificate_text) = (key.display().to_string(), certificate.display().to_string());
        let generate = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let about = ["-subj", "/CN=bench", "-days", "2", "-addext", "subjectAltName=DNS:bench"];
        let output = ["-keyout", key_text.as_str(), "-out", certificate_text.as_str()];
        run("openssl", &[&generate[..], &about, &output].concat())?;
        Ok(Self { certificate: fs::read_to_string(certificate)?, key: fs::read_to_string(key)? })
    }

    fn context(&self, protocol: Protocol) -> Value {
        let alpn: Vec<&str> = protocol.alpn().into_iter().collect();
        json!({
            "alpn_protocols": alpn,
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"inline_string": self.certificate},
                "private_key": {"inline_string": self.key},
            }],
            "validation_context": {"trusted_ca": {"inline_string": self.certificate}},
        })
    }
}

/// A port of a pod.
pub(super) fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(pod.ipv4()), port)
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
