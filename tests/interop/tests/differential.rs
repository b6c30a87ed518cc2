//! The same requests through the sidecars of Istio (a real Envoy with the configuration that istiod makes of the YAML,
//! recorded by `cargo xtask record`) and through us. What differs must be listed in `differences.txt`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use weft_interop_tests::{
    Application, Authority, Differences, Envoy, EnvoyBinary, Fixture, Sidecars, compare,
};
use weft_lab::{LabSpec, Pod, PodSpec, Process, jwt};
use weft_netns_tests::{Mesh, privileged, yaml};

const PUPPET: &str = env!("CARGO_BIN_EXE_interop-puppet");
/// Ports of every Service; the second speaks HTTP/2.
const WEB: u16 = 9080;
const GRPC: u16 = 9090;
const CASES: &str = include_str!("../fixtures/cases.txt");
const DIFFERENCES: &str = include_str!("../differences.txt");
/// Fixtures, which are Services too, and the applications behind each.
const SERVICES: [(&str, &str); 12] = [
    ("routing", "web"),
    ("rewrite", "web"),
    ("redirect", "web"),
    ("headers", "web"),
    ("failing", "web"),
    ("cors", "web"),
    ("rbac", "rbac"),
    ("tokens", "tokens"),
    ("grpc", "web"),
    ("closed", CLOSED),
    ("callers", "callers"),
    ("claims", "claims"),
];
/// Every application with its node; both paths of ours, on one node and between two, have routes, tokens and policies.
const APPLICATIONS: [(&str, Application); 8] = [
    ("a", Application { account: "web", version: "v1", port: 7001 }),
    ("b", Application { account: "web", version: "v2", port: 7002 }),
    ("b", Application { account: "web", version: "v3", port: 7003 }),
    ("b", Application { account: "rbac", version: "rbac", port: 7004 }),
    ("a", Application { account: "tokens", version: "tokens", port: 7005 }),
    ("b", Application { account: CLOSED, version: CLOSED, port: 7006 }),
    ("a", Application { account: "callers", version: "callers", port: 7007 }),
    ("b", Application { account: "claims", version: "claims", port: 7008 }),
];

/// Its pod runs nothing.
const CLOSED: &str = "closed";

/// A line of `cases.txt`.
struct Case {
    service: &'static str,
    name: String,
    status: u64,
    args: Vec<String>,
}

impl Case {
    fn read(line: &'static str) -> Self {
        let (words, args) = line.split_once('|').unwrap_or((line, ""));
        let words: Vec<&str> = words.splitn(4, ' ').collect();
        let (service, status) = (words[0], words[2].parse().unwrap());
        let own = ["--path", words[3], "--timeout-ms", "6000"].into_iter();
        let args = own.chain(args.split('|').filter(|arg| !arg.is_empty())).map(with_tokens);
        Self { service, name: format!("{service}/{}", words[1]), status, args: args.collect() }
    }

    fn port(&self) -> u16 {
        if self.args.iter().any(|arg| arg == "--grpc") { GRPC } else { WEB }
    }

    /// Asks a Service at an address.
    fn ask(&self, client: &Pod, ip: &str) -> Value {
        let port = self.port();
        let (address, host) = (format!("{ip}:{port}"), format!("{}:{port}", self.service));
        let mut args = vec!["http", &address];
        if !self.args.iter().any(|arg| arg == "--host") {
            args.extend(["--host", &host]);
        }
        if port == GRPC {
            args.extend(["--protocol", "h2"]);
        }
        args.extend(self.args.iter().map(String::as_str));
        client.peer(&args).unwrap()
    }
}

fn with_tokens(arg: &str) -> String {
    let tokens = [
        ("{alice}", jwt::ALICE),
        ("{bob}", jwt::BOB),
        ("{forged}", jwt::FORGED),
        ("{expired}", jwt::EXPIRED),
    ];
    tokens.iter().fold(arg.to_owned(), |arg, (name, token)| arg.replace(name, token))
}

/// Everything that runs.
struct Site {
    mesh: Mesh,
    _envoy: Envoy,
    _apps: Vec<Process>,
}

impl Site {
    fn new() -> Option<Self> {
        let binary = if privileged() { EnvoyBinary::get()? } else { return None };
        let pods = APPLICATIONS.iter().map(|(node, app)| {
            let pod = PodSpec::new(node, "shop", app.version).service_account(app.account);
            pod.label("app", app.account).label("version", app.version)
        });
        let client = PodSpec::new("a", "shop", "client").service_account("client");
        let spec = LabSpec::new().node("a").node("b").pod(client);
        let mut mesh = Mesh::prepare(PUPPET, &pods.fold(spec, LabSpec::pod))?;
        let fixtures = configure(&mesh);
        let apps = APPLICATIONS.iter().filter(|(_, app)| app.account != CLOSED).flat_map(|(_, app)| {
            let behind_us = mesh.pod(app.version).app(app.version, &[WEB, GRPC]).unwrap();
            [behind_us, mesh.lab().outside().app(app.version, &[app.port]).unwrap()]
        });
        let apps = apps.collect();
        mesh.start_controller(&[]);
        let authority = Authority::of(mesh.lab());
        let applications = APPLICATIONS.map(|(_, app)| app);
        let sidecars = Sidecars::new(&authority, &directory(), &fixtures, &applications, &[WEB, GRPC]);
        let (lab, place) = (mesh.lab(), mesh.lab().outside().place());
        let envoy = Envoy::start(&binary, lab, place, "sidecars", &sidecars.config());
        mesh.start_agent("a");
        mesh.start_agent("b");
        Some(Self { mesh, _envoy: envoy, _apps: apps })
    }

    /// The answers of Envoy and of us.
    fn ask(&self, case: &Case) -> (Value, Value) {
        let number = SERVICES.iter().position(|(name, _)| *name == case.service).unwrap();
        let envoy = case.ask(self.mesh.lab().outside(), "127.0.0.1");
        (envoy, case.ask(self.mesh.pod("client"), &vip(number)))
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn vip(number: usize) -> String {
    format!("10.200.2.{}", number + 1)
}

/// Writes Services and rules before anything of ours runs, so that all of it is in force from the beginning.
fn configure(mesh: &Mesh) -> Vec<Fixture> {
    let strict = yaml::LOG_EVERYTHING.to_owned() + "    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    mesh.write("mesh.yaml", &strict);
    let fixtures = SERVICES.iter().enumerate().map(|(number, (name, app))| {
        let ports = [("http-web", WEB, WEB), ("grpc", GRPC, GRPC)];
        mesh.lab().config().service(&format!("shop/{name}"), &[&vip(number)], app, &ports).unwrap();
        let fixture = Fixture::read(&directory(), name);
        mesh.write(&format!("{name}.yaml"), &fixture.yaml);
        fixture
    });
    fixtures.collect()
}

#[test]
fn what_envoy_does_we_do() {
    let Some(site) = Site::new() else { return };
    let lines = CASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut found = Vec::new();
    let mut unexpected = String::new();
    for case in lines.map(Case::read) {
        let (envoy, own) = site.ask(&case);
        if envoy["last"]["status"] != case.status {
            unexpected += &format!("{}: expected {} of Envoy, but: {envoy}\n", case.name, case.status);
        }
        found.extend(compare(&case.name, &envoy, &own));
    }
    let wrong = Differences::read(DIFFERENCES).judge(&found);
    assert!(wrong.is_empty() && unexpected.is_empty(), "{unexpected}\n{wrong}");
}
