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
    /// `tcp://`: bytes, whatever the port is declared as.
    Tcp,
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

/// Host, port and path of the question.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    pub(super) to: To,
    pub(super) port: u16,
    /// The host as it was written.
    pub(super) name: String,
    /// Host and port as they were written: what a client sends as `Host`.
    pub(super) authority: String,
    /// Path and query as they were written (no tidying, but `/` where there is none).
    pub(super) path: String,
    /// The Service that has the address, when an address was given.
    addressed: Option<Arc<CompiledService>>,
}

impl Target {
    pub(super) fn parse(
        snapshot: &Snapshot,
        text: &str,
        namespace: Option<&str>,
    ) -> Result<Self, Unanswerable> {
        let (scheme, rest) = split_scheme(text)?;
        let (authority, path) = split_path(rest, scheme);
        let (host, port) = split_port(authority, scheme)
            .ok_or_else(|| Unanswerable(format!("--to {text}: write a URL, HOST:PORT or IP:PORT.")))?;
        let mut target = Self {
            scheme,
            to: To::Stranger(host.to_owned()),
            port,
            name: host.to_owned(),
            authority: authority.to_owned(),
            path,
            addressed: None,
        };
        let bare = host.trim_matches(['[', ']']);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            target.addressed = snapshot.service_by_vip(&ip).cloned();
            target.to = To::Address(ip);
        } else if let Some(service) = service_key(host, namespace)?.and_then(|key| snapshot.service(&key))
            && let Some(service) = snapshot.concrete(service)
        {
            target.to = To::Service(service.clone());
        }
        Ok(target)
    }

    /// As [`Target::parse`] found it, as a client of namespace `client` sees it: a Service that is not exported to it is
    /// an address like any other, or a name that nobody has. With a sentence about that.
    pub(super) fn seen_from(mut self, client: &str) -> (Self, Option<String>) {
        let Some(service) = self.service().filter(|service| !service.visibility.reaches(client)).cloned()
        else {
            return (self, None);
        };
        let sentence = format!(
            "exportTo keeps Service {} from namespace {client}: for this client nobody in the mesh has its name or address.",
            service.key
        );
        if let To::Service(_) = self.to {
            self.to = match service.vips.first() {
                Some(vip) => To::Address(*vip),
                None => To::Stranger(self.name.clone()),
            };
        }
        self.addressed = None;
        (self, Some(sentence))
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
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, rest)),
        "https" => Ok((Scheme::Https, rest)),
        "tcp" => Ok((Scheme::Tcp, rest)),
        _ => Err(Unanswerable(format!(
            "--to {text}: the scheme `{scheme}` is not known; use http, https or tcp."
        ))),
    }
}

/// What stands behind the authority is the path, as it is: tidying it is the mesh's business.
fn split_path(rest: &str, scheme: Scheme) -> (&str, String) {
    let at = match scheme {
        Scheme::Http | Scheme::Https => rest.find(['/', '?', '#', '\\']),
        Scheme::Tcp | Scheme::None => rest.find('/'),
    };
    let (authority, path) = rest.split_at_checked(at.unwrap_or(rest.len())).unwrap_or((rest, ""));
    let slash = if path.starts_with('/') { "" } else { "/" };
    (authority, format!("{slash}{path}"))
}

fn split_port(authority: &str, scheme: Scheme) -> Option<(&str, u16)> {
    let default = match scheme {
        Scheme::Http => Some(80),
        Scheme::Https => Some(443),
        Scheme::Tcp | Scheme::None => None,
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

    impl Target {
        /// A target without a configuration.
        pub(in crate::explain) fn nowhere(authority: &str, path: &str) -> Self {
            Self {
                scheme: Scheme::Http,
                to: To::Stranger(authority.into()),
                port: 80,
                name: authority.into(),
                authority: authority.into(),
                path: path.into(),
                addressed: None,
            }
        }
    }

    #[test]
    fn the_path_stays_as_it_was_written() {
        for (text, authority, path) in [
            ("shop:80/a/../b?x=1", "shop:80", "/a/../b?x=1"),
            ("shop", "shop", "/"),
            ("shop?x=/y", "shop", "/?x=/y"),
            ("shop//%2e%2e\\a#b", "shop", "//%2e%2e\\a#b"),
        ] {
            assert_eq!(split_path(text, Scheme::Http), (authority, path.to_owned()), "{text}");
        }
    }

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
