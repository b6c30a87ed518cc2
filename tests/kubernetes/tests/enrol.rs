//! A pod of a real API server in a real network namespace: found, enrolled, shown, and left as it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use weft_kubernetes_tests::{Answer, ControlPlane, ControlPlaneOptions, Proxy, free_port};
use weft_lab::{Lab, LabSpec, Place, Pod, PodSpec, Process, poll_until};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/weft.yaml");
const LIMIT: Duration = Duration::from_secs(120);
/// The name that the manifest's permissions are for.
const AGENT: &str = "system:serviceaccount:weft-system:weft-agent";
/// The pod that the agent believes to be.
const AGENT_POD: &str = "weft-agent-a";

struct World {
    plane: ControlPlane,
    lab: Lab,
}

impl World {
    fn start() -> Result<Option<Self>> {
        let options = ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() };
        let Some(plane) = ControlPlane::start(options)? else { return Ok(None) };
        let pod = |name: &str| PodSpec::new("a", "shop", name);
        let lab = Lab::new(&LabSpec::new().node("a").pod(pod("web")).pod(pod("lost")))?;
        plane.apply(&std::fs::read_to_string(MANIFEST)?)?;
        plane.apply(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
             apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: shop}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {kubernetes.io/os: linux}}\n",
        )?;
        let bpffs = lab.node("a")?.dir().join("bpf");
        std::fs::create_dir_all(&bpffs)?;
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs).status()?;
        ensure!(mounted.success(), "bpffs cannot be mounted");
        Ok(Some(Self { plane, lab }))
    }

    /// Makes a pod that runs, as kubelet and scheduler would show it. Gives its uid.
    fn pod(&self, name: &str, spec: &str) -> Result<String> {
        self.plane.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: a, containers: [{{name: main, image: none}}]{spec}}}\n"
        ))?;
        if let Ok(pod) = self.lab.pod(&format!("shop/{name}")) {
            let status = format!(
                r#"{{"status":{{"phase":"Running","podIP":"{v4}","podIPs":[{{"ip":"{v4}"}},{{"ip":"{v6}"}}]}}}}"#,
                v4 = pod.ipv4(),
                v6 = pod.ipv6()
            );
            let args =
                ["patch", "pod", name, "-n", "shop", "--subresource=status", "--type=merge", "-p", &status];
            self.plane.kubectl(&args)?;
        }
        self.plane.kubectl(&["get", "pod", name, "-n", "shop", "-o", "jsonpath={.metadata.uid}"])
    }

    /// A process of a pod, in the cgroup that a kubelet would give it.
    fn process(&self, pod: &Pod, uid: &str) -> Result<Process> {
        let cgroup = self.lab.node("a")?.kubepods().join(format!("burstable/pod{uid}/c1"));
        std::fs::create_dir_all(&cgroup)?;
        let place = Place { cgroup, ..pod.place().clone() };
        Process::spawn(&place, "main", Path::new("sleep"), &["600"])
    }

    fn agent(&self) -> Result<Process> {
        self.agent_with(
            &self.plane.kubeconfig_for(AGENT, &["system:serviceaccounts", "system:authenticated"]),
        )
    }

    fn agent_with(&self, kubeconfig: &Path) -> Result<Process> {
        let node = self.lab.node("a")?;
        let text = |path: PathBuf| path.display().to_string();
        let args = [
            "POD_NAMESPACE=weft-system".to_owned(),
            format!("POD_NAME={AGENT_POD}"),
            text(self.lab.weft()),
            "agent".into(),
            "--node=a".into(),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--embedded-ca".into(),
            format!("--state-dir={}", text(node.dir().join("state"))),
            format!("--pin-dir={}", text(self.pin_dir()?)),
            format!("--cgroup={}", text(node.kubepods())),
            format!("--agent-cgroup={}", text(node.cgroup().join("agent"))),
            format!("--probe-cgroup={}", text(node.cgroup().join("system"))),
            format!("--metrics-addr=127.0.0.1:{}", free_port().unwrap()),
            format!("--readiness-addr=127.0.0.1:{}", free_port().unwrap()),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let here = Place { netns: "/proc/self/ns/net".into(), ..node.place() };
        Process::spawn(&here, "agent", Path::new("env"), &args)
    }

    fn annotations(&self, pod: &str) -> Result<Value> {
        let pod = self.plane.kubectl(&["get", "pod", pod, "-n", "shop", "-o", "json"])?;
        let pod: Value = serde_json::from_str(&pod)?;
        Ok(pod["metadata"]["annotations"].clone())
    }

    fn wait_state(&self, agent: &Process, pod: &str, state: Option<&str>) -> Result<Value> {
        poll_until(LIMIT, || {
            let annotations = self.annotations(pod)?;
            ensure!(annotations["weft.dev/state"].as_str() == state, "{pod} has {annotations}");
            Ok(annotations)
        })
        .with_context(|| agent.report("was asked for its log"))
    }

    fn label(&self, label: &str) -> Result<()> {
        self.plane.kubectl(&["label", "namespace", "shop", label, "--overwrite"]).map(drop)
    }

    fn pin_dir(&self) -> Result<PathBuf> {
        Ok(self.lab.node("a")?.dir().join("bpf/weft"))
    }

    /// Whether anything is pinned. The directory goes with the last pin.
    fn is_pinned(&self) -> Result<bool> {
        Ok(self.pin_dir()?.exists())
    }

    /// Nothing is left on the node.
    fn ensure_left(&self, agent: &mut Process) -> Result<()> {
        agent.signal(Signal::TERM)?;
        ensure!(agent.wait(LIMIT)?.success(), agent.report("ended"));
        ensure!(!self.is_pinned()?, agent.report("left pins"));
        ensure!(!self.lab.node("a")?.dir().join("state/places").exists(), agent.report("left files"));
        for pod in ["web", "host", "lost"] {
            let state = &self.annotations(pod)?["weft.dev/state"];
            ensure!(state.is_null(), "{pod} has {state}: {}", agent.report("ended"));
        }
        let rules = self.lab.pod("shop/web")?.exec("ip", &["rule"])?;
        ensure!(rules.lines().count() == 3, "something of ours is left: {rules}");
        Ok(())
    }

    /// Everything stays in force.
    fn ensure_stayed(&self, agent: &mut Process) -> Result<()> {
        agent.signal(Signal::TERM)?;
        ensure!(agent.wait(LIMIT)?.success(), agent.report("ended"));
        ensure!(self.is_pinned()?, agent.report("left nothing"));
        ensure!(self.annotations("web")?["weft.dev/state"] == "enrolled", agent.report("ended"));
        Ok(())
    }

    /// Waits until an agent has looked at its DaemonSet more often than this, and web is in the mesh.
    fn takes_over(&self, agent: &Process, looked: usize) -> Result<()> {
        poll_until(LIMIT, || {
            let said = agent.stdout() + &agent.stderr();
            ensure!(said.contains("is in the mesh"), "nothing was taken over");
            ensure!(self.looks() > looked, "the agent has not looked at its DaemonSet");
            Ok(())
        })
        .with_context(|| agent.report("was asked for its log"))
    }
}

#[test]
fn pods_get_in_by_a_label_and_out_with_the_daemonset() {
    let Some(world) = World::start().unwrap() else { return };
    run(&world).unwrap();
}

fn run(world: &World) -> Result<()> {
    let web = world.lab.pod("shop/web")?.clone();
    let uid = world.pod("web", "")?;
    let _process = world.process(&web, &uid)?;
    world.pod("lost", "")?;
    world.pod("host", ", hostNetwork: true")?;
    let mut agent = world.agent()?;

    let labelled = Instant::now();
    world.label("weft.dev/mesh=enabled")?;
    let annotations = world.wait_state(&agent, "web", Some("enrolled"))?;
    println!("shown as enrolled {} ms after the label", labelled.elapsed().as_millis());
    assert_eq!(annotations["ambient.istio.io/redirection"], "enabled");
    let annotations = world.wait_state(&agent, "host", Some("excluded"))?;
    assert!(annotations["weft.dev/state-reason"].as_str().unwrap().contains("hostNetwork"));
    let annotations = world.wait_state(&agent, "lost", Some("failed"))?;
    assert!(annotations["weft.dev/state-reason"].as_str().unwrap().contains("no process"));
    let event = poll_until(LIMIT, || {
        let events = world.plane.kubectl(&["get", "events", "-n", "shop", "-o", "json"])?;
        let events: Value = serde_json::from_str(&events)?;
        let ours =
            |event: &&Value| event["reason"] == "NotEnrolled" && event["involvedObject"]["name"] == "lost";
        let found = events["items"].as_array().unwrap().iter().find(ours).cloned();
        found.with_context(|| agent.report("wrote no event"))
    })?;
    assert_eq!(event["type"], "Warning");

    // What has ended is in the mesh no more.
    let ends = r#"{"status":{"phase":"Succeeded"}}"#;
    let args = ["patch", "pod", "lost", "-n", "shop", "--subresource=status", "--type=merge", "-p", ends];
    world.plane.kubectl(&args)?;
    world.wait_state(&agent, "lost", None)?;

    // Break-glass for a namespace, and for the node.
    world.label("weft.dev/mesh=bypass")?;
    world.wait_state(&agent, "web", Some("excluded"))?;
    world.label("weft.dev/mesh=enabled")?;
    world.wait_state(&agent, "web", Some("enrolled"))?;
    world.plane.kubectl(&["label", "node", "a", "weft.dev/mesh=bypass"])?;
    world.wait_state(&agent, "web", Some("excluded"))?;
    world.plane.kubectl(&["label", "node", "a", "weft.dev/mesh-"])?;
    world.wait_state(&agent, "web", Some("enrolled"))?;
    world.label("weft.dev/mesh-")?;
    for pod in ["web", "host", "lost"] {
        world.wait_state(&agent, pod, None)?;
    }
    world.label("weft.dev/mesh=enabled")?;
    world.wait_state(&agent, "web", Some("enrolled"))?;

    // A rollout leaves everything in force.
    world.takes_over(&agent, 0)?;
    world.ensure_stayed(&mut agent)?;

    not_selected_any_more(world)?;
    removed_before_it_began(world)?;

    // Without a DaemonSet the node is left as it was.
    let looked = world.looks();
    let mut agent = world.agent()?;
    world.takes_over(&agent, looked)?;
    world.delete_daemonset()?;
    world.ensure_left(&mut agent)?;

    let denied: Vec<_> = world.plane.audit_log().into_iter().filter(is_denied).collect();
    assert!(denied.is_empty(), "the manifest's permissions do not suffice: {denied:?}");
    Ok(())
}

/// A DaemonSet that takes its pod from this node takes the mesh from it as well.
fn not_selected_any_more(world: &World) -> Result<()> {
    let select = |selector: &str| {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        let args = ["patch", "daemonset", "weft-agent", "-n", "weft-system", "--type=merge", "-p", &patch];
        world.plane.kubectl(&args).map(drop)
    };
    world.plane.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: default, namespace: weft-system}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: {AGENT_POD}, namespace: weft-system}}\n\
         spec: {{nodeName: a, containers: [{{name: agent, image: none}}]}}\n"
    ))?;
    select(r#"{"role":"mesh"}"#)?;
    // The pod stays: it is only restarted.
    let looked = world.looks();
    let mut agent = world.agent()?;
    world.takes_over(&agent, looked)?;
    world.ensure_stayed(&mut agent)?;

    // The pod goes, and has a successor.
    let looked = world.looks();
    world.plane.kubectl(&["delete", "pod", AGENT_POD, "-n", "weft-system", "--wait=false"])?;
    world.plane.kubectl(&["label", "node", "a", "role=mesh"])?;
    let mut agent = world.agent()?;
    world.takes_over(&agent, looked)?;
    world.ensure_stayed(&mut agent)?;

    // It goes for good.
    let looked = world.looks();
    world.plane.kubectl(&["label", "node", "a", "role-"])?;
    let mut agent = world.agent()?;
    world.takes_over(&agent, looked)?;
    world.ensure_left(&mut agent)?;
    select(r#"{"role":null}"#)
}

/// An agent that never gets a configuration undoes what the one before it did.
fn removed_before_it_began(world: &World) -> Result<()> {
    let looked = world.looks();
    let mut agent = world.agent()?;
    world.takes_over(&agent, looked)?;
    world.wait_state(&agent, "web", Some("enrolled"))?;
    world.ensure_stayed(&mut agent)?;

    let proxy = Proxy::start(&world.plane)?;
    let looks = Arc::new(AtomicUsize::new(0));
    let seen = looks.clone();
    proxy.answer(move |path| {
        if path.contains("/daemonsets/weft-agent") {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        if path.starts_with("/api/v1/services") { Answer::Status(500) } else { Answer::Real }
    });
    let looked_at = |agent: &Process, times: usize| {
        poll_until(LIMIT, || {
            ensure!(looks.load(Ordering::SeqCst) >= times, "the agent has not looked at its DaemonSet");
            Ok(())
        })
        .with_context(|| agent.report("was asked for its log"))
    };
    let mut agent = world.agent_with(&proxy.kubeconfig())?;
    looked_at(&agent, 1)?;
    world.ensure_stayed(&mut agent)?;
    let mut agent = world.agent_with(&proxy.kubeconfig())?;
    looked_at(&agent, 3)?;
    world.delete_daemonset()?;
    world.ensure_left(&mut agent)?;
    ensure!(!agent.stderr().contains("the agent runs"), agent.report("had a configuration"));
    world.plane.apply(&std::fs::read_to_string(MANIFEST)?)
}

impl World {
    /// How often an agent has looked at its DaemonSet.
    fn looks(&self) -> usize {
        let log = self.plane.audit_log();
        let looks = log.iter().filter(|entry| {
            entry["user"]["username"] == AGENT && entry["objectRef"]["resource"] == "daemonsets"
        });
        looks.count()
    }

    fn delete_daemonset(&self) -> Result<()> {
        let args = ["delete", "daemonset", "weft-agent", "-n", "weft-system", "--wait=false"];
        self.plane.kubectl(&args).map(drop)
    }
}

fn is_denied(entry: &Value) -> bool {
    entry["user"]["username"] == AGENT && entry["responseStatus"]["code"] == 403
}
