//! What is dialled.

use std::net::IpAddr;
use std::sync::Arc;

use weft_core::Snapshot;
use weft_core::resource::{NamespacedName, PortProtocol};
use weft_core::snapshot::{CompiledPort, CompiledService};

use super::Unanswerable;

/// The scheme of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    /// Just host and port.
    None,
}

/// What the host is.
#[derive(Debug)]
pub(super) enum To {
    Address(IpAddr),
    Service(Arc<CompiledService>),
    /// A name that no Service has.
    Stranger(String),
}

/// Host and port of the question.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    pub(super) to: To,
    pub(super) port: u16,
    /// The Service that has the address, when an address was given.
    addressed: Option<Arc<CompiledService>>,
}

impl Target {
    pub(super) fn parse(
        snapshot: &Snapshot,
        text: &str,
        namespace: Option<&str>,
    ) -> Result<Self, Unanswerable> {
        let (scheme, authority) = split_scheme(text)?;
        let (host, port) = split_port(authority, scheme)
            .ok_or_else(|| Unanswerable(format!("--to {text}: write a URL, HOST:PORT or IP:PORT.")))?;
        let bare = host.trim_matches(['[', ']']);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            let addressed = snapshot.service_by_vip(&ip).cloned();
            return Ok(Self { scheme, to: To::Address(ip), port, addressed });
        }
        let to = match service_key(host, namespace)? {
            Some(key) => snapshot.service(&key).cloned(),
            None => None,
        };
        let to = to.map_or_else(|| To::Stranger(host.to_owned()), To::Service);
        Ok(Self { scheme, to, port, addressed: None })
    }

    pub(super) fn service(&self) -> Option<&Arc<CompiledService>> {
        match &self.to {
            To::Service(service) => Some(service),
            To::Address(_) | To::Stranger(_) => self.addressed.as_ref(),
        }
    }

    pub(super) fn declared_port(&self) -> Option<&CompiledPort> {
        self.service()?.port(self.port)
    }

    /// The host as destinations name it.
    pub(super) fn host(&self) -> String {
        match (&self.to, self.service()) {
            (_, Some(service)) => service.host.to_string(),
            (To::Address(ip), None) => ip.to_string(),
            (To::Stranger(host), None) => host.clone(),
            (To::Service(service), None) => service.host.to_string(),
        }
    }

    pub(super) fn sentence(&self, asked: &str) -> String {
        let Some(service) = self.service() else {
            return match &self.to {
                To::Address(ip) => format!("It dials {ip}, port {}.", self.port),
                To::Service(_) | To::Stranger(_) => format!("It dials {}, port {}.", self.host(), self.port),
            };
        };
        let port = match self.declared_port() {
            Some(port) => format!("port {}, declared as {}", self.port, declared(port.protocol)),
            None => format!("port {}, which the Service does not declare", self.port),
        };
        format!("`{asked}` is Service {}, {port}.", service.key)
    }
}

fn declared(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Http => "HTTP",
        PortProtocol::Http2 => "HTTP/2",
        PortProtocol::Grpc => "gRPC",
        PortProtocol::GrpcWeb => "gRPC-Web",
        PortProtocol::Tls => "TLS",
        PortProtocol::Tcp => "TCP",
        PortProtocol::Udp => "UDP (never captured)",
        PortProtocol::Undeclared => "nothing (found by sniffing)",
    }
}

fn split_scheme(text: &str) -> Result<(Scheme, &str), Unanswerable> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok((Scheme::None, text));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, authority)),
        "https" => Ok((Scheme::Https, authority)),
        "tcp" => Ok((Scheme::None, authority)),
        _ => Err(Unanswerable(format!(
            "--to {text}: the scheme `{scheme}` is not known; use http, https or tcp."
        ))),
    }
}

fn split_port(authority: &str, scheme: Scheme) -> Option<(&str, u16)> {
    let default = match scheme {
        Scheme::Http => Some(80),
        Scheme::Https => Some(443),
        Scheme::None => None,
    };
    // An IPv6 address without brackets has colons of its own and no port.
    let bare_v6 = authority.parse::<std::net::Ipv6Addr>().is_ok() || authority.ends_with(']');
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !bare_v6 => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
        Some(_) | None => (authority, default),
    };
    (!host.is_empty()).then_some(())?;
    Some((host, port?))
}

/// The Service that a name may mean, as the resolver's search path of a pod would find it.
fn service_key(host: &str, namespace: Option<&str>) -> Result<Option<NamespacedName>, Unanswerable> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let labels: Vec<&str> = host.split('.').collect();
    Ok(match (labels.as_slice(), namespace) {
        ([name], Some(namespace)) => Some(NamespacedName::new(namespace, *name)),
        ([name], None) => {
            return Err(Unanswerable(format!(
                "--to {name}: a short name resolves from the client's namespace, and this client has none; write {name}.NAMESPACE."
            )));
        }
        ([name, namespace] | [name, namespace, "svc"] | [name, namespace, "svc", "cluster", "local"], _) => {
            Some(NamespacedName::new(*namespace, *name))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_host_and_port() {
        for (text, expected) in [
            ("ledger:5432", Some(("ledger", 5432))),
            ("[fd00::1]:80", Some(("[fd00::1]", 80))),
            ("fd00::1", None),
            ("[fd00::1]", None),
            (":80", None),
            ("ledger:0", None),
            ("ledger:99999", None),
            ("ledger", None),
        ] {
            assert_eq!(split_port(text, Scheme::None), expected, "{text}");
        }
        assert_eq!(split_port("ledger", Scheme::Http), Some(("ledger", 80)));
        assert_eq!(split_port("[fd00::1]", Scheme::Https), Some(("[fd00::1]", 443)));
    }

    #[test]
    fn names_resolve_as_in_a_pod() {
        let key = |host: &str| service_key(host, Some("shop")).unwrap().map(|key| key.to_string());
        assert_eq!(key("cart").as_deref(), Some("shop/cart"));
        assert_eq!(key("ledger.bank").as_deref(), Some("bank/ledger"));
        assert_eq!(key("Ledger.bank.svc.cluster.local.").as_deref(), Some("bank/ledger"));
        assert_eq!(key("api.example.com"), None);
        assert!(service_key("cart", None).is_err());
    }
}
