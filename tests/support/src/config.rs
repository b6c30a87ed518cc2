//! A directory of ordinary Kubernetes and Istio YAML.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::{Node, Pod};

/// The directory that agents and controller read. Files appear and change by rename, all at once.
#[derive(Debug, Clone)]
pub struct ConfigDir {
    dir: PathBuf,
    staging: PathBuf,
}

impl ConfigDir {
    pub(crate) fn create(run_dir: &Path) -> Result<Self> {
        let made = Self { dir: run_dir.join("config"), staging: run_dir.join("staging") };
        fs::create_dir_all(&made.dir)?;
        fs::create_dir_all(&made.staging)?;
        Ok(made)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Writes a file; `name` is without a directory.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        self.stage(name, content)?;
        self.publish(name)
    }

    /// Writes a file beside the directory, so that [`Self::publish`] is a rename and nothing else.
    pub fn stage(&self, name: &str, content: &str) -> Result<()> {
        fs::write(self.staging.join(name), content).with_context(|| format!("{name} cannot be written"))
    }

    /// Makes a staged file visible.
    pub fn publish(&self, name: &str) -> Result<()> {
        fs::rename(self.staging.join(name), self.dir.join(name))
            .with_context(|| format!("{name} cannot be renamed"))
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.dir.join(name)).with_context(|| format!("{name} cannot be removed"))
    }

    /// Writes a Namespace into `namespace-NAME.yaml`.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
        write_map(&mut text, "labels", labels.iter().copied())?;
        self.write(&format!("namespace-{name}.yaml"), &text)
    }

    /// Writes the lab's Nodes and these Pods into `cluster.yaml`.
    pub fn cluster<'a>(&self, nodes: &[Node], pods: impl IntoIterator<Item = &'a Pod>) -> Result<()> {
        let mut text = String::new();
        for node in nodes {
            text.push_str(&node_yaml(node));
        }
        for pod in pods {
            text.push_str(&pod_yaml(pod)?);
        }
        self.write("cluster.yaml", &text)
    }

    /// Writes a Service for the pods with label `app: APP` into `service-NAMESPACE-NAME.yaml`; `ports` are
    /// (name, port, target port).
    pub fn service(&self, service: &str, vips: &[&str], app: &str, ports: &[(&str, u16, u16)]) -> Result<()> {
        let (namespace, name) = service.split_once('/').context("a Service is named NAMESPACE/NAME")?;
        let first = vips.first().copied().unwrap_or("None");
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
             clusterIP: {first:?}\n  clusterIPs: {vips:?}\n  ipFamilyPolicy: PreferDualStack\n  \
             selector:\n    app: {app}\n  ports:\n"
        );
        for (port_name, port, target) in ports {
            writeln!(
                text,
                "  - name: {port_name}\n    port: {port}\n    targetPort: {target}\n    protocol: TCP"
            )?;
        }
        self.write(&format!("service-{namespace}-{name}.yaml"), &text)
    }
}

fn write_map<'a>(
    text: &mut String,
    field: &str,
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> std::fmt::Result {
    let mut pairs = pairs.into_iter().peekable();
    if pairs.peek().is_some() {
        writeln!(text, "  {field}:")?;
    }
    for (key, value) in pairs {
        writeln!(text, "    {key}: {value:?}")?;
    }
    Ok(())
}

fn node_yaml(node: &Node) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\nstatus:\n  addresses:\n  - type: InternalIP\n    \
         address: {}\n  - type: InternalIP\n    address: \"{}\"\n---\n",
        node.name(),
        node.ipv4(),
        node.ipv6()
    )
}

/// A Pod as the API server would show it, with the annotation that tells where its namespace is.
fn pod_yaml(pod: &Pod) -> Result<String> {
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n",
        pod.name(),
        pod.namespace()
    );
    writeln!(text, "  uid: {}", pod.uid())?;
    write_map(&mut text, "labels", pod.labels())?;
    let netns = pod.netns().display().to_string();
    write_map(&mut text, "annotations", pod.annotations().chain([("weft.dev/netns", netns.as_str())]))?;
    writeln!(
        text,
        "spec:\n  nodeName: {}\n  serviceAccountName: {}\n  containers:\n  - name: main\n    image: lab\n\
         status:\n  phase: Running\n  podIP: {v4}\n  podIPs:\n  - ip: {v4}\n  - ip: \"{v6}\"\n---",
        pod.node(),
        pod.service_account(),
        v4 = pod.ipv4(),
        v6 = pod.ipv6()
    )?;
    Ok(text)
}
