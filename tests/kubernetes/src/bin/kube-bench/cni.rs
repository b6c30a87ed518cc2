//! The container runtime's side of the CNI plugin.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_lab::{Pod, poll_until};

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"bridge"}]}"#;

/// Its directories and the plugin, which the agent puts there.
pub(crate) struct Cni {
    dir: PathBuf,
    plugin: PathBuf,
}

impl Cni {
    pub(crate) fn new(lab: PathBuf, plugin: &Path) -> Result<Self> {
        let dir = lab.join("cni");
        for name in ["bin", "net.d"] {
            fs::create_dir_all(dir.join(name))?;
        }
        fs::write(dir.join("net.d/10-lab.conflist"), LIST)?;
        ensure!(plugin.exists(), "{} is missing", plugin.display());
        Ok(Self { dir, plugin: plugin.to_owned() })
    }

    /// What the agent has to be told.
    pub(crate) fn flags(&self) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let pairs = [
            ("--cni-bin-dir", path("bin")),
            ("--cni-conf-dir", path("net.d")),
            ("--cni-socket", path("cni.sock")),
            ("--cni-plugin", self.plugin.display().to_string()),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Our entry of the list, as the agent wrote it.
    fn entry(&self) -> Result<Value> {
        let list: Value = serde_json::from_str(&fs::read_to_string(self.dir.join("net.d/10-lab.conflist"))?)?;
        let last = list.get("plugins").and_then(Value::as_array).and_then(|plugins| plugins.last()).cloned();
        let ours = last.filter(|last| last.get("type").and_then(Value::as_str) == Some("weft-cni"));
        ours.context("the plugin is not chained")
    }

    /// Calls the plugin for a pod; how long that took, in milliseconds.
    pub(crate) fn call(&self, command: &str, pod: &Pod) -> Result<f64> {
        let mut config = poll_until(Duration::from_secs(30), || self.entry())?;
        let fields = config.as_object_mut().context("an entry is an object")?;
        fields.insert("cniVersion".into(), "1.0.0".into());
        fields.insert("name".into(), "lab".into());
        fields.insert(
            "prevResult".into(),
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": "br0" }, { "name": "eth0", "sandbox": pod.netns() }],
                "ips": [{ "interface": 1, "address": format!("{}/24", pod.ipv4()) },
                        { "interface": 1, "address": format!("{}/64", pod.ipv6()) }],
            }),
        );
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.namespace(),
            pod.name(),
            pod.name(),
            pod.uid()
        );
        let began = Instant::now();
        let mut child = Command::new(self.dir.join("bin/weft-cni"))
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", pod.name()), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", pod.netns())
            .env("CNI_PATH", self.dir.join("bin"))
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the plugin cannot be run")?;
        child.stdin.take().context("it is piped")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
        Ok(took)
    }
}
