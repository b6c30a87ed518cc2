//! What kubelet and kube-proxy are told.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::json;

use super::{ADDRESS, CgroupLook, POD_NETWORK};

/// `KubeletConfiguration`; `pair` is certificate and key of its own server.
pub(super) fn configuration(authority: &Path, pair: (&Path, &Path), look: CgroupLook) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": look == CgroupLook::Cgroup2Only,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": "",
        "clusterDNS": [ADDRESS.to_string()],
        "clusterDomain": "cluster.local",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": authority },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pair.0,
        "tlsPrivateKeyFile": pair.1,
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
        "maxPods": 200,
    })
    .to_string()
}

/// The command of kubelet on the node of a name and an address.
pub(super) fn command(
    programs: &Path,
    config: &Path,
    kubeconfig: &Path,
    node: (&str, Ipv4Addr),
) -> Vec<String> {
    vec![
        programs.join("kubelet").display().to_string(),
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={}", node.0),
        format!("--node-ip={}", node.1),
        "--root-dir=/var/lib/kubelet".to_owned(),
    ]
}

/// The command of kube-proxy.
pub(super) fn proxy_command(programs: &Path, kubeconfig: &Path, node: &str) -> Vec<String> {
    vec![
        programs.join("kube-proxy").display().to_string(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={node}"),
        format!("--cluster-cidr={POD_NETWORK}"),
        "--proxy-mode=nftables".to_owned(),
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-min=0".to_owned(),
    ]
}
