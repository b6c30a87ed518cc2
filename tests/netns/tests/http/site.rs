//! Two nodes with HTTP applications, and a client that asks them.

use serde_json::Value;
use weft_lab::{LabSpec, PodSpec, Process};
use weft_netns_tests::{Family, Mesh, eventually, value_eventually, yaml};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");
/// The Services' port for HTTP, and the applications'.
pub(crate) const WEB: u16 = 9080;
/// The Services' port for gRPC, and the applications'.
pub(crate) const GRPC: u16 = 9090;
/// The families that everything is tried in.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// A Service on the client's node, and one on the other node; one pod each.
pub(crate) const NEAR_AND_FAR: [&str; 2] = ["near", "far"];

/// Pod, its node, label `app` (which is the Service, and the service account), and what its application says it is.
const APPS: [(&str, &str, &str, &str); 5] = [
    ("near", "a", "near", "near"),
    ("far", "b", "far", "far"),
    ("reviews-v1", "a", "reviews", "v1"),
    ("reviews-v2", "b", "reviews", "v2"),
    ("reviews-v3", "b", "reviews", "v3"),
];
const SERVICES: [&str; 3] = ["near", "far", "reviews"];
/// Subsets of `reviews`.
pub(crate) const SUBSETS: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews, namespace: \
    shop}\nspec:\n  host: reviews\n  subsets:\n  - {name: v1, labels: {version: v1}}\n  - {name: v2, labels: {version: \
    v2}}\n  - {name: v3, labels: {version: v3}}\n";

/// Everything that runs. Pods `client` and `other` are on node a.
pub(crate) struct Site {
    pub(crate) mesh: Mesh,
    _apps: Vec<Process>,
}

impl Site {
    /// Agents and applications run; `None` where that cannot be.
    pub(crate) fn new() -> Option<Self> {
        Self::with_clients(&[])
    }

    /// The same with further clients on node a, by namespace and name.
    pub(crate) fn with_clients(more: &[(&str, &str)]) -> Option<Self> {
        let client = |name: &str| PodSpec::new("a", "shop", name).service_account(name);
        let spec = LabSpec::new().node("a").node("b").pod(client("client")).pod(client("other"));
        let spec = APPS.iter().fold(spec, |spec, (pod, node, app, version)| {
            let pod = PodSpec::new(node, "shop", pod).service_account(app);
            spec.pod(pod.label("app", app).label("version", version))
        });
        let spec = more.iter().fold(spec, |spec, (namespace, name)| {
            spec.pod(PodSpec::new("a", namespace, name).service_account(name))
        });
        let mut mesh = Mesh::prepare(PUPPET, &spec)?;
        for (namespace, _) in more {
            mesh.write(&format!("namespace-{namespace}.yaml"), &yaml::namespace(namespace, true, &[]));
        }
        for (number, name) in (1_u8..).zip(SERVICES) {
            let (v4, v6) = (format!("10.200.1.{number}"), format!("fd00:200::1:{number}"));
            let ports = [("http-web", WEB, WEB), ("grpc", GRPC, GRPC)];
            mesh.lab().config().service(&format!("shop/{name}"), &[&v4, &v6], name, &ports).unwrap();
        }
        let start =
            |(pod, _, _, version): &(&str, _, _, &str)| mesh.pod(pod).app(version, &[WEB, GRPC]).unwrap();
        let apps = APPS.iter().map(start).collect();
        mesh.start_controller(&[]);
        mesh.start_agent("a");
        mesh.start_agent("b");
        Some(Self { mesh, _apps: apps })
    }

    /// `ADDRESS:PORT` of a Service.
    pub(crate) fn address(&self, family: Family, service: &str, port: u16) -> String {
        let number = SERVICES.iter().position(|name| *name == service).unwrap() + 1;
        match family {
            Family::V4 | Family::Mapped => format!("10.200.1.{number}:{port}"),
            Family::V6 => format!("[fd00:200::1:{number}]:{port}"),
        }
    }

    /// Runs `lab-peer http` in a pod.
    pub(crate) fn ask_from(
        &self,
        pod: &str,
        family: Family,
        (service, port): (&str, u16),
        args: &[&str],
    ) -> Answer {
        let address = self.address(family, service, port);
        let host = format!("{service}:{port}");
        let own = ["http", &address, "--host", &host];
        Answer(self.mesh.pod(pod).peer(&[&own, args].concat()).unwrap())
    }

    /// The same from pod `client`, to the port for HTTP, over IPv4.
    pub(crate) fn ask(&self, service: &str, args: &[&str]) -> Answer {
        self.ask_from("client", Family::V4, (service, WEB), args)
    }

    /// Asks until the answer is as wanted: a change of configuration takes its time.
    pub(crate) fn ask_until(
        &self,
        what: &str,
        service: &str,
        args: &[&str],
        mut good: impl FnMut(&Answer) -> bool,
    ) -> Answer {
        value_eventually(what, || {
            let answer = self.ask(service, args);
            let good = good(&answer);
            if !good {
                eprintln!("not yet: {what}: {}", answer.0);
            }
            good.then_some(answer)
        })
    }

    /// A word to the application itself, which the mesh does not see: from inside its own pod.
    pub(crate) fn tell(&self, pod: &str, path: &str) -> Value {
        let address = format!("127.0.0.1:{WEB}");
        let answer = Answer(self.mesh.pod(pod).peer(&["http", &address, "--path", path]).unwrap());
        assert_eq!(answer.status(), 200, "{}", answer.0);
        answer.0["last"]["body"].clone()
    }

    /// How many requests for a path an application has seen.
    pub(crate) fn seen(&self, pod: &str, path: &str) -> u64 {
        self.tell(pod, "/seen")["paths"][path].as_u64().unwrap_or(0)
    }

    /// Makes a change and waits until it is in force on the client's node, before anything is asked.
    pub(crate) fn settled(&self, change: impl FnOnce()) {
        let revision = || self.mesh.metric("a", "weft_config_revision", &[]);
        let before = revision();
        change();
        eventually("the change is in force", || revision() > before);
    }

    /// Writes a VirtualService for a Service of the site; `http` is YAML flow.
    pub(crate) fn routes(&self, service: &str, http: &str) {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {service}, namespace: \
             shop}}\nspec:\n  hosts: [{service}]\n  http: {http}\n"
        );
        self.mesh.write(&format!("routes-{service}.yaml"), &text);
    }

    /// Writes a DestinationRule; `policy` is YAML flow.
    pub(crate) fn traffic_policy(&self, service: &str, policy: &str) {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {service}, namespace: \
             shop}}\nspec:\n  host: {service}\n  trafficPolicy: {policy}\n"
        );
        self.mesh.write(&format!("policy-{service}.yaml"), &text);
    }
}

/// What `lab-peer http` found out.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Value);

impl Answer {
    /// Status of the last answer; 0 when there was none.
    pub(crate) fn status(&self) -> u64 {
        self.0["last"]["status"].as_u64().unwrap_or(0)
    }

    /// Body of the last answer.
    pub(crate) fn body(&self) -> &Value {
        &self.0["last"]["body"]
    }

    /// Body of the last answer, where it is text.
    pub(crate) fn text(&self) -> &str {
        self.body().as_str().unwrap_or_default()
    }

    /// A header of the last answer.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.0["last"]["headers"][name].as_str().unwrap_or_default()
    }

    /// Milliseconds of the last request.
    pub(crate) fn ms(&self) -> f64 {
        self.0["last"]["ms"].as_f64().unwrap_or(f64::NAN)
    }

    /// Answers with a status.
    pub(crate) fn with_status(&self, status: u16) -> u64 {
        self.0["statuses"][status.to_string()].as_u64().unwrap_or(0)
    }

    /// Answers of a version.
    pub(crate) fn of_version(&self, version: &str) -> u64 {
        self.0["versions"][version].as_u64().unwrap_or(0)
    }

    /// Every request was answered, and with 200.
    pub(crate) fn all_good(&self) -> bool {
        self.with_status(200) == self.0["requests"].as_u64().unwrap_or(u64::MAX)
    }
}
