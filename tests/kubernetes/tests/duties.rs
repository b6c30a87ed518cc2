//! What several controllers do for users' objects: one leads and writes, all validate.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions, free_port};
use weft_lab::{Process, Scope, poll_until};

/// Kinds appear within ten seconds, a Lease is taken over within six.
const LIMIT: Duration = Duration::from_secs(120);

const NAMESPACES: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: weft-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: duties}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: duties}]
";

/// A world of one API server and three controllers.
struct World {
    /// Dropped first: they end while there is an API server.
    controllers: Vec<Controller>,
    plane: ControlPlane,
    scope: Scope,
}

struct Controller {
    user: String,
    admission: u16,
    process: Process,
}

impl World {
    fn start() -> Result<Option<Self>> {
        let options = ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() };
        let Some(plane) = ControlPlane::start(options)? else { return Ok(None) };
        let world = Self { controllers: Vec::new(), plane, scope: Scope::new()? };
        world.plane.apply(NAMESPACES)?;
        Ok(Some(world))
    }

    fn definition(&self, name: &str) -> Result<()> {
        let file = format!("{}/../../deploy/crds/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        self.plane.apply(&text)?;
        poll_until(LIMIT, || {
            self.plane.kubectl(&[
                "wait",
                "--for=condition=Established",
                &format!("crd/{name}"),
                "--timeout=1s",
            ])
        })
        .map(drop)
    }

    fn controller(&mut self, more: &[&str]) -> Result<()> {
        let user = format!("controller-{}", self.controllers.len());
        let kubeconfig = self.plane.kubeconfig_for(&user, &["duties"]);
        let admission = free_port()?;
        let csr = free_port()?;
        let (metrics, readiness) = (free_port()?, free_port()?);
        let program = std::env::current_exe()?
            .parent()
            .and_then(|deps| deps.parent())
            .context("a directory")?
            .join("weft");
        ensure!(program.exists(), "{} is missing; build it with `cargo build -p weft`", program.display());
        let args = [
            "controller".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--lease-duration=6".to_owned(),
            format!("--admission-addr=127.0.0.1:{admission}"),
            format!("--ca-listen=127.0.0.1:{csr}"),
            format!("--metrics-addr=127.0.0.1:{metrics}"),
            format!("--readiness-addr=127.0.0.1:{readiness}"),
            "--server-name=localhost".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let process = Process::spawn(&self.scope.place()?, &user, &program, &args)?;
        self.controllers.push(Controller { user, admission, process });
        Ok(())
    }

    /// Which controller holds the Lease, by its process id.
    fn leader(&self) -> Result<usize> {
        poll_until(LIMIT, || {
            let holder = self.plane.kubectl(&[
                "get",
                "lease",
                "weft-controller",
                "-n",
                "weft-system",
                "-o",
                "jsonpath={.spec.holderIdentity}",
            ])?;
            let pid = holder.split('_').rev().nth(1).unwrap_or_default().to_owned();
            let at = self.controllers.iter().position(|one| one.process.pid().to_string() == pid);
            at.with_context(|| format!("`{holder}` is none of ours"))
        })
        .with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        self.controllers.iter().map(|one| one.process.report("was asked for its log")).collect()
    }

    fn get(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.plane.kubectl(&["get", kind, name, "-n", "shop", "-o", "json"])?)?)
    }

    /// Waits until the object has our condition with this reason for its own generation, and gives its status.
    fn reason(&self, kind: &str, name: &str, reason: &str) -> Result<Value> {
        poll_until(LIMIT, || {
            let object = self.get(kind, name)?;
            let condition = condition(&object["status"], "weft.dev/Accepted");
            ensure!(condition["reason"] == reason, "{}", object["status"]);
            ensure!(condition["observedGeneration"] == object["metadata"]["generation"], "{object}");
            Ok(object["status"].clone())
        })
        .with_context(|| self.logs())
    }

    /// Runs kubectl as a user does; gives success and all that was said.
    fn user(&self, args: &[&str], input: &str) -> Result<(bool, String)> {
        use std::io::Write;

        let mut child = Command::new(self.plane.programs().join("kubectl"))
            .args(args)
            .env("KUBECONFIG", self.plane.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
        let out = child.wait_with_output()?;
        let said = [out.stdout, out.stderr].concat();
        Ok((out.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Every status of an Istio object was written by who held the Lease at that moment. Says who wrote, in order.
    fn writers(&self) -> Vec<String> {
        let mut entries = self.plane.audit_log();
        entries.retain(|entry| matches!(entry["responseStatus"]["code"].as_u64(), Some(200 | 201)));
        entries.sort_by_key(|entry| entry["stageTimestamp"].as_str().unwrap_or_default().to_owned());
        let (mut holder, mut writers) = (String::new(), Vec::new());
        for entry in &entries {
            let user = entry["user"]["username"].as_str().unwrap_or_default();
            let (verb, object) = (entry["verb"].as_str().unwrap_or_default(), &entry["objectRef"]);
            let of_istio = object["apiGroup"].as_str().is_some_and(|group| group.ends_with(".istio.io"));
            if object["resource"] == "leases" && matches!(verb, "create" | "update") {
                user.clone_into(&mut holder);
            } else if of_istio && object["subresource"] == "status" {
                assert_eq!(user, holder, "who does not lead wrote: {entry}");
                writers.push(user.to_owned());
            }
        }
        writers
    }
}

fn condition(status: &Value, kind: &str) -> Value {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}

fn route(name: &str, host: &str, timeout: &str) -> String {
    format!(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{host}]
  http: [{{timeout: {timeout}, route: [{{destination: {{host: {host}}}}}]}}]
"#
    )
}

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80}]}
";

const FILTER: &str = r"
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: lua, namespace: shop}
spec: {configPatches: []}
";

const PLUGIN: &str = r#"
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: plugin, namespace: shop}
spec: {url: "oci://example.com/plugin:1"}
"#;

#[test]
fn duties() -> Result<()> {
    let Some(mut world) = World::start()? else { return Ok(()) };
    world.definition("virtualservices.networking.istio.io")?;
    world.definition("envoyfilters.networking.istio.io")?;
    for _ in 0..3 {
        world.controller(&[])?;
    }
    a_broken_object_is_told_and_a_corrected_one_as_well(&world)?;
    what_is_missing_is_told_until_it_is_there(&world)?;
    what_is_not_applied_says_so_also_of_a_kind_that_appears_later(&world)?;
    what_another_controller_writes_stays(&world)?;
    objects_are_validated_before_they_are_stored(&world)?;
    the_api_server_may_restart(&world)?;
    another_one_takes_over(&mut world)?;
    another_style_removes_the_former(&mut world)?;
    without_a_controller_everything_is_admitted(&mut world)
}

fn a_broken_object_is_told_and_a_corrected_one_as_well(world: &World) -> Result<()> {
    world.plane.apply(SERVICE)?;
    world.plane.apply(&route("cart", "cart", "soon"))?;
    let status = world.reason("virtualservice", "cart", "Invalid")?;
    for kind in ["weft.dev/Accepted", "Reconciled"] {
        let condition = condition(&status, kind);
        assert_eq!(condition["status"], "False", "{status}");
        let text = condition["message"].as_str().unwrap_or_default();
        assert!(text.contains("[IST0106] spec.http[0].timeout: "), "{text}");
    }
    // Whether the Service is known already is another matter.
    let messages = status["validationMessages"].as_array().context("messages")?;
    let told = |one: &Value| one["type"]["code"] == "IST0106" && one["level"] == "ERROR";
    assert!(messages.iter().any(told), "{messages:?}");
    let events = poll_until(LIMIT, || {
        let args = ["get", "events.events.k8s.io", "-n", "shop", "-o", "json"];
        let events: Value = serde_json::from_str(&world.plane.kubectl(&args)?)?;
        let found = events["items"].as_array().and_then(|items| items.first()).cloned();
        found.context("there is no event")
    })?;
    assert_eq!(events["regarding"]["name"], "cart");
    assert_eq!(events["reason"], "Invalid");
    world.plane.apply(&route("cart", "cart", "5s"))?;
    let status = world.reason("virtualservice", "cart", "Accepted")?;
    assert_eq!(condition(&status, "weft.dev/Accepted")["status"], "True");
    assert!(status.get("validationMessages").is_none(), "{status}");
    // It is written down when the answer is on its way already.
    poll_until(LIMIT, || {
        ensure!(!world.writers().is_empty(), "the log of the API server does not know who wrote");
        Ok(())
    })?;
    // A status that says what it should is not written again: two rounds of the writer pass in between.
    let before = world.get("virtualservice", "cart")?;
    for name in ["first", "second"] {
        world.plane.apply(&SERVICE.replace("cart", name))?;
        world.plane.apply(&route(name, name, "5s"))?;
        world.reason("virtualservice", name, "Accepted")?;
    }
    assert_eq!(before, world.get("virtualservice", "cart")?);
    Ok(())
}

fn what_is_missing_is_told_until_it_is_there(world: &World) -> Result<()> {
    world.plane.apply(&route("pay", "pay", "5s"))?;
    let status = world.reason("virtualservice", "pay", "HasFindings")?;
    assert_eq!(condition(&status, "weft.dev/Accepted")["status"], "True", "it is in force all the same");
    assert_eq!(status["validationMessages"][0]["type"]["code"], "IST0101", "{status}");
    world.plane.apply(&SERVICE.replace("cart", "pay"))?;
    world.reason("virtualservice", "pay", "Accepted").map(drop)
}

fn what_is_not_applied_says_so_also_of_a_kind_that_appears_later(world: &World) -> Result<()> {
    world.plane.apply(FILTER)?;
    let status = world.reason("envoyfilter", "lua", "NotApplied")?;
    assert_eq!(condition(&status, "weft.dev/Accepted")["status"], "False");
    world.definition("wasmplugins.extensions.istio.io")?;
    poll_until(LIMIT, || world.plane.apply(PLUGIN))?;
    world.reason("wasmplugin", "plugin", "NotApplied").map(drop)
}

fn what_another_controller_writes_stays(world: &World) -> Result<()> {
    world.plane.apply(&SERVICE.replace("cart", "other"))?;
    let theirs = r#"{"status":{"conditions":[{"type":"Reconciled","status":"True","message":"1/1 proxies up to date"}],
        "validationMessages":[{"type":{"code":"IST0999"},"level":"INFO"}]}}"#;
    world.plane.apply(&route("other", "other", "5s"))?;
    world.reason("virtualservice", "other", "Accepted")?;
    world.plane.kubectl(&[
        "patch",
        "virtualservice",
        "other",
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "--field-manager=pilot-discovery",
        "-p",
        theirs,
    ])?;
    world.plane.apply(&route("other", "other", "soon"))?;
    let status = world.reason("virtualservice", "other", "Invalid")?;
    assert_eq!(condition(&status, "Reconciled")["message"], "1/1 proxies up to date");
    assert_eq!(status["validationMessages"][0]["type"]["code"], "IST0999");
    world.plane.apply(&route("other", "other", "5s"))?;
    let status = world.reason("virtualservice", "other", "Accepted")?;
    assert_eq!(condition(&status, "Reconciled")["message"], "1/1 proxies up to date");
    Ok(())
}

fn webhook(port: u16) -> String {
    format!(
        r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: weft-validation}}
webhooks:
- name: validation.weft.dev
  clientConfig: {{url: "https://localhost:{port}/validate"}}
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  timeoutSeconds: 5
  namespaceSelector:
    matchExpressions:
    - {{key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, weft-system]}}
  rules:
  - apiGroups: [networking.istio.io, security.istio.io, telemetry.istio.io, extensions.istio.io]
    apiVersions: ["*"]
    operations: [CREATE, UPDATE]
    resources: ["*"]
"#
    )
}

fn objects_are_validated_before_they_are_stored(world: &World) -> Result<()> {
    // One that does not lead answers as well.
    let leader = world.leader()?;
    let other = world.controllers.iter().enumerate().find(|(at, _)| *at != leader);
    let (_, other) = other.context("there are three")?;
    world.plane.apply(&webhook(other.admission))?;
    let apply = ["apply", "-f", "-"];
    let (_, said) = poll_until(LIMIT, || {
        let (admitted, said) = world.user(&apply, &route("refused", "cart", "soon"))?;
        if admitted {
            world.plane.kubectl(&["delete", "virtualservice", "refused", "-n", "shop"])?;
        }
        ensure!(!admitted, "it was admitted: {said}");
        Ok((admitted, said))
    })
    .with_context(|| world.logs())?;
    assert!(said.contains("[IST0106] spec.http[0].timeout: "), "{said}");
    let (admitted, said) = world.user(&apply, &FILTER.replace("lua", "warned"))?;
    assert!(admitted && said.contains("Warning: ") && said.contains("not applied"), "{said}");
    let (admitted, said) = world.user(&apply, &route("fine", "cart", "5s"))?;
    assert!(admitted && !said.contains("Warning"), "{said}");
    world.plane.kubectl(&["delete", "virtualservice", "fine", "-n", "shop"])?;
    let excluded = route("cart", "cart", "soon").replace("namespace: shop", "namespace: weft-system");
    let (admitted, said) = world.user(&apply, &excluded)?;
    assert!(admitted, "{said}");
    Ok(())
}

fn the_api_server_may_restart(world: &World) -> Result<()> {
    world.plane.kill_api_server();
    world.plane.start_api_server()?;
    world.plane.apply(&route("cart", "cart", "6s"))?;
    world.reason("virtualservice", "cart", "Accepted").map(drop)
}

fn another_one_takes_over(world: &mut World) -> Result<()> {
    world.plane.kubectl(&["delete", "validatingwebhookconfiguration", "weft-validation"])?;
    let first = world.leader()?;
    let mut killed = world.controllers.remove(first);
    killed.process.kill();
    let known = world.writers().len();
    world.leader()?;
    poll_until(LIMIT, || world.plane.apply(&route("cart", "cart", "soon")))?;
    world.reason("virtualservice", "cart", "Invalid")?;
    let users = poll_until(LIMIT, || {
        let users: Vec<String> = world.writers().split_off(known);
        ensure!(!users.is_empty(), "nobody else wrote");
        Ok(users)
    })?;
    assert!(!users.contains(&killed.user), "{users:?}");
    // Who is asked to stop gives the Lease back.
    let second = world.leader()?;
    let mut stopped = world.controllers.remove(second);
    stopped.process.signal(Signal::TERM)?;
    let ended = stopped.process.wait(LIMIT)?;
    assert!(ended.success(), "{}", stopped.process.report("ended badly"));
    let released = stopped.process.report("");
    assert!(released.contains("leadership given back"), "{released}");
    world.leader()?;
    world.plane.apply(&route("cart", "cart", "7s"))?;
    world.reason("virtualservice", "cart", "Accepted").map(drop)
}

fn another_style_removes_the_former(world: &mut World) -> Result<()> {
    let mut last = world.controllers.pop().context("one is left")?;
    last.process.signal(Signal::TERM)?;
    assert!(last.process.wait(LIMIT)?.success(), "{}", last.process.report("ended badly"));
    let before = world.get("virtualservice", "cart")?;
    assert_eq!(condition(&before["status"], "Reconciled")["status"], "True", "{before}");
    world.controller(&["--status=own"])?;
    poll_until(LIMIT, || {
        let object = world.get("virtualservice", "cart")?;
        let former = condition(&object["status"], "Reconciled");
        ensure!(former.is_null() && object["status"]["validationMessages"].is_null(), "{object}");
        Ok(())
    })
    .with_context(|| world.logs())?;
    world.reason("virtualservice", "cart", "Accepted")?;
    let others = world.get("virtualservice", "other")?;
    assert_eq!(condition(&others["status"], "Reconciled")["message"], "1/1 proxies up to date");
    Ok(())
}

fn without_a_controller_everything_is_admitted(world: &mut World) -> Result<()> {
    let last = world.controllers.pop().context("one is left")?;
    world.plane.apply(&webhook(last.admission))?;
    poll_until(LIMIT, || {
        let (admitted, said) =
            world.user(&["apply", "--dry-run=server", "-f", "-"], &route("cart", "cart", "soon"))?;
        ensure!(!admitted, "it was admitted: {said}");
        Ok(())
    })
    .with_context(|| last.process.report("was asked for its log"))?;
    drop(last);
    let (admitted, said) = world.user(&["apply", "-f", "-"], &route("cart", "cart", "soon"))?;
    assert!(admitted, "{said}");
    Ok(())
}
