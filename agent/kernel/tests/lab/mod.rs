//! Two pods and a third, not enrolled, behind a node that routes between them: network namespaces, a cgroup and
//! a pin directory of this test alone.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};
use weft_core::identity::Identity;
use weft_core::kernel_view::{DirectPair, KernelPod, KernelService, KernelView};
use weft_core::resource::{Labels, NamespacedName};
use weft_core::snapshot::{CaptureRules, Membership, Workload, WorkloadLabels};
use weft_kernel::{Datapath, DatapathConfig, EnrolError, Enrolled, Netns, PodToEnrol};

/// Nothing that works takes as long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tests move their process between cgroups, so there is one at a time.
static ALONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    pub a: Pod,
    pub b: Pod,
    /// Not enrolled.
    pub c: Pod,
    pub node: Arc<Netns>,
    pub config: DatapathConfig,
    prefix: String,
    hierarchy: PathBuf,
    home: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

pub struct Pod {
    pub key: NamespacedName,
    pub path: PathBuf,
    pub netns: Arc<Netns>,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

impl Lab {
    pub fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = format!("weft-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (hierarchy, home) = own_cgroup();
        let base = hierarchy.join(&prefix);
        fs::create_dir_all(base.join("pods")).unwrap();
        let pin_dir = std::env::temp_dir().join(&prefix);
        let node_name = format!("{prefix}-n");
        ip(&["netns", "add", &node_name]);
        set_up_node(&node_name);
        let pod = |name: &str, number: u8| Pod::new(&prefix, &node_name, name, number);
        Self {
            a: pod("a", 11),
            b: pod("b", 12),
            c: pod("c", 13),
            node: Arc::new(Netns::open(&Path::new("/run/netns").join(&node_name)).unwrap()),
            config: DatapathConfig {
                cgroup: base.clone(),
                probe_cgroup: None,
                agent_cgroup: base.join("agent"),
                pin_dir,
                mount_bpffs: true,
                proc: "/proc".into(),
            },
            prefix,
            hierarchy,
            home,
            _alone: alone,
        }
    }

    /// Where our agents pin.
    pub fn pins_of_schema(&self) -> PathBuf {
        self.config.pin_dir.join(format!("v{}", weft_ebpf_common::ABI_MAJOR))
    }

    /// A data path; this process counts as a process of the pods afterwards.
    pub fn open(&self) -> Datapath {
        let datapath = Datapath::open(self.config.clone()).unwrap();
        self.be_pod();
        datapath
    }

    /// Data path with both pods enrolled and the view applied.
    pub fn enrolled(&self, view: &KernelView) -> (Datapath, Enrolled, Enrolled) {
        let mut datapath = self.open();
        let a = datapath.enrol(&self.a.to_enrol()).unwrap();
        let b = datapath.enrol(&self.b.to_enrol()).unwrap();
        datapath.apply(view).unwrap();
        (datapath, a, b)
    }

    pub fn be_pod(&self) {
        self.be_in("pods");
    }

    pub fn be_agent(&self) {
        self.be_in("agent");
    }

    pub fn be_in(&self, cgroup: &str) {
        let procs = self.config.cgroup.join(cgroup).join("cgroup.procs");
        fs::write(procs, std::process::id().to_string()).unwrap();
    }

    /// Both pods, everything through the proxy.
    pub fn view(&self) -> KernelView {
        KernelView { pods: vec![self.a.kernel_pod(), self.b.kernel_pod()], ..KernelView::default() }
    }

    /// As [`view`](Self::view); `a` may go direct to these ports of `b`.
    pub fn direct_view(&self, ports: &[u16]) -> KernelView {
        let pair = |port: &u16| DirectPair {
            destination: self.b.key.clone(),
            source: self.a.principal().into(),
            port: *port,
        };
        KernelView { direct: ports.iter().map(pair).collect(), ..self.view() }
    }

    /// Adds a Service to a view.
    pub fn service(vip: &str, endpoints: &[SocketAddr]) -> KernelService {
        KernelService { vip: vip.parse().unwrap(), endpoints: endpoints.to_vec() }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::write(self.home.join("cgroup.procs"), std::process::id().to_string());
        let _ = Datapath::cleanup(&self.config, None);
        for suffix in ["a", "b", "c", "n"] {
            let name = format!("{}-{suffix}", self.prefix);
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
        let _ = rustix::mount::unmount(&self.config.pin_dir, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.config.pin_dir);
        for cgroup in ["agent", "pods", "other", ""] {
            let _ = fs::remove_dir(self.hierarchy.join(&self.prefix).join(cgroup));
        }
    }
}

impl Pod {
    fn new(prefix: &str, node: &str, name: &str, number: u8) -> Self {
        let netns = format!("{prefix}-{name}");
        let (v4, v6) = (format!("10.244.0.{number}"), format!("fd00::{number}"));
        let host = format!("v{name}");
        ip(&["netns", "add", &netns]);
        sysctl(&netns, &["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]);
        ip(&["-n", &netns, "link", "add", "eth0", "type", "veth", "peer", "name", &host, "netns", node]);
        ip(&["-n", &netns, "link", "set", "lo", "up"]);
        ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        ip(&["-n", node, "link", "set", &host, "up"]);
        ip(&["-n", &netns, "addr", "add", &format!("{v4}/32"), "dev", "eth0"]);
        ip(&["-n", &netns, "addr", "add", &format!("{v6}/128"), "dev", "eth0", "nodad"]);
        ip(&["-n", node, "addr", "add", "169.254.1.1/32", "dev", &host]);
        ip(&["-n", node, "addr", "add", "fe80::1/64", "dev", &host, "nodad"]);
        ip(&["-n", &netns, "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link"]);
        ip(&["-n", &netns, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0"]);
        ip(&["-n", &netns, "route", "add", "default", "via", "fe80::1", "dev", "eth0"]);
        ip(&["-n", node, "route", "add", &v4, "dev", &host]);
        ip(&["-n", node, "route", "add", &v6, "dev", &host]);
        let path = Path::new("/run/netns").join(&netns);
        Self {
            key: NamespacedName::new("test", name),
            netns: Arc::new(Netns::open(&path).unwrap()),
            path,
            v4: v4.parse().unwrap(),
            v6: v6.parse().unwrap(),
        }
    }

    pub fn ips(&self) -> [IpAddr; 2] {
        [self.v4, self.v6]
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v4, port)
    }

    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v6, port)
    }

    pub fn to_enrol(&self) -> PodToEnrol {
        PodToEnrol { key: self.key.clone(), netns: self.path.clone(), ips: self.ips().to_vec() }
    }

    pub fn identity(&self) -> Identity {
        Identity::new("cluster.local", "test", &*self.key.name)
    }

    pub fn principal(&self) -> String {
        self.identity().principal()
    }

    pub fn kernel_pod(&self) -> KernelPod {
        let text: Arc<str> = "test".into();
        let labels = WorkloadLabels {
            workload: text.clone(),
            namespace: text.clone(),
            principal: self.principal().into(),
            app: text.clone(),
            version: text.clone(),
            canonical_service: text.clone(),
            canonical_revision: text,
        };
        let workload = Workload {
            key: self.key.clone(),
            ips: self.ips().into_iter().collect(),
            node: None,
            identity: self.identity().into(),
            labels: labels.into(),
            pod_labels: Labels::default().into(),
            membership: Membership::InMesh,
            ready: true,
            encrypt_same_node: false,
        };
        KernelPod {
            workload: workload.into(),
            capture: CaptureRules::default(),
            bypass: false,
            gone_pass: false,
            gone_ports: Vec::new(),
        }
    }

    /// A server of the application.
    pub fn listen(&self, at: SocketAddr) -> TcpListener {
        let listener = self.netns.run(|| TcpListener::bind(at)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A client of the application.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.netns.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// A socket in the pod's namespace.
    pub fn socket(&self, domain: Domain, protocol: Protocol) -> Socket {
        self.netns.run(|| Socket::new(domain, Type::STREAM, Some(protocol))).unwrap().unwrap()
    }

    /// Rules, routes and the sysctl, as text.
    pub fn state(&self) -> String {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        let mut state = String::new();
        for arguments in [
            ["-4", "rule", "list", "table", "all"],
            ["-6", "rule", "list", "table", "all"],
            ["-4", "route", "list", "table", "all"],
            ["-6", "route", "list", "table", "all"],
        ] {
            let arguments = if arguments[1] == "rule" { &arguments[..3] } else { &arguments[..] };
            let output = Command::new("ip").args(["-n", name]).args(arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            state.push_str(&String::from_utf8(output.stdout).unwrap());
        }
        for sysctl in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
            let value = self.netns.run(|| fs::read_to_string(format!("/proc/sys/net/{sysctl}"))).unwrap();
            state.push_str(&format!("{sysctl} {}", value.unwrap()));
        }
        state
    }

    pub fn ip(&self, arguments: &[&str]) {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        ip(&[&["-n", name], arguments].concat());
    }
}

fn set_up_node(node: &str) {
    ip(&["-n", node, "link", "set", "lo", "up"]);
    sysctl(
        node,
        &[
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
        ],
    );
}

pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

fn sysctl(netns: &str, settings: &[&str]) {
    let output =
        Command::new("ip").args(["netns", "exec", netns, "sysctl", "-qw"]).args(settings).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Mount point of cgroup2, and the directory in which this process is.
fn own_cgroup() -> (PathBuf, PathBuf) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchy = mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
        })
        .expect("cgroup2 is mounted");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    // A test that was killed may have left this process's parent in a cgroup of its own.
    let home = hierarchy.join(own);
    (hierarchy, home)
}

/// Waits for a connection.
#[track_caller]
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut poll_fd = [PollFd::new(listener, PollFlags::IN)];
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut poll_fd, Some(&timeout)).unwrap(), 1, "nobody connects to {listener:?}");
    let (stream, peer) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, peer)
}

/// Whether no connection waits.
pub fn is_idle(listener: &TcpListener) -> bool {
    listener.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Sends bytes one way and back.
#[track_caller]
pub fn echo(mut client: &TcpStream, mut server: &TcpStream, length: usize) {
    let sent = vec![7; length];
    let mut received = vec![0; length];
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&sent).unwrap());
        server.read_exact(&mut received).unwrap();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| server.write_all(&sent).unwrap());
        client.read_exact(&mut received).unwrap();
    });
}

/// Polls for something that the kernel does in its own time.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn counter(datapath: &Datapath, program: &str, reason: &str) -> u64 {
    let counters = datapath.counters();
    counters.iter().find(|counter| (counter.program, counter.reason) == (program, reason)).unwrap().value
}

/// Everything below the pin directory.
pub fn pins(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(pins(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

pub fn cookie(socket: impl AsFd) -> u64 {
    rustix::net::sockopt::socket_cookie(socket).unwrap()
}

/// Why a pod is not enrolled.
#[track_caller]
pub fn refusal(result: Result<Enrolled, EnrolError>) -> String {
    match result {
        Err(EnrolError::Refused(reason) | EnrolError::NotYet(reason)) => reason,
        other => panic!("{other:?}"),
    }
}
