//! The commands of the README's section "On a cluster", run as they stand there.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::ensure;
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions, free_port};
use weft_lab::{Process, Scope, poll_until};

const README: &str = include_str!("../../../README.md");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const LIMIT: Duration = Duration::from_secs(120);

/// What needs nodes; `cargo xtask test-cluster` has them. Here only the words are checked.
const NEEDS_NODES: [&str; 4] =
    ["kubectl -n weft-system rollout", "weft check", "weft status", "weft explain"];

/// The indented blocks of the section, without their comments.
fn blocks() -> Vec<Vec<&'static str>> {
    let (_, section) = README.split_once("\n## On a cluster\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut blocks = Vec::new();
    let mut open = false;
    for line in section.lines() {
        let Some(command) = line.strip_prefix("    ") else {
            open = false;
            continue;
        };
        if !open {
            blocks.push(Vec::new());
        }
        open = true;
        let command = command.split("  #").next().unwrap().trim_end();
        blocks.last_mut().unwrap().push(command);
    }
    blocks
}

struct World {
    plane: ControlPlane,
    folder: PathBuf,
    weft: PathBuf,
    scope: Scope,
}

impl World {
    fn start() -> Option<Self> {
        let plane = ControlPlane::start(ControlPlaneOptions::default()).unwrap()?;
        let here = std::env::current_exe().unwrap();
        let weft = here.parent().and_then(|deps| deps.parent()).unwrap().join("weft");
        assert!(weft.exists(), "{} is missing; build it with `cargo build -p weft`", weft.display());
        let folder = plane.dir().join("readme");
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(Path::new(ROOT).join("deploy"), folder.join("deploy")).unwrap();
        plane.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").unwrap();
        Some(Self { plane, folder, weft, scope: Scope::new().unwrap() })
    }

    fn bash(&self, command: &str) -> Output {
        let path = std::env::var("PATH").unwrap();
        let own = format!("{}:{}", self.plane.programs().display(), self.weft.parent().unwrap().display());
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", command]).current_dir(&self.folder);
        bash.env("PATH", format!("{own}:{path}")).env("KUBECONFIG", self.plane.kubeconfig());
        bash.env("HOME", &self.folder).output().unwrap()
    }

    fn run(&self, commands: &[&str]) {
        for command in commands {
            let needs_nodes = NEEDS_NODES.iter().any(|start| command.starts_with(start));
            let out = if needs_nodes { self.bash(&format!("{command} --help")) } else { self.bash(command) };
            let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "`{command}`: {said}");
        }
    }

    fn controller(&self) -> Process {
        let port = || free_port().unwrap();
        let args = [
            "controller".to_owned(),
            format!("--kubeconfig={}", self.plane.kubeconfig().display()),
            format!("--ca-listen=127.0.0.1:{}", port()),
            format!("--admission-addr=127.0.0.1:{}", port()),
            format!("--metrics-addr=127.0.0.1:{}", port()),
            format!("--readiness-addr=127.0.0.1:{}", port()),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Process::spawn(&self.scope.place().unwrap(), "controller", &self.weft, &args).unwrap()
    }

    /// Waits until the agents would get exactly these roots.
    fn roots(&self, controller: &Process, expected: &str) {
        let expected = std::fs::read_to_string(self.folder.join(expected)).unwrap();
        let published = || {
            let path = "jsonpath={.data.root-cert\\.pem}";
            self.plane.kubectl(&["get", "configmap", "weft-ca-root-cert", "-n", "weft-system", "-o", path])
        };
        let found = poll_until(LIMIT, || {
            let roots = published()?;
            ensure!(roots.trim() == expected.trim(), "the roots are {roots}");
            Ok(())
        });
        found.map_err(|error| panic!("{error:#}\n{}", controller.report("was asked for its log"))).unwrap();
    }
}

#[test]
fn every_command_does_what_the_readme_says() {
    let blocks = blocks();
    let [install, namespace, uninstall, by_hand, both_roots, new_key, new_root] = blocks.as_slice() else {
        panic!("the section has other blocks: {blocks:#?}")
    };
    let Some(world) = World::start() else { return };
    world.run(install);
    world.run(namespace);
    world.run(&[
        "kubectl apply --server-side --validate=strict -f deploy/examples",
        // Without pods there are findings about missing ones, and no more.
        "(weft analyze --config deploy/examples || true) | grep --quiet ', 0 rejected,'",
    ]);
    rotate(&world, [both_roots, new_key, new_root]);

    // Nobody here collects garbage or finishes namespaces, for which these two would wait.
    let patient = [("--cascade=foreground", "--cascade=background"), ("delete -f", "delete --wait=false -f")];
    let without_waiting =
        |line: &&str| patient.iter().fold((*line).to_owned(), |line, (from, to)| line.replace(from, to));
    let by_hand: Vec<String> = by_hand.iter().map(without_waiting).collect();
    world.run(&by_hand.iter().map(String::as_str).collect::<Vec<_>>());
    world.run(uninstall);
}

fn rotate(world: &World, [both_roots, new_key, new_root]: [&Vec<&str>; 3]) {
    let controller = world.controller();
    poll_until(LIMIT, || world.plane.kubectl(&["get", "secret", "weft-ca", "-n", "weft-system"]))
        .map_err(|error| panic!("{error:#}\n{}", controller.report("was asked for its log")))
        .unwrap();
    world.run(both_roots);
    world.roots(&controller, "both.pem");
    world.run(new_key);
    world.run(new_root);
    world.roots(&controller, "new-cert.pem");
}
