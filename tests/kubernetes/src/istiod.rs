//! istiod beside a [`ControlPlane`], as a CA and as the one who says what its proxies would be told.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{Process, Scope, poll_until};

use crate::ControlPlane;
use crate::ports::free_port;
use crate::servers::istiod;

/// How long it may take to become ready; on an idle machine it is two seconds.
const READY: Duration = Duration::from_secs(120);
/// Its own namespace, in which its CA is.
pub const ISTIOD_NAMESPACE: &str = "istio-system";
/// The name in its certificate.
pub const ISTIOD_SERVER_NAME: &str = "istiod.istio-system.svc";
/// The audience of the tokens that it takes.
pub const ISTIOD_AUDIENCE: &str = "istio-ca";

/// The program, which has clients too.
#[derive(Debug, Clone)]
pub struct IstiodBinary(PathBuf);

impl IstiodBinary {
    /// Finds it. `None` when it was not built, which has been printed as a skipped test then.
    ///
    /// # Errors
    /// The source cannot be read.
    pub fn find() -> Result<Option<Self>> {
        Ok(istiod()?.map(Self))
    }

    /// Runs one of the commands that are not istiod itself, and gives what it printed.
    ///
    /// # Errors
    /// It fails; the text is what it said.
    pub fn ask(&self, args: &[&str]) -> Result<Value> {
        let out =
            Command::new(&self.0).args(args).stdin(Stdio::null()).output().context("it cannot be run")?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "{} failed: {}", args.first().unwrap_or(&""), said.trim());
        serde_json::from_slice(&out.stdout).context("it prints JSON")
    }
}

/// What an istiod is to be like.
#[derive(Debug, Clone)]
pub struct IstiodOptions<'a> {
    /// Namespace whose policies are for the whole mesh.
    pub root_namespace: &'a str,
    /// Service accounts (`namespace/name`) that may ask for the certificates of pods on their node.
    pub trusted_accounts: &'a str,
    /// More of the mesh's configuration, in YAML.
    pub mesh: &'a str,
}

/// A running istiod. Killed when dropped.
#[derive(Debug)]
pub struct Istiod {
    process: Process,
    xds: SocketAddr,
    secure: SocketAddr,
}

impl Istiod {
    /// Starts one as an administrator of the API server, and waits until it is ready: then it has read everything
    /// that was there. Its namespace must exist.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start(
        binary: &IstiodBinary,
        plane: &ControlPlane,
        scope: &Scope,
        options: &IstiodOptions<'_>,
    ) -> Result<Self> {
        let [http, xds, secure, monitoring] = free_addresses()?;
        let dir = scope.dir().join(format!("istiod-{}", secure.port()));
        fs::create_dir_all(&dir)?;
        let mesh = dir.join("mesh.yaml");
        let IstiodOptions { root_namespace, trusted_accounts, mesh: more } = options;
        let defaults = format!("defaultConfig: {{discoveryAddress: '{secure}'}}");
        fs::write(
            &mesh,
            format!("trustDomain: cluster.local\nrootNamespace: {root_namespace}\n{defaults}\n{more}"),
        )?;
        let mut args = vec![format!("--chdir={}", dir.display())];
        args.extend(environment(trusted_accounts));
        args.push(binary.0.display().to_string());
        args.extend([
            "discovery".to_owned(),
            format!("--kubeconfig={}", plane.kubeconfig().display()),
            format!("--meshConfig={}", mesh.display()),
            "--networksConfig=none".to_owned(),
            format!("--httpAddr={http}"),
            "--httpsAddr=".to_owned(),
            format!("--monitoringAddr={monitoring}"),
            format!("--grpcAddr={xds}"),
            format!("--secureGRPCAddr={secure}"),
            "--ctrlz_port=0".to_owned(),
        ]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let process = Process::spawn(&scope.place()?, "istiod", Path::new("env"), &args)?;
        let mut this = Self { process, xds, secure };
        this.wait_ready(http)?;
        Ok(this)
    }

    fn wait_ready(&mut self, http: SocketAddr) -> Result<()> {
        let end = std::time::Instant::now() + READY;
        while !is_ready(http) {
            ensure!(self.process.is_running(), self.process.report("ended"));
            ensure!(std::time::Instant::now() < end, self.process.report("is not ready"));
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Where proxies ask without TLS and without saying who they are.
    pub fn xds_address(&self) -> SocketAddr {
        self.xds
    }

    /// Where the CA is, with TLS.
    pub fn secure_address(&self) -> SocketAddr {
        self.secure
    }

    /// The end of what it said.
    pub fn log(&self) -> String {
        self.process.report("was asked for its log")
    }
}

/// The roots of istiod's CA, as it writes them into every namespace.
///
/// # Errors
/// They do not appear.
pub fn istiod_roots(plane: &ControlPlane) -> Result<String> {
    let path = "jsonpath={.data.root-cert\\.pem}";
    let args = ["get", "configmap", "istio-ca-root-cert", "-n", ISTIOD_NAMESPACE, "-o", path];
    poll_until(READY, || {
        let roots = plane.kubectl(&args)?;
        ensure!(roots.contains("BEGIN CERTIFICATE"), "there is no root in `{roots}`");
        Ok(roots)
    })
}

fn environment(trusted_accounts: &str) -> Vec<String> {
    [
        "POD_NAMESPACE=istio-system",
        "POD_NAME=istiod-0",
        "SERVICE_ACCOUNT=istiod",
        "REVISION=default",
        "CLUSTER_ID=Kubernetes",
        "PILOT_ENABLE_AMBIENT=true",
        "PILOT_CERT_PROVIDER=istiod",
        &format!("CA_TRUSTED_NODE_ACCOUNTS={trusted_accounts}"),
    ]
    .map(str::to_owned)
    .into()
}

fn is_ready(http: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(http)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /ready HTTP/1.0\r\nhost: istiod\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(" 200 "))
}

fn free_addresses() -> Result<[SocketAddr; 4]> {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok([at(free_port()?), at(free_port()?), at(free_port()?), at(free_port()?)])
}
