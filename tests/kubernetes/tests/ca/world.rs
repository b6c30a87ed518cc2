//! An API server with two nodes' worth of objects, and controllers beside it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use weft_core::Identity;
use weft_identity::csr_api::{NetworkCaClient, NetworkCaOptions};
use weft_identity::{CaClient, CaMaterial, CertStore};
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions, free_port};
use weft_lab::{Process, Scope, poll_until};

use super::jwt::Claims;

/// Waiting for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// What a token is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) account: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) audience: &'a str,
}

/// The agent on node-a.
pub(crate) const AGENT_A: Token<'static> =
    Token { namespace: "weft-system", account: "weft-agent", pod: "weft-agent-a", audience: "weft-ca" };

/// What the controller may do, as the manifest has it.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: ca-tests}
rules:
- {apiGroups: ["", apps, discovery.k8s.io, apiextensions.k8s.io, networking.istio.io, security.istio.io, telemetry.istio.io, gateway.networking.k8s.io], resources: [namespaces, nodes, pods, services, serviceaccounts, configmaps, endpointslices, customresourcedefinitions], verbs: [get, list, watch]}
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: ca-tests}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ca-tests}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: controllers}]
"#;

const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: controllers, namespace: NAMESPACE}
rules:
- {apiGroups: [""], resources: [secrets], resourceNames: [weft-ca], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [secrets], verbs: [create]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [weft-ca-root-cert], verbs: [get, patch]}
- {apiGroups: [""], resources: [configmaps], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: controllers, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: controllers}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: controllers}]
"#;

/// Everything that the tests share.
pub(crate) struct World {
    pub(crate) plane: ControlPlane,
    kubeconfig: PathBuf,
    scope: Scope,
    started: AtomicU32,
}

impl World {
    pub(crate) fn start() -> Result<Option<Self>> {
        let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(None) };
        let kubeconfig = plane.kubeconfig_for("controller", &["controllers"]);
        let world = Self { plane, kubeconfig, scope: Scope::new()?, started: AtomicU32::new(0) };
        world.plane.apply(RIGHTS)?;
        for namespace in ["weft-system", "shop"] {
            world.namespace(namespace)?;
        }
        for account in ["cart", "store", "outside"] {
            world.account("shop", account)?;
        }
        world.account("weft-system", "weft-agent")?;
        for node in ["node-a", "node-b"] {
            world.plane.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}"))?;
        }
        world.pod("weft-system", "weft-agent-a", ("weft-agent", "node-a"), "10.1.0.1", false)?;
        world.pod("weft-system", "weft-agent-b", ("weft-agent", "node-b"), "10.2.0.1", false)?;
        world.pod("shop", "cart", ("cart", "node-a"), "10.1.0.2", true)?;
        world.pod("shop", "store", ("store", "node-b"), "10.2.0.2", true)?;
        world.pod("shop", "outside", ("outside", "node-a"), "10.1.0.3", false)?;
        Ok(Some(world))
    }

    /// Where its processes run.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let at = self.scope.dir().join(name);
        std::fs::write(&at, content)?;
        Ok(at)
    }

    /// A namespace in which a controller may have its objects.
    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        self.plane.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"))?;
        self.plane.apply(&ROLE.replace("NAMESPACE", name))
    }

    fn account(&self, namespace: &str, name: &str) -> Result<()> {
        let meta = format!("{{name: {name}, namespace: {namespace}}}");
        self.plane.apply(&format!("{{apiVersion: v1, kind: ServiceAccount, metadata: {meta}}}"))
    }

    /// A pod that runs.
    pub(crate) fn pod(
        &self,
        namespace: &str,
        name: &str,
        (account, node): (&str, &str),
        ip: &str,
        in_mesh: bool,
    ) -> Result<()> {
        let mesh = if in_mesh { "enabled" } else { "disabled" };
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"weft.dev/mesh": mesh}},
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "containers": [{"name": "app", "image": "none"}],
            },
        });
        self.plane.apply(&pod.to_string())?;
        let status = json!({"status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patch = status.to_string();
        let args =
            ["patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", &patch];
        self.plane.kubectl(&args).map(drop)
    }

    /// A token that the API server makes, bound to a pod.
    pub(crate) fn token(&self, token: Token<'_>) -> Result<String> {
        let made = self.plane.kubectl(&[
            "create",
            "token",
            token.account,
            "-n",
            token.namespace,
            "--audience",
            token.audience,
            "--bound-object-kind=Pod",
            "--bound-object-name",
            token.pod,
        ])?;
        Ok(made.trim().to_owned())
    }

    /// A token that is signed with the API server's key.
    pub(crate) fn forge(&self, token: Token<'_>, change: &dyn Fn(&mut Claims)) -> Result<String> {
        let mut claims = Claims::now(self.uid("pod", token.namespace, token.pod)?)?;
        change(&mut claims);
        let key = std::fs::read_to_string(self.plane.service_account_key())?;
        claims.sign(token, &self.uid("serviceaccount", token.namespace, token.account)?, &key)
    }

    /// The same with a key that is not the API server's.
    pub(crate) fn forge_with_other_key(&self, token: Token<'_>) -> Result<String> {
        let claims = Claims::now(self.uid("pod", token.namespace, token.pod)?)?;
        let account = self.uid("serviceaccount", token.namespace, token.account)?;
        claims.sign(token, &account, &KeyPair::generate()?.serialize_pem())
    }

    fn uid(&self, kind: &str, namespace: &str, name: &str) -> Result<String> {
        self.plane.kubectl(&["get", kind, name, "-n", namespace, "-o", "jsonpath={.metadata.uid}"])
    }

    /// The root that agents get.
    pub(crate) fn root(&self, namespace: &str) -> Result<String> {
        let path = "jsonpath={.data.root-cert\\.pem}";
        self.plane.kubectl(&["get", "configmap", "weft-ca-root-cert", "-n", namespace, "-o", path])
    }

    /// The Secret's content, encoded.
    pub(crate) fn secret(&self, namespace: &str) -> Result<Value> {
        let text = self.plane.kubectl(&["get", "secret", "weft-ca", "-n", namespace, "-o", "json"])?;
        Ok(serde_json::from_str::<Value>(&text)?.get("data").cloned().unwrap_or_default())
    }

    /// What is in the Secret.
    pub(crate) fn material(&self, namespace: &str) -> Result<CaMaterial> {
        let entry = |key: &str| {
            let template = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
            self.plane.kubectl(&["get", "secret", "weft-ca", "-n", namespace, "-o", &template])
        };
        Ok(CaMaterial {
            certificate_pem: entry("ca-cert.pem")?,
            key_pem: entry("ca-key.pem")?,
            chain_pem: entry("cert-chain.pem")?,
            roots_pem: entry("root-cert.pem")?,
        })
    }

    pub(crate) fn put_secret(&self, namespace: &str, material: &CaMaterial) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "weft-ca", "namespace": namespace},
            "stringData": {
                "ca-cert.pem": material.certificate_pem,
                "ca-key.pem": material.key_pem,
                "cert-chain.pem": material.chain_pem,
                "root-cert.pem": material.roots_pem,
            },
        });
        self.plane.apply(&secret.to_string())
    }

    /// A Secret as cert-manager makes it of a Certificate with `isCA`; gives the root.
    pub(crate) fn put_intermediate(&self, namespace: &str) -> Result<String> {
        let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = authority("intermediate").signed_by(&key, &root)?;
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": "weft-ca", "namespace": namespace},
            "stringData": {
                "tls.crt": certificate.pem(),
                "tls.key": key.serialize_pem(),
                "ca.crt": root.pem(),
            },
        });
        self.plane.apply(&secret.to_string())?;
        Ok(root.pem())
    }

    /// Starts a controller with its objects in a namespace, which is made when it is not there.
    pub(crate) fn controller(&self, namespace: &str, args: &[&str]) -> Result<Controller<'_>> {
        self.namespace(namespace)?;
        self.controller_on(namespace, free_port()?, args)
    }

    /// The same at a port that is known.
    pub(crate) fn controller_on(&self, namespace: &str, port: u16, more: &[&str]) -> Result<Controller<'_>> {
        let name = format!("controller-{}", self.started.fetch_add(1, Ordering::Relaxed));
        let (metrics, readiness) = (free_port()?, free_port()?);
        let mut args = vec![
            "controller".to_owned(),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--namespace={namespace}"),
            "--no-admission".to_owned(),
            "--status=off".to_owned(),
            format!("--ca-listen=127.0.0.1:{port}"),
            format!("--metrics-addr=127.0.0.1:{metrics}"),
            format!("--readiness-addr=127.0.0.1:{readiness}"),
            "--ca-trusted-node-accounts=weft-system/weft-agent".to_owned(),
        ];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let process = Process::spawn(&self.scope.place()?, &name, &weft()?, &args)?;
        let dir = self.scope.dir().join(format!("{name}-files"));
        std::fs::create_dir(&dir)?;
        let (runtime, ends) = background_runtime()?;
        Ok(Controller {
            world: self,
            process,
            port,
            metrics,
            readiness,
            namespace: namespace.to_owned(),
            name: format!("weft-controller.{namespace}.svc"),
            dir,
            tokens: AtomicU32::new(0),
            runtime,
            _ends: ends,
        })
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A runtime on a thread of its own, so that certificates are renewed while the test waits for something else.
pub(crate) fn background_runtime() -> Result<(Handle, oneshot::Sender<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (ends, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("agents".to_owned()).spawn(move || drop(runtime.block_on(ended)))?;
    Ok((handle, ends))
}

/// The binary beside this test.
fn weft() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let program = exe.parent().and_then(Path::parent).context("a directory")?.join("weft");
    ensure!(program.exists(), "{} is missing; build it with `cargo build -p weft`", program.display());
    Ok(program)
}

pub(crate) fn identity(namespace: &str, account: &str) -> Identity {
    Identity::new("cluster.local", namespace, account)
}

/// An empty request, as every CA takes it.
pub(crate) fn csr() -> String {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(&key).and_then(|request| request.pem()).expect("a request")
}

/// A controller, with the files of an agent that asks it.
pub(crate) struct Controller<'w> {
    world: &'w World,
    process: Process,
    pub(crate) port: u16,
    metrics: u16,
    readiness: u16,
    namespace: String,
    name: String,
    dir: PathBuf,
    tokens: AtomicU32,
    pub(crate) runtime: Handle,
    /// Dropped, it ends the runtime.
    _ends: oneshot::Sender<()>,
}

impl Controller<'_> {
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(crate) fn log(&self) -> String {
        format!("{}{}", self.process.stdout(), self.process.stderr())
    }

    fn get(port: u16, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Waits until it serves, and writes the root file of its agents.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        poll_until(LIMIT, || {
            let answer = Self::get(self.readiness, "/healthz/ready")?;
            ensure!(answer.contains(" 200 "), "{answer}");
            Ok(())
        })
        .with_context(|| self.log())?;
        let roots = poll_until(LIMIT, || self.world.root(&self.namespace)).with_context(|| self.log())?;
        self.update_root_file(&roots)
    }

    pub(crate) fn metrics(&self) -> Result<String> {
        Self::get(self.metrics, "/metrics")
    }

    pub(crate) fn update_root_file(&self, roots: &str) -> Result<()> {
        // As kubelet does it: complete or not at all.
        let temporary = self.dir.join("root-cert.pem.new");
        std::fs::write(&temporary, roots)?;
        Ok(std::fs::rename(temporary, self.root_file())?)
    }

    /// The roots of its agents.
    pub(crate) fn root_file(&self) -> PathBuf {
        self.dir.join("root-cert.pem")
    }

    /// The name in its certificate.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A file with this token.
    pub(crate) fn token_file(&self, token: &str) -> PathBuf {
        let file = self.dir.join(format!("token-{}", self.tokens.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&file, token).expect("a token file");
        file
    }

    /// The client of an agent with this token.
    pub(crate) fn client(&self, token: &str, lifetime: Duration) -> NetworkCaClient {
        NetworkCaClient::new(NetworkCaOptions {
            address: format!("https://127.0.0.1:{}", self.port),
            token_file: self.token_file(token),
            root_file: self.root_file(),
            server_name: Some(self.name.clone()),
            cluster_id: "Kubernetes".to_owned(),
            lifetime,
        })
        .expect("the options are right")
    }

    /// The certificates of an agent with this token.
    pub(crate) fn store(&self, token: &str, lifetime: Duration) -> CertStore {
        let client = self.client(token, lifetime);
        let store = CertStore::new(Arc::new(client), self.runtime.clone());
        store.follow_roots(&self.root_file());
        store
    }

    /// Whether what is signed at this moment is signed by this CA.
    pub(crate) async fn signs_with(&self, ca: &CaMaterial, token: &str) -> Result<bool> {
        let signed = self.client(token, Duration::ZERO).sign(&csr(), &identity("shop", "cart")).await?;
        let leaf = CertificateDer::from_pem_slice(signed.chain_pem.concat().as_bytes())?;
        let root = CertificateDer::from_pem_slice(ca.certificate_pem.as_bytes())?;
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf)?;
        let (_, root) = x509_parser::parse_x509_certificate(&root)?;
        Ok(leaf.issuer().as_raw() == root.subject().as_raw())
    }
}
