//! The manifest on a real API server: it is valid, its rights suffice, and each of them is used.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions, free_port};
use weft_lab::{Lab, LabSpec, Place, PodSpec, Process, poll_until};

const LIMIT: Duration = Duration::from_secs(120);
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/weft.yaml");
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");

/// Rights that this test does not make anybody use, and why they are granted all the same.
const UNUSED: &[(&str, &str)] = &[
    ("weft-agent: patch events.events.k8s.io", "an event that is repeated is counted in the first one"),
    ("weft-controller: patch events.events.k8s.io", "the same"),
    ("weft-controller: create configmaps", "server-side apply that creates stands as a patch in the log"),
];

/// Kinds of the Gateway API, which clusters have from elsewhere.
const GATEWAY_API: [(&str, &str); 8] = [
    ("BackendTLSPolicy", "backendtlspolicies"),
    ("Gateway", "gateways"),
    ("GatewayClass", "gatewayclasses"),
    ("GRPCRoute", "grpcroutes"),
    ("HTTPRoute", "httproutes"),
    ("ReferenceGrant", "referencegrants"),
    ("TCPRoute", "tcproutes"),
    ("TLSRoute", "tlsroutes"),
];

fn gateway_definition(kind: &str, plural: &str) -> String {
    let (scope, version) = match kind {
        "GatewayClass" => ("Cluster", "v1"),
        "TCPRoute" => ("Namespaced", "v1alpha2"),
        _ => ("Namespaced", "v1"),
    };
    let singular = kind.to_lowercase();
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
         metadata: {{name: {plural}.{GATEWAY_GROUP}, annotations: {{api-approved.kubernetes.io: \"unapproved, for a test\"}}}}\n\
         spec:\n  group: {GATEWAY_GROUP}\n  scope: {scope}\n\
         \x20 names: {{kind: {kind}, plural: {plural}, singular: {singular}, listKind: {kind}List}}\n\
         \x20 versions: [{{name: {version}, served: true, storage: true, schema: {{openAPIV3Schema: \
         {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}]\n"
    )
}

/// A right, as a role grants it and as the audit log shows its use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    account: String,
    verb: String,
    /// `resource/subresource.group`, as RBAC's messages have it.
    resource: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.account, self.verb, self.resource)
    }
}

fn resource(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

struct World {
    plane: ControlPlane,
    lab: Lab,
}

impl World {
    fn start() -> Result<Option<Self>> {
        let options = ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() };
        let Some(plane) = ControlPlane::start(options)? else { return Ok(None) };
        let lab = Lab::new(&LabSpec::new().node("a").pod(PodSpec::new("a", "shop", "web")))?;
        let bpffs = lab.node("a")?.dir().join("bpf");
        std::fs::create_dir_all(&bpffs)?;
        ensure!(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs).status()?.success(), "no bpffs");
        Ok(Some(Self { plane, lab }))
    }

    /// Installs as the README says, strictly, and first as if.
    fn install(&self) -> Result<()> {
        self.plane.kubectl(&["create", "-f", DEFINITIONS])?;
        for (kind, plural) in GATEWAY_API {
            self.plane.apply(&gateway_definition(kind, plural))?;
        }
        self.plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        self.plane.kubectl(&["create", "namespace", "weft-system"])?;
        let apply = ["apply", "--server-side", "--validate=strict", "--force-conflicts", "-f", MANIFEST];
        let said = self.plane.kubectl(&[&apply[..], &["--dry-run=server"]].concat())?;
        ensure!(said.contains("daemonset.apps/weft-agent serverside-applied"), "{said}");
        self.plane.kubectl(&apply)?;
        // What a second installation does: nothing.
        self.plane.kubectl(&["diff", "--server-side", "-f", MANIFEST]).map(drop)
    }

    fn objects(&self) -> Result<()> {
        self.plane.apply(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weft.dev/mesh: enabled}}\n---\n\
             apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: shop}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {name: a}\n",
        )?;
        let agent = "{nodeName: a, serviceAccountName: weft-agent, containers: [{name: agent, image: none}]}";
        self.pod("weft-system", "weft-agent-a", agent, ["192.0.2.1", "2001:db8::1"])?;
        let web = self.lab.pod("shop/web")?;
        let spec = "{nodeName: a, containers: [{name: main, image: none}]}";
        self.pod("shop", "web", spec, [&web.ipv4().to_string(), &web.ipv6().to_string()])?;
        // No process anywhere belongs to this one: it cannot be enrolled, and an event says so.
        self.pod("shop", "lost", spec, ["192.0.2.2", "2001:db8::2"])?;
        // One of each of Istio's kinds, which get a status: not applied, or with a mistake.
        let definitions = self.plane.kubectl(&["get", "crd", "-o", "json"])?;
        let definitions: Value = serde_json::from_str(&definitions)?;
        for definition in definitions["items"].as_array().unwrap() {
            let spec = &definition["spec"];
            if spec["group"] == GATEWAY_GROUP {
                continue;
            }
            let (group, kind) = (spec["group"].as_str().unwrap(), spec["names"]["kind"].as_str().unwrap());
            let version = spec["versions"][0]["name"].as_str().unwrap();
            self.plane.apply(&format!(
                "apiVersion: {group}/{version}\nkind: {kind}\nmetadata: {{name: one, namespace: shop}}\n\
                 spec: {{nonsense: true}}\n"
            ))?;
        }
        Ok(())
    }

    fn pod(&self, namespace: &str, name: &str, spec: &str, ips: [&str; 2]) -> Result<()> {
        self.plane.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        ))?;
        let [v4, v6] = ips;
        let status = format!(
            r#"{{"status":{{"phase":"Running","podIP":"{v4}","podIPs":[{{"ip":"{v4}"}},{{"ip":"{v6}"}}]}}}}"#
        );
        let args =
            ["patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", &status];
        self.plane.kubectl(&args).map(drop)
    }

    /// A configuration with nothing but the token of the account.
    fn account(&self, name: &str) -> Result<PathBuf> {
        let token = self.plane.kubectl(&["create", "token", name, "-n", "weft-system"])?;
        Ok(self.plane.kubeconfig_for_token(token.trim()))
    }

    fn controller(&self, ca: u16) -> Result<Process> {
        let args = [
            "controller".to_owned(),
            format!("--kubeconfig={}", self.account("weft-controller")?.display()),
            format!("--ca-listen=127.0.0.1:{ca}"),
            format!("--admission-addr=127.0.0.1:{}", free_port().unwrap()),
            format!("--metrics-addr=127.0.0.1:{}", free_port().unwrap()),
            format!("--readiness-addr=127.0.0.1:{}", free_port().unwrap()),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Process::spawn(&self.here()?, "controller", &self.lab.weft(), &args)
    }

    /// The agent of the manifest, with the token that the kubelet would mount and the root that it would mount.
    fn agent(&self, ca: u16) -> Result<Process> {
        let node = self.lab.node("a")?;
        let dir = node.dir();
        let bound = ["--audience=weft-ca", "--bound-object-kind=Pod", "--bound-object-name=weft-agent-a"];
        let create = ["create", "token", "weft-agent", "-n", "weft-system"];
        std::fs::write(dir.join("token"), self.plane.kubectl(&[&create[..], &bound].concat())?.trim())?;
        let root = poll_until(LIMIT, || {
            let path = "jsonpath={.data.root-cert\\.pem}";
            self.plane.kubectl(&["get", "configmap", "weft-ca-root-cert", "-n", "weft-system", "-o", path])
        })?;
        std::fs::write(dir.join("root.pem"), root)?;
        let text = |path: &Path| path.display().to_string();
        let args = [
            "POD_NAMESPACE=weft-system".to_owned(),
            text(&self.lab.weft()),
            "agent".into(),
            "--node=a".into(),
            format!("--kubeconfig={}", self.account("weft-agent")?.display()),
            format!("--ca-address=https://127.0.0.1:{ca}"),
            "--ca-server-name=weft-controller.weft-system.svc".into(),
            format!("--ca-token-file={}", text(&dir.join("token"))),
            format!("--ca-root-file={}", text(&dir.join("root.pem"))),
            format!("--state-dir={}", text(&dir.join("state"))),
            format!("--pin-dir={}", text(&dir.join("bpf"))),
            format!("--cgroup={}", text(&node.kubepods())),
            format!("--agent-cgroup={}", text(&node.cgroup().join("agent"))),
            format!("--probe-cgroup={}", text(&node.cgroup().join("system"))),
            format!("--metrics-addr=127.0.0.1:{}", free_port().unwrap()),
            format!("--readiness-addr=127.0.0.1:{}", free_port().unwrap()),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Process::spawn(&self.here()?, "agent", Path::new("env"), &args)
    }

    /// In the lab's cgroup, with the machine's network, where the API server is.
    fn here(&self) -> Result<Place> {
        Ok(Place { netns: "/proc/self/ns/net".into(), ..self.lab.node("a")?.place() })
    }

    /// A process of the pod, in the cgroup that a kubelet would give it.
    fn process(&self) -> Result<Process> {
        let path = "jsonpath={.metadata.uid}";
        let uid = self.plane.kubectl(&["get", "pod", "web", "-n", "shop", "-o", path])?;
        let cgroup = self.lab.node("a")?.kubepods().join(format!("burstable/pod{uid}/c1"));
        std::fs::create_dir_all(&cgroup)?;
        let place = Place { cgroup, ..self.lab.pod("shop/web")?.place().clone() };
        Process::spawn(&place, "main", Path::new("sleep"), &["600"])
    }

    /// Everything that the roles of an account grant.
    fn granted(&self, account: &str) -> Result<BTreeSet<Right>> {
        let mut rights = BTreeSet::new();
        for kind in ["clusterrole", "role"] {
            let role = self.plane.kubectl(&["get", kind, account, "-n", "weft-system", "-o", "json"])?;
            let role: Value = serde_json::from_str(&role)?;
            for rule in role["rules"].as_array().unwrap() {
                rights.extend(rights_of(account, rule));
            }
        }
        Ok(rights)
    }

    fn used(&self, account: &str) -> BTreeSet<Right> {
        let user = format!("system:serviceaccount:weft-system:{account}");
        let log = self.plane.audit_log();
        let ours = log.iter().filter(|entry| entry["user"]["username"] == user.as_str());
        ours.filter_map(|entry| {
            let object = entry.get("objectRef")?;
            let name = match object["subresource"].as_str() {
                Some(sub) => format!("{}/{sub}", object["resource"].as_str()?),
                None => object["resource"].as_str()?.to_owned(),
            };
            let group = object["apiGroup"].as_str().unwrap_or_default();
            let verb = entry["verb"].as_str()?.to_owned();
            Some(Right { account: account.to_owned(), verb, resource: resource(&name, group) })
        })
        .collect()
    }

    fn unused(&self) -> Result<BTreeSet<String>> {
        let mut unused = BTreeSet::new();
        for account in ["weft-agent", "weft-controller"] {
            let mut used = self.used(account);
            // A watch begins with a list: streamed as part of it where the API server can do that, as here.
            let lists = used.iter().filter(|right| right.verb == "watch");
            let lists: Vec<_> =
                lists.map(|right| Right { verb: "list".to_owned(), ..right.clone() }).collect();
            used.extend(lists);
            unused.extend(self.granted(account)?.difference(&used).map(ToString::to_string));
        }
        for (right, _) in UNUSED {
            unused.remove(*right);
        }
        Ok(unused)
    }
}

fn rights_of(account: &str, rule: &Value) -> Vec<Right> {
    let list = |name: &str| -> Vec<String> {
        let values = rule[name].as_array().unwrap().iter();
        values.map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Vec::new();
    for group in list("apiGroups") {
        for name in list("resources") {
            for verb in list("verbs") {
                let resource = resource(&name, &group);
                rights.push(Right { account: account.to_owned(), verb, resource });
            }
        }
    }
    rights
}

#[test]
fn rights_suffice_and_each_is_used() {
    let Some(world) = World::start().unwrap() else { return };
    run(&world).unwrap();
}

fn run(world: &World) -> Result<()> {
    world.install()?;
    world.objects()?;
    let _process = world.process()?;
    let ca = free_port().unwrap();
    let controller = world.controller(ca)?;
    let agent = world.agent(ca).with_context(|| controller.report("was asked for its log"))?;
    let logs = || agent.report("was asked for its log") + &controller.report("was asked for its log");
    poll_until(LIMIT, || {
        let unused = world.unused()?;
        ensure!(unused.is_empty(), "rights that nobody uses: {unused:#?}");
        Ok(())
    })
    .with_context(logs)?;
    poll_until(LIMIT, || {
        let state =
            ["get", "pod", "web", "-n", "shop", "-o", "jsonpath={.metadata.annotations.weft\\.dev/state}"];
        let state = world.plane.kubectl(&state)?;
        ensure!(state == "enrolled", "web is {state}");
        Ok(())
    })
    .with_context(logs)?;
    let log = world.plane.audit_log();
    let denied: Vec<_> = log.iter().filter(|entry| entry["responseStatus"]["code"] == 403).collect();
    assert!(denied.is_empty(), "rights do not suffice: {denied:#?}\n{}", logs());
    Ok(())
}
