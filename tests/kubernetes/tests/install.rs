//! `weft install` and `weft uninstall` on a real API server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::path::PathBuf;
use std::process::Command;

use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions};

struct World {
    plane: ControlPlane,
    weft: PathBuf,
}

impl World {
    /// Exit status and what was printed.
    fn weft(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(&self.weft);
        command.args(args).arg("--kubeconfig").arg(self.plane.kubeconfig());
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        (out.status.code().unwrap(), text.into_owned())
    }

    fn well(&self, args: &[&str]) -> String {
        let (status, text) = self.weft(args);
        assert_eq!(status, 0, "weft {args:?}: {text}");
        text
    }

    fn names(&self, kind: &str) -> String {
        self.plane
            .kubectl(&["get", kind, "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=weft"])
            .unwrap()
    }
}

#[test]
fn installed_changed_and_removed_again() {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default()).unwrap() else { return };
    let here = std::env::current_exe().unwrap();
    let weft = here.parent().and_then(|deps| deps.parent()).unwrap().join("weft");
    assert!(weft.exists(), "{} is missing; build it with `cargo build -p weft`", weft.display());
    let world = World { plane, weft };

    only_looking(&world);
    installing(&world);
    installing_again(&world);
    waiting(&world);
    removing(&world);
}

fn only_looking(world: &World) {
    let manifest = world.well(&["install", "--crds", "-o", "yaml", "--image=registry.example/weft:7"]);
    assert_eq!(manifest.matches("image: registry.example/weft:7").count(), 3);
    assert_eq!(manifest.matches("kind: CustomResourceDefinition").count(), 15);
    let said = world.well(&["install", "--dry-run"]);
    assert!(said.contains("DaemonSet weft-system/weft-agent: would be created"), "{said}");
    assert_eq!(world.names("clusterrole"), "", "nothing was changed");
    assert!(world.well(&["uninstall", "--dry-run"]).contains("DaemonSet weft-system/weft-agent: not there"));
}

fn installing(world: &World) {
    let foreign = include_str!("../../../deploy/crds/sidecars.networking.istio.io.yaml");
    world.plane.apply(&foreign.replace("part-of: weft", "part-of: istio")).unwrap();
    let said = world.well(&["install", "--crds", "--no-wait", "--trust-domain=corp.example"]);
    assert!(said.contains("CustomResourceDefinition sidecars.networking.istio.io: left as it is"), "{said}");
    assert!(said.contains("CustomResourceDefinition gateways.networking.istio.io: created"), "{said}");
    assert!(said.contains("DaemonSet weft-system/weft-agent: created"), "{said}");
    assert_eq!(world.names("daemonset").trim(), "daemonset.apps/weft-agent");
    let mesh = ["get", "configmap", "weft", "-n", "weft-system", "-o", "jsonpath={.data.mesh}"];
    assert!(world.plane.kubectl(&mesh).unwrap().contains("corp.example"));
}

fn installing_again(world: &World) {
    let said = world.well(&["install", "--no-wait"]);
    assert!(said.contains("ConfigMap weft-system/weft: left as it is"), "{said}");
    let changed: Vec<_> =
        said.lines().filter(|line| line.ends_with(": changed") || line.ends_with(": created")).collect();
    assert_eq!(changed, Vec::<&str>::new());
    let said = world.well(&["install", "--dry-run", "--image=registry.example/weft:8"]);
    assert!(said.contains("DaemonSet weft-system/weft-agent: would be changed"), "{said}");
    assert!(said.contains("Service weft-system/weft-controller: unchanged"), "{said}");
}

/// Nothing makes pods here, and that is said.
fn waiting(world: &World) {
    let (status, said) = world.weft(&["install", "--timeout=1"]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("Deployment weft-system/weft-controller: not ready after 1 s"), "{said}");
    assert!(said.contains("there are no pods"), "{said}");
}

fn removing(world: &World) {
    let secret =
        ["create", "secret", "generic", "weft-ca", "-n", "weft-system", "--from-literal=ca-key.pem=x"];
    world.plane.kubectl(&secret).unwrap();
    // An agent that does not end keeps its rights.
    world
        .plane
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: stuck, namespace: weft-system, labels: {app: weft-agent}}\n\
             spec: {serviceAccountName: weft-agent, containers: [{name: agent, image: none}]}\n",
        )
        .unwrap();
    let (status, said) = world.weft(&["uninstall", "--timeout=1"]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("stuck on no node"), "{said}");
    assert!(world.names("clusterrole").contains("weft-agent"), "{said}");
    assert_eq!(world.names("daemonset"), "");
    world
        .plane
        .kubectl(&["delete", "pod", "stuck", "-n", "weft-system", "--force", "--grace-period=0"])
        .unwrap();

    let said = world.well(&["uninstall"]);
    assert!(said.contains("Secret weft-system/weft-ca, Namespace weft-system: kept"), "{said}");
    for kind in
        ["clusterrole", "clusterrolebinding", "role", "deployment", "service", "configmap", "serviceaccount"]
    {
        assert_eq!(world.names(kind), "", "{kind}: {said}");
    }
    world.plane.kubectl(&["get", "secret", "weft-ca", "-n", "weft-system"]).unwrap();
    assert!(world.names("crd").contains("gateways"), "objects of users are not taken away");
    let said = world.well(&["uninstall", "--purge"]);
    assert!(said.contains("Secret weft-system/weft-ca: removed"), "{said}");
    assert!(world.plane.kubectl(&["get", "secret", "weft-ca", "-n", "weft-system"]).is_err());
}
