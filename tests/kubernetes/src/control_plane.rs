//! etcd and a kube-apiserver.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weft_lab::{Place, Process, Scope, poll_until};

use crate::keys::{Authority, write_service_account_keys};
use crate::kubeconfig::Server;
use crate::ports::free_port;
use crate::{etcd, servers};

/// How long a server may take to become ready; on an idle machine it is three seconds.
const READY: Duration = Duration::from_secs(120);
/// Audience and issuer of the API server's own tokens.
const ISSUER: &str = "https://kubernetes.default.svc";
/// Every refused request, and how many requests anybody makes; administrators are nobody's subject.
const AUDIT_POLICY: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],
"rules":[{"level":"None","userGroups":["system:masters"]},{"level":"Metadata"}]}"#;

/// What a control plane is to be like.
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    /// Whether every request of anybody but administrators is written down, for [`ControlPlane::audit_log`].
    pub audit: bool,
    /// Whether the API server answers from its cache. Without it (and with
    /// `--etcd-compaction-interval=0`, which is set then), a compacted etcd makes watches fail with 410.
    pub watch_cache: bool,
    /// More flags for the API server.
    pub flags: Vec<String>,
    /// Where it listens; nodes must be able to reach it.
    pub address: IpAddr,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        Self { audit: false, watch_cache: true, flags: Vec::new(), address: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }
}

/// etcd and a kube-apiserver on free ports. Killed when dropped, and when the process that started them dies.
///
/// There is no controller-manager: namespaces have no `default` ServiceAccount (make it before the first
/// pod), and deleted namespaces stay `Terminating`. Have a namespace for each scenario.
#[derive(Debug)]
pub struct ControlPlane {
    programs: PathBuf,
    dir: PathBuf,
    place: Place,
    options: ControlPlaneOptions,
    ports: Ports,
    etcd: Mutex<Option<Process>>,
    api: Mutex<Option<Process>>,
    authority: Authority,
    server: Server,
    admin: PathBuf,
    service_account_key: PathBuf,
    files: AtomicU32,
    /// The last to go.
    _scope: Option<Scope>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    etcd: u16,
    etcd_peer: u16,
    api: u16,
}

impl ControlPlane {
    /// Starts one and waits until it is ready. `None` when the servers were not built, which has been printed
    /// as a skipped test then.
    ///
    /// # Errors
    /// The servers are missing in CI, this process is not root, or a server does not become ready.
    pub fn start(options: ControlPlaneOptions) -> Result<Option<Self>> {
        let Some(programs) = servers()? else { return Ok(None) };
        let scope = Scope::new()?;
        let mut plane = Self::start_in(programs, &scope.dir(), scope.place()?, options)?;
        plane._scope = Some(scope);
        Ok(Some(plane))
    }

    /// Starts one with its files in `dir` and its processes in `place`, which the caller cleans up.
    ///
    /// # Errors
    /// A server does not become ready.
    pub fn start_in(
        programs: PathBuf,
        dir: &Path,
        place: Place,
        options: ControlPlaneOptions,
    ) -> Result<Self> {
        let ports = Ports { etcd: free_port()?, etcd_peer: free_port()?, api: free_port()? };
        let authority = Authority::new()?;
        let root = dir.join("ca.crt");
        fs::write(&root, &authority.certificate)?;
        let address = SocketAddr::new(options.address, ports.api);
        let server = Server { url: format!("https://{address}"), authority: root };
        let (service_account_key, _) = write_service_account_keys(dir)?;
        let plane = Self {
            programs,
            dir: dir.to_owned(),
            place,
            options,
            ports,
            etcd: Mutex::new(None),
            api: Mutex::new(None),
            authority,
            server,
            admin: dir.join("admin.kubeconfig"),
            service_account_key,
            files: AtomicU32::new(0),
            _scope: None,
        };
        plane.write_files()?;
        plane.start_etcd()?;
        plane.start_api_server()?;
        Ok(plane)
    }

    fn write_files(&self) -> Result<()> {
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let service = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
        let addresses = [self.options.address, IpAddr::V4(Ipv4Addr::LOCALHOST), service];
        self.authority.server("kube-apiserver", &[], &names, &addresses)?.write(&self.dir, "apiserver")?;
        let kubelets = self.authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
        kubelets.write(&self.dir, "kubelet-client")?;
        let admin = self.authority.client("admin", &["system:masters"])?.write(&self.dir, "admin")?;
        self.server.write_for_certificate(&self.admin, (&admin.0, &admin.1))?;
        fs::write(self.dir.join("audit-policy.json"), AUDIT_POLICY)?;
        Ok(())
    }

    fn start_etcd(&self) -> Result<()> {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd);
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        let args = [
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
            // As in clusters of kubeadm, where it is five seconds: what bookmarks tell of a quiet kind comes from it.
            "--watch-progress-notify-interval=1s".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let mut process = self.spawn("etcd", &args)?;
        poll_until(READY, || {
            ensure!(process.is_running(), process.report("ended"));
            etcd::healthy(self.etcd_address())
        })
        .with_context(|| process.report("is not ready"))?;
        *lock(&self.etcd) = Some(process);
        Ok(())
    }

    /// Starts the API server again after [`ControlPlane::kill_api_server`], on the same port and the same etcd,
    /// and waits until it is ready. A watch from an older resource version gets 410 from it.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_api_server(&self) -> Result<()> {
        let mut process = self.spawn("kube-apiserver", &self.api_flags())?;
        let end = std::time::Instant::now() + READY;
        while self.kubectl(&["get", "--raw=/readyz"]).is_err() {
            if !process.is_running() {
                bail!("{}", process.report("ended"));
            }
            if std::time::Instant::now() > end {
                bail!("{}", process.report("is not ready"));
            }
        }
        *lock(&self.api) = Some(process);
        Ok(())
    }

    fn api_flags(&self) -> Vec<String> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let address = self.options.address;
        let mut flags = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={}", self.ports.api),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--cert-dir={}", file("certs")),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--api-audiences={ISSUER}"),
            format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            format!("--kubelet-certificate-authority={}", file("ca.crt")),
        ];
        let fixed = [
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
        ];
        flags.extend(fixed.map(str::to_owned));
        // An endpoint must not be a loopback address.
        if address.is_loopback() {
            flags.push("--endpoint-reconciler-type=none".to_owned());
        }
        if self.options.audit {
            flags.push(format!("--audit-policy-file={}", file("audit-policy.json")));
            flags.push(format!("--audit-log-path={}", file("audit.log")));
        }
        if !self.options.watch_cache {
            flags.extend(["--watch-cache=false", "--etcd-compaction-interval=0"].map(str::to_owned));
        }
        flags.extend(self.options.flags.iter().cloned());
        flags
    }

    fn spawn(&self, name: &str, args: &[String]) -> Result<Process> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Process::spawn(&self.place, name, &self.programs.join(name), &args)
    }

    /// Kills the API server; etcd keeps what is in it.
    pub fn kill_api_server(&self) {
        *lock(&self.api) = None;
    }

    /// Stops the API server without ending it, so that its clients wait; `false` lets it go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze_api_server(&self, frozen: bool) -> Result<()> {
        let api = lock(&self.api);
        let process = api.as_ref().context("the API server does not run")?;
        process.signal(if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT })
    }

    /// Removes every old revision from etcd.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn compact_etcd(&self) -> Result<()> {
        etcd::compact(self.etcd_address())
    }

    /// Address of etcd's client port (plain HTTP), for tests that fill it past the API.
    pub fn etcd_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.etcd))
    }

    /// Process id of the API server.
    pub fn api_server_pid(&self) -> Option<u32> {
        lock(&self.api).as_ref().map(Process::pid)
    }

    /// Where clients find the API server.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Root certificate of the API server and of clients.
    pub fn ca_pem(&self) -> &str {
        &self.authority.certificate
    }

    /// Directory of keys, certificates and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of the programs.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Key with which tokens of service accounts are signed (P-256, PKCS#8).
    pub fn service_account_key(&self) -> &Path {
        &self.service_account_key
    }

    /// Configuration of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// Configuration of a user in at most two groups.
    ///
    /// # Panics
    /// The files cannot be written.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> PathBuf {
        let name = self.new_name("user");
        let at = self.dir.join(format!("{name}.kubeconfig"));
        let written = self.authority.client(user, groups).and_then(|pair| {
            let files = pair.write(&self.dir, &name)?;
            self.server.write_for_certificate(&at, (&files.0, &files.1))
        });
        written.expect("the directory of the control plane can be written");
        at
    }

    /// Configuration of the holder of a token.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn kubeconfig_for_token(&self, token: &str) -> PathBuf {
        let at = self.dir.join(format!("{}.kubeconfig", self.new_name("token")));
        self.server.write_for_token(&at, token).expect("the directory of the control plane can be written");
        at
    }

    /// Certificate and key files of a server that is reached at `addresses` and is a client `user` too.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn certificate(
        &self,
        user: &str,
        groups: &[&str],
        addresses: &[IpAddr],
    ) -> Result<(PathBuf, PathBuf)> {
        let pair = self.authority.server(user, groups, &[], addresses)?;
        pair.write(&self.dir, &self.new_name("server"))
    }

    fn new_name(&self, what: &str) -> String {
        format!("{what}-{}", self.files.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs kubectl as administrator and gives what it printed.
    ///
    /// # Errors
    /// It fails; the text is what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run_kubectl(&self.admin, args, None)
    }

    /// Runs kubectl as somebody else.
    ///
    /// # Errors
    /// It fails; the text is what it said.
    pub fn kubectl_as(&self, kubeconfig: &Path, args: &[&str]) -> Result<String> {
        self.run_kubectl(kubeconfig, args, None)
    }

    /// Applies objects, YAML or JSON, as administrator.
    ///
    /// # Errors
    /// An object is refused.
    pub fn apply(&self, objects: &str) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.run_kubectl(&self.admin, &args, Some(objects)).map(drop)
    }

    fn run_kubectl(&self, kubeconfig: &Path, args: &[&str], input: Option<&str>) -> Result<String> {
        let mut child = Command::new(self.programs.join("kubectl"))
            .arg(format!("--cache-dir={}", self.dir.join("discovery").display()))
            .args(args)
            .env("KUBECONFIG", kubeconfig)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("kubectl cannot be run")?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // It says itself why it stopped reading.
            let _ = stdin.write_all(input.as_bytes());
        }
        let out = child.wait_with_output()?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            let printed = String::from_utf8_lossy(&out.stdout);
            bail!("`kubectl {}` failed ({}): {}\n{printed}", args.join(" "), out.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Every request that was written down: see [`ControlPlaneOptions::audit`].
    pub fn audit_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("audit.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The end of what the API server said.
    pub fn api_server_log(&self) -> String {
        lock(&self.api).as_ref().map(|process| process.report("was asked for its log")).unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
