//! Two nodes, their pods, servers and agents.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use weft_lab::{Agent, Controller, Lab, LabSpec, Pod, PodSpec, Process};

pub(crate) const WHO: u16 = 9000;
pub(crate) const ECHO: u16 = 7000;
/// Addresses of Service `backend`.
pub(crate) const BACKEND_VIPS: [&str; 2] = ["172.20.0.10", "[fd00:172:20::10]"];
/// Addresses of Service `cart`.
pub(crate) const CART_VIPS: [&str; 2] = ["172.20.0.20", "[fd00:172:20::20]"];

pub(crate) const MESH: &str = include_str!("story/mesh.yaml");
pub(crate) const SERVICES: &str = include_str!("story/services.yaml");
pub(crate) const HTTP_SERVICES: &str = include_str!("story/http/services.yaml");
pub(crate) const CART_CALLERS: &str = include_str!("story/cart-callers.yaml");
pub(crate) const NO_FRONTEND: &str = include_str!("story/no-frontend.yaml");
pub(crate) const STRICT: &str = include_str!("story/strict.yaml");
pub(crate) const PERMISSIVE: &str = include_str!("story/permissive.yaml");

/// Label that takes a namespace into the mesh.
pub(crate) const IN_MESH: (&str, &str) = ("weft.dev/mesh", "enabled");

/// Node, namespace, name (which is the service account as well).
const PODS: &[(&str, &str, &str)] = &[
    ("a", "shop", "frontend"),
    ("a", "shop", "cart"),
    ("a", "shop", "worker"),
    ("b", "shop", "backend"),
    ("b", "open", "notice-board"),
    ("a", "legacy", "batch"),
    ("a", "books", "productpage"),
];

/// HTTP applications of namespace `books`: node, name, `app` (which is the service account as well), version.
const APPS: &[(&str, &str, &str, &str)] = &[
    ("a", "reviews-v1", "reviews", "v1"),
    ("b", "reviews-v2", "reviews", "v2"),
    ("b", "reviews-v3", "reviews", "v3"),
    ("b", "ratings", "ratings", "v1"),
];
/// Port of the HTTP applications and of their Services.
pub(crate) const WEB: u16 = 9080;
/// Addresses of Services `reviews` and `ratings`.
pub(crate) const REVIEWS_VIPS: [&str; 2] = ["172.20.0.40", "[fd00:172:20::40]"];
pub(crate) const RATINGS_VIPS: [&str; 2] = ["172.20.0.50", "[fd00:172:20::50]"];

/// Everything that the demo has running.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) agents: BTreeMap<&'static str, Agent>,
    /// Pods' servers; they end with the world.
    _servers: Vec<Process>,
    _controller: Controller,
    pub(crate) lab: Lab,
}

impl World {
    pub(crate) fn new(binaries: PathBuf) -> Result<Self> {
        let spec = LabSpec::new().node("a").node("b").binaries(binaries);
        let spec = PODS.iter().fold(spec, |spec, (node, namespace, name)| {
            spec.pod(PodSpec::new(node, namespace, name).service_account(name))
        });
        let spec = APPS.iter().fold(spec, |spec, (node, name, app, version)| {
            let pod = PodSpec::new(node, "books", name).service_account(app);
            spec.pod(pod.label("app", app).label("version", version))
        });
        let lab = Lab::new(&spec).context("the nodes and pods cannot be made")?;
        lab.config().namespace("shop", &[IN_MESH])?;
        lab.config().namespace("open", &[IN_MESH])?;
        lab.config().namespace("books", &[IN_MESH])?;
        lab.config().namespace("legacy", &[])?;
        lab.config().write("mesh.yaml", MESH)?;
        lab.config().write("services.yaml", SERVICES)?;
        lab.config().write("services-http.yaml", HTTP_SERVICES)?;
        let mut servers = ["shop/cart", "shop/backend", "open/notice-board"]
            .iter()
            .map(|pod| lab.pod(pod)?.serve(&[&format!("who:{WHO}"), &format!("echo:{ECHO}"), "http:8080"]))
            .collect::<Result<Vec<_>>>()
            .context("the servers in the pods cannot be started")?;
        for (_, name, _, version) in APPS {
            servers.push(lab.pod(&format!("books/{name}"))?.app(version, &[WEB])?);
        }
        let controller = lab.start_controller()?;
        let agents = ["a", "b"]
            .into_iter()
            .map(|node| Ok((node, lab.start_agent(node).with_context(|| format!("agent of node {node}"))?)))
            .collect::<Result<_>>()?;
        Ok(Self { agents, _servers: servers, _controller: controller, lab })
    }

    pub(crate) fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents.get(node).with_context(|| format!("node {node} has no agent"))
    }

    pub(crate) fn pod(&self, key: &str) -> Result<&Pod> {
        self.lab.pod(key)
    }

    fn pods_and_outside(&self) -> impl Iterator<Item = &Pod> {
        self.lab.pods().iter().chain([self.lab.outside()])
    }

    /// A script that runs a command in a pod: in its namespace, and in its cgroup, by which the mesh knows
    /// whose process it is.
    fn write_shell_script(&self) -> Result<String> {
        let mut script = "pod=$1; shift\ncase $pod in\n".to_owned();
        for pod in self.pods_and_outside() {
            let (cgroup, netns) = (pod.place().cgroup.display(), pod.netns().display());
            script.push_str(&format!("  {}) cgroup={cgroup} netns={netns} ;;\n", pod.key()));
        }
        script.push_str("  *) echo \"there is no pod $pod\" >&2; exit 2 ;;\nesac\n");
        script.push_str("[ $# -gt 0 ] || set -- bash\necho $$ > $cgroup/cgroup.procs\n");
        script.push_str("exec nsenter --net=$netns -- \"$@\"\n");
        let path = self.lab.dir().join("shell");
        std::fs::write(&path, script)?;
        Ok(path.display().to_string())
    }

    /// Says how to play with what is running, and waits for Ctrl-C.
    pub(crate) fn hold(&self) {
        println!("\nEverything is left running; Ctrl-C removes it. In another terminal, as root:\n");
        println!("  change the mesh     edit or add YAML in {}", self.lab.config().path().display());
        println!("                      (move files in, so that they appear all at once)");
        println!("  logs                {}", self.lab.logs().display());
        for (node, agent) in &self.agents {
            println!(
                "  ask agent {node}         {} status --socket {}",
                self.lab.weft().display(),
                agent.admin_socket().display()
            );
        }
        match self.write_shell_script() {
            Ok(script) => println!("\n  a shell in a pod    sh {script} NAMESPACE/POD [COMMAND …]"),
            Err(e) => println!("\n  no script for shells in pods could be written: {e:#}"),
        }
        for pod in self.pods_and_outside() {
            println!("    {:<20}{:<14}{}", pod.key(), pod.ipv4().to_string(), pod.ipv6());
        }
        println!("\n  then, for example from shop/frontend:");
        for (what, address) in
            [("cross-node, by Service", BACKEND_VIPS), ("same node, by Service", CART_VIPS)]
        {
            println!(
                "  {what:<24} bash -c 'cat < /dev/tcp/{}/90'",
                address.first().copied().unwrap_or_default()
            );
        }
        loop {
            // The handler of signals ends the process.
            std::thread::park();
        }
    }
}
