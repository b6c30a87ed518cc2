//! What the Envoys of pods are told: `NAME.yaml` → `NAME.json` (virtual hosts and clusters of a Service), and
//! `sidecars/told.json` (what all have in common, and the servers' side by application).

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::prune::{cluster, manager, without_metadata};
use super::world::Pod;
use super::{Files, Recorder, yaml_files};

/// Ports of every Service.
const PORTS: [(&str, u16); 2] = [("http-web", 9080), ("grpc", 9090)];
/// Services whose application is not `web`.
const OWN_APPLICATION: &[&str] = &["rbac", "tokens", "closed", "callers", "claims"];
const CLIENT: Pod = Pod { name: "client", app: "client", version: "client", ip: "10.1.0.20" };
/// One pod for each application and version.
const SERVERS: [Pod; 8] = [
    Pod { name: "v1", app: "web", version: "v1", ip: "10.1.0.21" },
    Pod { name: "v2", app: "web", version: "v2", ip: "10.1.0.22" },
    Pod { name: "v3", app: "web", version: "v3", ip: "10.1.0.23" },
    Pod { name: "rbac", app: "rbac", version: "rbac", ip: "10.1.0.24" },
    Pod { name: "tokens", app: "tokens", version: "tokens", ip: "10.1.0.25" },
    Pod { name: "closed", app: "closed", version: "closed", ip: "10.1.0.26" },
    Pod { name: "callers", app: "callers", version: "callers", ip: "10.1.0.27" },
    Pod { name: "claims", app: "claims", version: "claims", ip: "10.1.0.28" },
];
/// Nobody is reached whom nobody knows.
const MESH: &str = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\naccessLogFile: ''\n";

pub(crate) fn record(recorder: &Recorder<'_>, files: &mut Files) -> Result<()> {
    recorder.apply(&recorder.fixtures.join("sidecars/namespaces.yaml"))?;
    let fixtures = yaml_files(recorder.fixtures)?;
    let names =
        fixtures.iter().map(|path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    let names: Vec<String> = names.collect();
    for (number, (path, name)) in fixtures.iter().zip(&names).enumerate() {
        recorder.plane.apply(&service(name, number).to_string())?;
        recorder.apply(path)?;
    }
    for pod in SERVERS.iter().chain([&CLIENT]) {
        pod.apply(recorder)?;
    }
    let istiod = recorder.istiod(MESH)?;
    let of = |pod: &Pod| {
        recorder.ask(&istiod, "sidecar", &words(pod).iter().map(String::as_str).collect::<Vec<_>>())
    };
    let client = of(&CLIENT)?;
    for (path, name) in fixtures.iter().zip(&names) {
        files.put(&path.with_extension("json"), of_service(&client, name)?)?;
    }
    let mut inbound = Map::new();
    for pod in &SERVERS {
        if !inbound.contains_key(pod.app) {
            inbound.insert(pod.app.to_owned(), of_server(&of(pod)?).with_context(|| pod.name.to_owned())?);
        }
    }
    let told = json!({"outbound": of_client(&client)?, "inbound": inbound});
    files.put(&recorder.fixtures.join("sidecars/told.json"), told)
}

fn service(name: &str, number: usize) -> Value {
    let app = if OWN_APPLICATION.contains(&name) { name } else { "web" };
    let ports = PORTS.map(|(name, port)| json!({"name": name, "port": port, "targetPort": port}));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "clusterIP": format!("10.96.2.{}", number + 1),
            "selector": {"app": app},
            "ports": ports,
        },
    })
}

/// What Istio's injector writes into the environment of the proxy.
fn words(pod: &Pod) -> Vec<String> {
    let Pod { name, app, ip, .. } = pod;
    let containers =
        PORTS.map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"}));
    let metadata = json!({
        "SERVICE_ACCOUNT": app,
        "LABELS": pod.labels(),
        "WORKLOAD_NAME": name,
        "NODE_NAME": "node-a",
        "ISTIO_VERSION": "1.31.0",
        "APP_CONTAINERS": "app",
        "POD_PORTS": json!(containers).to_string(),
        "OWNER": format!("kubernetes://apis/apps/v1/namespaces/shop/deployments/{name}"),
    });
    let metadata = metadata.to_string();
    ["--namespace", "shop", "--pod", name, "--ip", ip, "--metadata", &metadata].map(str::to_owned).into()
}

/// Virtual hosts by port, and the clusters to which they lead.
fn of_service(client: &Value, name: &str) -> Result<Value> {
    let host = format!("{name}.shop.svc.cluster.local");
    let mut told = Map::new();
    for (_, port) in PORTS {
        let hosts = routes(client, port)?["virtual_hosts"].as_array().context("routes have hosts")?;
        let mut hosts: Vec<Value> =
            hosts.iter().filter(|it| it["name"] == format!("{host}:{port}")).cloned().collect();
        hosts.iter_mut().for_each(without_metadata);
        told.insert(port.to_string(), hosts.into());
    }
    let clusters = client["clusters"].as_array().context("clusters are a list")?;
    let own = |it: &&Value| {
        it["name"].as_str().is_some_and(|it| it.starts_with("outbound|") && it.ends_with(&format!("|{host}")))
    };
    let clusters: Result<Vec<Value>> = clusters.iter().filter(own).map(cluster).collect();
    told.insert("clusters".to_owned(), clusters?.into());
    Ok(told.into())
}

fn routes(client: &Value, port: u16) -> Result<&Value> {
    let routes = client["routes"].as_array().context("routes are a list")?;
    let name = port.to_string();
    let found = routes.iter().find(|it| it["name"] == name);
    found.with_context(|| format!("there are no routes of port {port}"))
}

/// The connection manager of each port, and its routes without the Services' hosts.
fn of_client(client: &Value) -> Result<Value> {
    let listeners = client["listeners"].as_array().context("listeners are a list")?;
    let mut told = Map::new();
    for (_, port) in PORTS {
        let name = format!("0.0.0.0_{port}");
        let listener = listeners.iter().find(|it| it["name"] == name);
        let listener = listener.with_context(|| format!("there is no listener {name}"))?;
        let mut routes = routes(client, port)?.clone();
        if let Some(Value::Array(hosts)) = routes.get_mut("virtual_hosts") {
            hosts.retain(|host| {
                !host["name"].as_str().is_some_and(|name| name.ends_with(&format!(":{port}")))
            });
        }
        without_metadata(&mut routes);
        told.insert(port.to_string(), json!({"manager": manager(listener, |_| true)?, "routes": routes}));
    }
    Ok(told.into())
}

/// For each port the connection manager of a server for connections with mTLS, and its cluster.
fn of_server(server: &Value) -> Result<Value> {
    let listeners = server["listeners"].as_array().context("listeners are a list")?;
    let listener = listeners.iter().find(|it| it["name"] == "virtualInbound");
    let listener = listener.context("there is no listener for what comes in")?;
    let clusters = server["clusters"].as_array().context("clusters are a list")?;
    let mut told = Map::new();
    for (_, port) in PORTS {
        let own = |when: &Value| when["destination_port"] == port && when["transport_protocol"] == "tls";
        let mut manager = manager(listener, own)?;
        without_metadata(&mut manager);
        let own = clusters.iter().find(|it| it["name"] == format!("inbound|{port}||"));
        let cluster = cluster(own.context("there is no cluster for what comes in")?)?;
        told.insert(port.to_string(), json!({"manager": manager, "cluster": cluster}));
    }
    Ok(told.into())
}
