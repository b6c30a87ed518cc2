//! What containerd is told.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::CgroupLook;
use super::images::PAUSE;
use super::node::{CNI_BIN, CNI_CONF};

/// Where runc is for nodes whose cgroup2 has no controllers.
pub(super) const RUNC: &str = "/opt/weft-runc";
/// How this program is asked to be that runc.
const RUNC_COMMAND: &str = "runc-without-limits";

/// The script at [`RUNC`].
pub(super) fn runc_script() -> Result<String> {
    Ok(format!("#!/bin/sh\nexec {} {RUNC_COMMAND} \"$@\"\n", std::env::current_exe()?.display()))
}

/// Becomes runc if the arguments of this program (without its name) say so: without limits, which it could not
/// set.
///
/// # Errors
/// runc cannot be run, or the bundle cannot be changed.
pub fn runc_without_limits(arguments: &[String]) -> Result<()> {
    let Some((RUNC_COMMAND, arguments)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    else {
        return Ok(());
    };
    if arguments.iter().any(|word| word == "update") {
        std::process::exit(0);
    }
    let bundle = arguments.iter().position(|word| word == "--bundle").and_then(|at| arguments.get(at + 1));
    if let Some(bundle) = bundle {
        let path = Path::new(bundle).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
            linux.remove("resources");
        }
        fs::write(&path, config.to_string())?;
    }
    Err(Command::new("runc").args(arguments).exec()).context("runc cannot be run")
}

/// `containerd.toml`.
pub(super) fn configuration(look: CgroupLook) -> String {
    let binary = match look {
        CgroupLook::Machine => String::new(),
        CgroupLook::Cgroup2Only => format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nBinaryName = \"{RUNC}\"\n"
        ),
    };
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "/opt/containerd"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
{binary}[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_BIN}"
conf_dir = "{CNI_CONF}"
"#
    )
}

/// The list of network plugins of node `number`.
pub(super) fn network(number: u8) -> String {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": format!("10.244.{number}.0/24") }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
    .to_string()
}
