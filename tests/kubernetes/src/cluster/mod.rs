//! Two real nodes on one machine: kubelet, containerd, kube-proxy and a bridge for the pods, with a whole
//! control plane beside them.
//!
//! All of it lives in namespaces of its own (mount, network, process ids, host name) and in cgroups of a
//! [`weft_lab::Scope`], so that nothing of the machine changes: its sysctls, rules, mounts and directories stay
//! as they are. [`world::enter`] makes the namespaces and runs a program in them; that program makes a
//! [`Cluster`].

mod cgroups;
mod containerd;
mod dns;
mod images;
mod kubelet;
mod node;
pub mod world;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_lab::{Place, Process, poll_until};

use crate::{ControlPlane, ControlPlaneOptions};
pub use containerd::runc_without_limits;
pub use images::Image;
pub use node::Node;

/// Address of the control plane and of the name server: the bridge between the nodes.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// All pods.
pub const POD_NETWORK: &str = "10.244.0.0/16";
/// Name of the bridge, for captures of what goes between the nodes.
pub const BRIDGE: &str = "br0";

const READY: Duration = Duration::from_secs(120);

/// How nodes look to what runs on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupLook {
    /// As on this machine: where it has controllers of version 1, the nodes have them too.
    Machine,
    /// cgroup2 and nothing else. Without controllers in it, containers have no limits.
    Cgroup2Only,
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// How their cgroups look.
    pub look: CgroupLook,
    /// Image archives that every node gets.
    pub images: Vec<PathBuf>,
}

/// A running cluster. It ends with the world.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    plane: Arc<ControlPlane>,
    place: Place,
    _servers: Vec<Process>,
}

impl Cluster {
    /// Starts everything and waits until the nodes are ready. To be called inside of a world that
    /// is prepared.
    ///
    /// # Errors
    /// Something does not start; the text has the end of its output.
    pub fn start(world: &world::Inside, options: &ClusterOptions) -> Result<Self> {
        let dir = world.dir();
        let place = world.place("control-plane")?;
        let control = dir.join("control-plane");
        fs::create_dir_all(&control)?;
        let plane_options = ControlPlaneOptions {
            address: IpAddr::V4(ADDRESS),
            audit: true,
            ..ControlPlaneOptions::default()
        };
        let plane =
            ControlPlane::start_in(world.programs().to_owned(), &control, place.clone(), plane_options)?;
        let plane = Arc::new(plane);
        dns::serve(Arc::clone(&plane))?;
        let servers = vec![controllers(&plane, &place)?, scheduler(&plane, &place)?];
        let pause = images::pause(&dir)?;
        let mut nodes = Vec::new();
        for (number, name) in (1u8..).zip(&options.nodes) {
            nodes.push(Node::start(world, &plane, (number, name), options.look)?);
        }
        let mut cluster = Self { nodes, plane, place, _servers: servers };
        for node in &mut cluster.nodes {
            let images: Vec<&Path> =
                [pause.as_path()].into_iter().chain(options.images.iter().map(PathBuf::as_path)).collect();
            node.start_servers(&cluster.plane, &images)?;
        }
        cluster.wait_for_nodes()?;
        Ok(cluster)
    }

    fn wait_for_nodes(&mut self) -> Result<()> {
        let plane = Arc::clone(&self.plane);
        poll_until(READY, || {
            for node in &mut self.nodes {
                node.check_servers()?;
            }
            for node in &self.nodes {
                let query = [
                    "get",
                    "node",
                    node.name(),
                    "-o=jsonpath={.status.conditions[?(@.type=='Ready')].status}",
                ];
                let ready = plane.kubectl(&query)?;
                if ready != "True" {
                    bail!("node {} is not ready: {ready:?}", node.name());
                }
            }
            Ok(())
        })
        .with_context(|| self.nodes.iter().map(Node::report).collect::<String>())
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("there is no node {name}"))
    }

    /// A node by name, to end or start its servers.
    ///
    /// # Errors
    /// There is none.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let node = self.nodes.iter_mut().find(|node| node.name() == name);
        node.with_context(|| format!("there is no node {name}"))
    }

    /// Starts the kubelet of a node again, after [`Node::kill_kubelet`].
    ///
    /// # Errors
    /// There is no such node, or it cannot be started.
    pub fn restart_kubelet(&mut self, name: &str) -> Result<()> {
        let plane = Arc::clone(&self.plane);
        self.node_mut(name)?.start_kubelet(&plane)
    }

    /// Where programs run that watch the network between the nodes.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Runs kubectl as administrator.
    ///
    /// # Errors
    /// It fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.plane.kubectl(args)
    }

    /// An answer of `kubectl … -o json`.
    ///
    /// # Errors
    /// It fails.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.plane.kubectl(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }
}

fn controllers(plane: &ControlPlane, place: &Place) -> Result<Process> {
    let user = plane.kubeconfig_for("system:kube-controller-manager", &[]);
    let dir = plane.dir();
    let mut args = server_flags(&user, dir);
    args.extend([
        format!("--service-account-private-key-file={}", plane.service_account_key().display()),
        format!("--root-ca-file={}", dir.join("ca.crt").display()),
        "--use-service-account-credentials".to_owned(),
        format!("--cluster-cidr={POD_NETWORK}"),
        "--allocate-node-cidrs=false".to_owned(),
    ]);
    start(plane, place, "kube-controller-manager", &args)
}

fn scheduler(plane: &ControlPlane, place: &Place) -> Result<Process> {
    let user = plane.kubeconfig_for("system:kube-scheduler", &[]);
    start(plane, place, "kube-scheduler", &server_flags(&user, plane.dir()))
}

fn server_flags(kubeconfig: &Path, dir: &Path) -> Vec<String> {
    let kubeconfig = kubeconfig.display();
    vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--cert-dir={}", dir.join("serving").display()),
    ]
}

fn start(plane: &ControlPlane, place: &Place, name: &str, args: &[String]) -> Result<Process> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Process::spawn(place, name, &plane.programs().join(name), &args)
}
