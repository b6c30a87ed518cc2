//! The configuration that the runtime writes to the plugin's standard input.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::value::RawValue;

/// What of the configuration concerns this plugin.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    pub(crate) cni_version: Option<String>,
    pub(crate) prev_result: Option<Box<RawValue>>,
    /// The agent's socket.
    pub(crate) socket: Option<String>,
    /// How long to wait for the agent.
    pub(crate) timeout_seconds: Option<u64>,
    /// File of [`crate::rules`], where it is not beside the binary.
    pub(crate) rules: Option<String>,
    /// Further namespaces that are never held back.
    #[serde(default)]
    pub(crate) exclude_namespaces: Vec<String>,
    /// For GC: the sandboxes that exist.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Vec<Attachment>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
}

/// The result of the plugins before, in any version since 0.3.0.
#[derive(Debug, Deserialize)]
struct PrevResult {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Ip {
    #[serde(default)]
    interface: Option<i64>,
    address: String,
}

/// The addresses inside the sandbox; `None` when the result is not one.
pub(crate) fn addresses(result: &RawValue) -> Option<Vec<IpAddr>> {
    let result: PrevResult = serde_json::from_str(result.get()).ok()?;
    let interfaces = result.interfaces.unwrap_or_default();
    let is_inside = |ip: &Ip| {
        let interface = ip.interface.and_then(|at| interfaces.get(usize::try_from(at).ok()?));
        // An address of no interface is the sandbox's.
        interface.is_none_or(|interface| interface.sandbox.as_deref().is_some_and(|path| !path.is_empty()))
    };
    let inside = result.ips.unwrap_or_default().into_iter().filter(is_inside);
    let parsed = inside.filter_map(|ip| ip.address.split('/').next()?.parse().ok());
    Some(parsed.collect())
}

/// `CNI_ARGS`: pairs of names and values, `K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop`.
pub(crate) fn arguments(text: &str) -> HashMap<&str, &str> {
    text.split(';').filter_map(|pair| pair.split_once('=')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses_of(text: &str) -> Option<Vec<String>> {
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        Some(addresses(&raw)?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn only_addresses_inside_the_sandbox_count() {
        let result = r#"{"cniVersion":"1.0.0",
            "interfaces":[{"name":"br0"},{"name":"veth1","sandbox":""},{"name":"eth0","sandbox":"/var/run/netns/x"}],
            "ips":[{"interface":2,"address":"10.1.2.3/24"},{"address":"fd00::3/64"},{"interface":1,"address":"10.9.9.9/32"}]}"#;
        assert_eq!(addresses_of(result).unwrap(), ["10.1.2.3", "fd00::3"]);
    }

    #[test]
    fn results_of_all_versions_and_without_addresses_are_read() {
        let old = r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.2.3/24"}],"dns":{}}"#;
        assert_eq!(addresses_of(old).unwrap(), ["10.1.2.3"]);
        assert_eq!(addresses_of("{}").unwrap(), Vec::<String>::new());
        assert_eq!(addresses_of(r#"{"ips":null,"interfaces":null}"#).unwrap(), Vec::<String>::new());
        assert_eq!(
            addresses_of(r#"{"ips":[{"address":"no address","interface":-7}]}"#).unwrap(),
            Vec::<String>::new()
        );
        assert_eq!(addresses_of("[1]"), None);
    }

    #[test]
    fn arguments_are_pairs() {
        let args =
            arguments("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;;junk;K8S_POD_UID=a=b");
        assert_eq!(args.get("K8S_POD_NAME"), Some(&"web-1"));
        assert_eq!(args.get("K8S_POD_UID"), Some(&"a=b"));
        assert_eq!(args.get("junk"), None);
    }
}
