//! Very many objects: one of each kind is made through the API, and its value in etcd copied with other names of
//! the same length, which is a hundred times as fast.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_kubernetes_tests::ControlPlane;
use weft_kubernetes_tests::etcd_store::{self, Write};

pub(crate) const PODS_PER_SERVICE: usize = 10;
pub(crate) const NAMESPACES: usize = 100;
pub(crate) const NODES: usize = 5000;
/// Images that a kubelet lists in its node's status, by default.
const IMAGES: usize = 50;
/// Copies of one transaction.
const AT_ONCE: usize = 128;

/// What an object is called, everything in a fixed number of characters.
pub(crate) struct Names {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) service: String,
    pub(crate) slice: String,
    pub(crate) node: String,
    pub(crate) uid: String,
}

pub(crate) fn namespace(number: usize) -> String {
    format!("ns-{number:03}")
}

pub(crate) fn node(number: usize) -> String {
    format!("node-{:04}", number % NODES)
}

impl Names {
    /// The names of pod `number` and its Service.
    pub(crate) fn of(number: usize) -> Self {
        let service = number / PODS_PER_SERVICE;
        Self {
            namespace: namespace(service % NAMESPACES),
            pod: format!("svc-{service:05}-5d4f8c7b9d-{number:06}"),
            service: format!("svc-{service:05}"),
            slice: format!("svc-{service:05}-slice"),
            node: node(number),
            uid: format!("11111111-0000-4000-8000-{number:012}"),
        }
    }

    fn pod_path(&self) -> String {
        format!("/registry/pods/{}/{}", self.namespace, self.pod)
    }

    fn service_path(&self) -> String {
        format!("/registry/services/specs/{}/{}", self.namespace, self.service)
    }

    fn slice_path(&self) -> String {
        format!("/registry/endpointslices/{}/{}", self.namespace, self.slice)
    }
}

fn node_path(number: usize) -> String {
    format!("/registry/minions/{}", node(number))
}

/// 2.25 million addresses of the same length.
pub(crate) fn address(number: usize) -> String {
    format!("10.{}.{}.{}", 100 + number / 22_500, 100 + number / 150 % 150, 100 + number % 150)
}

fn cluster_address(number: usize) -> String {
    format!("10.96.{}.{}", 100 + number / 150, 100 + number % 150)
}

/// How far the pod of a Service has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has a node.
    Bound,
    /// It has an address.
    Running,
    /// It takes connections.
    Ready,
}

/// The objects with number 0.
fn templates() -> String {
    let Names { namespace, pod, service, node, .. } = Names::of(0);
    format!(
        r#"
apiVersion: v1
kind: Node
metadata:
  name: {node}
  labels: {{kubernetes.io/hostname: {node}, kubernetes.io/os: linux, topology.kubernetes.io/zone: zone-a, node.kubernetes.io/instance-type: large}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {service}, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {pod}
  namespace: {namespace}
  labels: {{app: {service}, version: v1, pod-template-hash: 5d4f8c7b9d}}
  annotations: {{prometheus.io/scrape: "true", prometheus.io/port: "9090"}}
  ownerReferences:
  - {{apiVersion: apps/v1, kind: ReplicaSet, name: {service}-5d4f8c7b9d, uid: 22222222-0000-4000-8000-000000000000, controller: true}}
spec:
  nodeName: {node}
  serviceAccountName: {service}
  containers:
  - name: main
    image: registry.example/shop/{service}:1.2.3
    ports: [{{name: http, containerPort: 8080}}]
    env: [{{name: LOG_LEVEL, value: info}}, {{name: REGION, value: eu-central-1}}]
    resources: {{requests: {{cpu: 100m, memory: 128Mi}}, limits: {{memory: 256Mi}}}}
    readinessProbe: {{httpGet: {{path: /ready, port: 8080}}}}
  tolerations:
  - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 300}}
  - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}}
---
apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: {namespace}}}
spec:
  clusterIP: {}
  selector: {{app: {service}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"#,
        cluster_address(0)
    )
}

/// The EndpointSlice with number 0; of a pod that ends the first endpoint is not ready.
fn slice_template(ends: bool) -> String {
    let Names { namespace, service, slice, .. } = Names::of(0);
    let endpoints: String = (0..PODS_PER_SERVICE)
        .map(|number| {
            let Names { pod, node, .. } = Names::of(number);
            let ready = !(ends && number == 0);
            format!(
                "- {{addresses: [{}], conditions: {{ready: {ready}, serving: {ready}, terminating: false}}, nodeName: {node}, zone: zone-a, targetRef: {{kind: Pod, namespace: {namespace}, name: {pod}}}}}\n",
                address(number)
            )
        })
        .collect();
    format!(
        r#"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {slice}
  namespace: {namespace}
  labels: {{kubernetes.io/service-name: {service}, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
{endpoints}"#
    )
}

/// The status of a pod with these addresses.
pub(crate) fn pod_status(addresses: &[String], ready: bool) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    let (started, is_ready) = ("2026-01-01T00:00:00Z", if ready { "True" } else { "False" });
    let condition =
        |kind: &str, status: &str| json!({ "type": kind, "status": status, "lastTransitionTime": started });
    json!({ "status": {
        "phase": "Running", "hostIP": "10.0.0.1", "podIP": addresses.first(), "podIPs": ips, "startTime": started,
        "conditions": [condition("PodReadyToStartContainers", "True"), condition("Initialized", "True"), condition("Ready", is_ready),
                       condition("ContainersReady", is_ready), condition("PodScheduled", "True")],
        "containerStatuses": [{ "name": "main", "ready": ready, "started": true, "restartCount": 0, "image": "registry.example/shop/main:1.2.3",
            "imageID": format!("registry.example/shop/main@sha256:{:064}", 1), "containerID": format!("containerd://{:064}", 2),
            "state": { "running": { "startedAt": started } }, "lastState": {} }],
    } })
}

fn node_status() -> Value {
    let image = |number: usize| {
        json!({ "names": [format!("registry.example/shop/image-{number:02}@sha256:{number:064}"), format!("registry.example/shop/image-{number:02}:1.2.3")],
                "sizeBytes": 50_000_000 })
    };
    let condition = |kind: &str, status: &str| {
        json!({ "type": kind, "status": status, "reason": "KubeletReports", "message": "kubelet reports this",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    json!({ "status": {
        "capacity": { "cpu": "16", "memory": "64Gi", "pods": "110" },
        "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }, { "type": "Hostname", "address": node(0) }],
        "conditions": [condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False"), condition("Ready", "True")],
        "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
    } })
}

/// The values in etcd of the objects with number 0.
pub(crate) struct Templates {
    etcd: SocketAddr,
    bound: Vec<u8>,
    running: Vec<u8>,
    ready: Vec<u8>,
    service: Vec<u8>,
    slice: Vec<u8>,
    slice_of_ending: Vec<u8>,
    node: Vec<u8>,
    uid: String,
}

impl Templates {
    /// Makes the objects with number 0 through the API. Their namespaces exist.
    pub(crate) fn make(plane: &ControlPlane) -> Result<Self> {
        plane.apply(&templates())?;
        let names = Names::of(0);
        let etcd = plane.etcd_address();
        let read = |path: &str| etcd_store::read(etcd, path);
        let status = |kind: &str, name: &str, status: &Value| {
            let namespace = format!("--namespace={}", names.namespace);
            let patch = status.to_string();
            let args =
                ["patch", kind, name, &namespace, "--subresource=status", "--type=merge", "-p", &patch];
            plane.kubectl(&args).map(drop)
        };
        let pod = names.pod_path();
        let bound = read(&pod)?;
        status("pod", &names.pod, &pod_status(&[address(0)], false))?;
        let running = read(&pod)?;
        status("pod", &names.pod, &pod_status(&[address(0)], true))?;
        status("node", &names.node, &node_status())?;
        plane.apply(&slice_template(true))?;
        let slice_of_ending = read(&names.slice_path())?;
        plane.apply(&slice_template(false))?;
        Ok(Self {
            etcd,
            uid: uid_in(&bound)?,
            bound,
            running,
            ready: read(&pod)?,
            service: read(&names.service_path())?,
            slice: read(&names.slice_path())?,
            slice_of_ending,
            node: read(&node_path(0))?,
        })
    }

    /// Copies the templates.
    pub(crate) fn multiply(&self, pods: usize, services: usize) -> Result<()> {
        self.copy(NODES, |number| self.node(number))?;
        self.copy(pods, |number| self.pod(number, Stage::Ready))?;
        self.copy(services, |number| self.service(number))?;
        self.copy(services, |number| self.slice(number, false))
    }

    fn copy(&self, count: usize, make: impl Fn(usize) -> Result<Write>) -> Result<()> {
        let numbers: Vec<usize> = (1..count).collect();
        for some in numbers.chunks(AT_ONCE) {
            let writes = some.iter().map(|number| make(*number)).collect::<Result<Vec<_>>>()?;
            self.write(&writes)?;
        }
        Ok(())
    }

    /// Makes some changes at once.
    pub(crate) fn write(&self, writes: &[Write]) -> Result<()> {
        etcd_store::write(self.etcd, writes)
    }

    /// A pod.
    pub(crate) fn pod(&self, number: usize, stage: Stage) -> Result<Write> {
        let (first, names) = (Names::of(0), Names::of(number));
        let value = match stage {
            Stage::Bound => &self.bound,
            Stage::Running => &self.running,
            Stage::Ready => &self.ready,
        };
        let path = names.pod_path();
        let changes = [
            (first.pod, names.pod),
            (first.namespace, names.namespace),
            (first.service, names.service),
            (first.node, names.node),
            (address(0), address(number)),
            (self.uid.clone(), names.uid),
        ];
        Ok(Write::Put(path, replaced(value, &changes)?))
    }

    /// A pod goes.
    pub(crate) fn no_pod(number: usize) -> Write {
        Write::Delete(Names::of(number).pod_path())
    }

    fn service(&self, number: usize) -> Result<Write> {
        let (first, names) = (Names::of(0), Names::of(number * PODS_PER_SERVICE));
        let path = names.service_path();
        let changes = [
            (first.namespace, names.namespace),
            (first.service, names.service),
            (cluster_address(0), cluster_address(number)),
        ];
        Ok(Write::Put(path, replaced(&self.service, &changes)?))
    }

    /// The EndpointSlice of Service `number`, of whose pods the first may end.
    pub(crate) fn slice(&self, number: usize, ends: bool) -> Result<Write> {
        let (first, names) = (Names::of(0), Names::of(number * PODS_PER_SERVICE));
        let path = names.slice_path();
        let mut changes = Vec::new();
        for endpoint in 0..PODS_PER_SERVICE {
            let pod = number * PODS_PER_SERVICE + endpoint;
            changes.push((Names::of(endpoint).pod, Names::of(pod).pod));
            changes.push((address(endpoint), address(pod)));
        }
        changes.push((first.namespace, names.namespace));
        changes.push((first.service, names.service));
        let value = if ends { &self.slice_of_ending } else { &self.slice };
        Ok(Write::Put(path, replaced(value, &changes)?))
    }

    /// A node, which has just been heard of.
    pub(crate) fn node(&self, number: usize) -> Result<Write> {
        Ok(Write::Put(node_path(number), replaced(&self.node, &[(node(0), node(number))])?))
    }
}

/// Replaces texts by others of the same length, all at once: what one puts in is not replaced by the next.
fn replaced(value: &[u8], changes: &[(String, String)]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        let change = changes.iter().find(|(from, _)| rest.starts_with(from.as_bytes()));
        match change {
            Some((from, to)) => {
                ensure!(from.len() == to.len(), "{from} and {to} have different lengths");
                out.extend_from_slice(to.as_bytes());
                rest = rest.get(from.len()..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    Ok(out)
}

/// The uid within the value of an object: the first text of its form.
fn uid_in(value: &[u8]) -> Result<String> {
    let is_uid = |window: &&[u8]| {
        window.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let found = value.windows(36).find(is_uid);
    ensure!(found.is_some(), "the object has no uid");
    Ok(String::from_utf8_lossy(found.unwrap_or_default()).into_owned())
}
