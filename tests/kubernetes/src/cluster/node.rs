//! One node.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{Place, Process, output, poll_until, run};

use super::world::Inside;
use super::{BRIDGE, CgroupLook, cgroups, containerd, kubelet};
use crate::ControlPlane;

/// Directories of the system that the node has a changeable view of.
const OVERLAID: &[&str] = &["/etc", "/var", "/opt", "/usr/libexec"];
/// What must be no overlay: kubelet and containerd mount other things in and over them.
const OWN: &[&str] = &["/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/log"];
/// Where pods' network plugins are on a node, as most distributions have it.
pub(super) const CNI_BIN: &str = "/opt/cni/bin";
/// Where the list of network plugins is.
pub(super) const CNI_CONF: &str = "/etc/cni/net.d";
const DEBIAN_CNI: &str = "/usr/lib/cni";

/// A node: namespaces and cgroups, and the servers in them.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    look: CgroupLook,
    dir: PathBuf,
    place: Place,
    /// Holds the namespaces; the servers join it.
    first: Process,
    containerd: Option<Process>,
    kubelet: Option<Process>,
    proxy: Option<Process>,
}

impl Node {
    /// Makes the namespaces; nothing runs on the node yet.
    pub(super) fn start(
        world: &Inside,
        plane: &ControlPlane,
        node: (u8, &str),
        look: CgroupLook,
    ) -> Result<Self> {
        let (number, name) = node;
        let dir = world.dir().join(name);
        fs::create_dir_all(&dir)?;
        connect(number, name)?;
        let group = format!("{}/{name}", world.cgroup());
        let script = dir.join("node.sh");
        fs::write(&script, script_of_node(name, &dir, &group, look)?)?;
        let place = world.place(&format!("{name}/init"))?;
        let place = Place { netns: format!("/run/netns/{name}").into(), ..place };
        let mut first = Process::spawn(&place, name, Path::new("sh"), &[&script.display().to_string()])?;
        first.wait_for_line(Duration::from_secs(30), |line| (line == "ready").then_some(()))?;
        let mut node = Self {
            name: name.to_owned(),
            number,
            look,
            dir,
            place,
            first,
            containerd: None,
            kubelet: None,
            proxy: None,
        };
        node.write_configuration(plane)?;
        Ok(node)
    }

    fn write_configuration(&mut self, plane: &ControlPlane) -> Result<()> {
        fs::write(self.dir.join("containerd.toml"), containerd::configuration(self.look))?;
        fs::write(self.dir.join("cni.conflist"), containerd::network(self.number))?;
        fs::write(self.dir.join("runc"), containerd::runc_script()?)?;
        let user = format!("system:node:{}", self.name);
        let pair = plane.certificate(&user, &["system:nodes"], &[IpAddr::V4(self.address())])?;
        let authority = plane.dir().join("ca.crt");
        fs::write(
            self.dir.join("kubelet.yaml"),
            kubelet::configuration(&authority, (&pair.0, &pair.1), self.look),
        )?;
        let (from, runc) = (self.dir.display(), containerd::RUNC);
        self.sh(&format!(
            "install -m 755 {from}/runc {runc} && cp {from}/cni.conflist {CNI_CONF}/10-bridge.conflist"
        ))?;
        Ok(())
    }

    /// Starts containerd, gives it the images, and starts kubelet and kube-proxy.
    pub(super) fn start_servers(&mut self, plane: &ControlPlane, images: &[&Path]) -> Result<()> {
        let config = self.dir.join("containerd.toml").display().to_string();
        self.containerd = Some(self.spawn("containerd", &["containerd", "--config", &config])?);
        poll_until(Duration::from_secs(60), || self.sh("ctr version")).with_context(|| self.report())?;
        for image in images {
            self.sh(&format!("ctr -n k8s.io images import --snapshotter overlayfs {}", image.display()))?;
        }
        self.start_kubelet(plane)?;
        let user = plane.kubeconfig_for("system:kube-proxy", &[]);
        let args = kubelet::proxy_command(plane.programs(), &user, &self.name);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.proxy = Some(self.spawn("kube-proxy", &args)?);
        Ok(())
    }

    /// Starts kubelet (again).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_kubelet(&mut self, plane: &ControlPlane) -> Result<()> {
        let user = plane.kubeconfig_for(&format!("system:node:{}", self.name), &["system:nodes"]);
        let config = self.dir.join("kubelet.yaml");
        let args = kubelet::command(plane.programs(), &config, &user, (&self.name, self.address()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.kubelet = Some(self.spawn("kubelet", &args)?);
        Ok(())
    }

    /// Kills kubelet; the pods go on.
    pub fn kill_kubelet(&mut self) {
        self.kubelet = None;
    }

    pub(super) fn check_servers(&mut self) -> Result<()> {
        for server in [&mut self.containerd, &mut self.kubelet, &mut self.proxy].into_iter().flatten() {
            let running = server.is_running();
            ensure!(running, server.report("ended"));
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    /// Its own network namespace.
    pub fn netns(&self) -> &Path {
        &self.place.netns
    }

    /// The ends of what its servers have said.
    pub fn report(&self) -> String {
        let servers = [&self.containerd, &self.kubelet, &self.proxy];
        let said = servers.into_iter().flatten().map(|server| server.report("runs"));
        format!("node {}:\n{}", self.name, said.collect::<Vec<_>>().join("\n"))
    }

    /// Runs a shell script on the node, in its own namespaces, and gives what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn sh(&self, script: &str) -> Result<String> {
        let args = self.join(&["sh", "-c", script]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        output("nsenter", &args).with_context(|| format!("on node {}", self.name))
    }

    fn spawn(&self, name: &str, command: &[&str]) -> Result<Process> {
        // The namespaces are entered from a cgroup outside; the server belongs into the node's own.
        let moved = [&["sh", "-c", MOVE, "sh"], command].concat();
        let args = self.join(&moved);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Process::spawn(&self.place, &format!("{}-{name}", self.name), Path::new("nsenter"), &args)
    }

    fn join(&self, command: &[&str]) -> Vec<String> {
        let target = format!("--target={}", self.first.pid());
        let mut args =
            vec![target, "--mount".into(), "--net".into(), "--uts".into(), "--cgroup".into(), "--".into()];
        args.extend(command.iter().map(|word| (*word).to_owned()));
        args
    }
}

/// Into the group `init` of each hierarchy, as the node sees them.
const MOVE: &str = r#"for group in /sys/fs/cgroup/init /sys/fs/cgroup/*/init; do
  test -e "$group/cgroup.procs" && echo 0 > "$group/cgroup.procs"
done
exec "$@""#;

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10 + number)
}

/// Makes the node's network namespace with a link to the bridge; every other node's pods are behind that node.
fn connect(number: u8, name: &str) -> Result<()> {
    let (own, far) = (format!("link{number}"), format!("node{number}"));
    let network = format!("10.244.{number}.0/24");
    let via = address(number).to_string();
    run("ip", &["netns", "add", name])?;
    run("ip", &["link", "add", &own, "type", "veth", "peer", "name", &far])?;
    run("ip", &["link", "set", &own, "master", BRIDGE, "up"])?;
    run("ip", &["link", "set", &far, "netns", name, "name", "eth0"])?;
    run("ip", &["-n", name, "link", "set", "lo", "up"])?;
    run("ip", &["-n", name, "addr", "add", &format!("{via}/24"), "dev", "eth0"])?;
    run("ip", &["-n", name, "link", "set", "eth0", "up"])?;
    run("ip", &["-n", name, "route", "add", "default", "via", &super::ADDRESS.to_string()])?;
    run("ip", &["route", "add", &network, "via", &via])?;
    run("nsenter", &[&format!("--net=/run/netns/{name}"), "--", "sysctl", "-qw", "net.ipv4.ip_forward=1"])
}

/// What the node's first process does: it goes into the node's cgroups, takes namespaces of its own, mounts what
/// a node has, and waits.
fn script_of_node(name: &str, dir: &Path, group: &str, look: CgroupLook) -> Result<String> {
    let mut script = String::from("set -e\n");
    let hierarchies = cgroups::hierarchies()?;
    for hierarchy in &hierarchies {
        let at = hierarchy.make(group)?;
        script += &format!("echo 0 > {}/cgroup.procs\n", at.display());
    }
    let inner = dir.join("inner.sh");
    fs::write(&inner, inner_script(name, dir, &hierarchies, look))?;
    script += &format!("exec unshare --mount --uts --cgroup --propagation private sh {}\n", inner.display());
    Ok(script)
}

fn inner_script(name: &str, dir: &Path, hierarchies: &[cgroups::Hierarchy], look: CgroupLook) -> String {
    let mut script = format!("set -e\nhostname {name}\numount -R /sys/fs/cgroup\n");
    let only_one = look == CgroupLook::Cgroup2Only || hierarchies.len() == 1;
    if only_one {
        script += "mount -t cgroup2 cgroup2 /sys/fs/cgroup\n";
    } else {
        script += "mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup\n";
        for hierarchy in hierarchies {
            let at = Path::new("/sys/fs/cgroup").join(hierarchy.name());
            let (at, kind) = (at.display(), &hierarchy.kind);
            let options = if hierarchy.options.is_empty() {
                String::new()
            } else {
                format!("-o {}", hierarchy.options)
            };
            script += &format!("mkdir -p {at}\nmount -t {kind} {options} {kind} {at}\n");
        }
    }
    script += "for at in /sys/fs/cgroup /sys/fs/cgroup/*; do\n  test -e $at/cgroup.procs || continue\n  mkdir -p $at/init\n  \
               for name in cpuset.cpus cpuset.mems; do test -e $at/init/$name && cat $at/$name > $at/init/$name || true; done\n  \
               echo 0 > $at/init/cgroup.procs\ndone\n";
    script += "mount -t tmpfs -o mode=755 run /run\nmkdir -p /run/netns /run/lock\n";
    for over in OVERLAID {
        let files = dir.join(format!("overlay{}", over.replace('/', "-")));
        let files = files.display();
        script += &format!(
            "if test -d {over}; then mkdir -p {files}/upper {files}/work; mount -t overlay -o \
             lowerdir={over},upperdir={files}/upper,workdir={files}/work overlay {over}; fi\n"
        );
    }
    for own in OWN {
        script += &format!("mkdir -p {own}\nmount -t tmpfs -o mode=755,size=8g node {own}\n");
    }
    script += &format!(
        "mkdir -p /var/log/pods /var/log/containers {CNI_CONF} {CNI_BIN} /sys/fs/bpf\n\
         rm -rf {CNI_CONF}/*\ncp {DEBIAN_CNI}/* {CNI_BIN}/\n\
         mount -t bpf bpf /sys/fs/bpf\nmount --make-rshared /\necho ready\nexec sleep infinity\n"
    );
    script
}
