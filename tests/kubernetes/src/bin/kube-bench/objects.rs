//! Very many objects: one of each kind is made through the API, and its value in etcd copied with other names of
//! the same length, which is a hundred times as fast.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use weft_kubernetes_tests::etcd_store;

pub(crate) const PODS_PER_SERVICE: usize = 10;
pub(crate) const NAMESPACES: usize = 100;
const NODES: usize = 1000;
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

impl Names {
    /// The names of pod `number` and its Service.
    pub(crate) fn of(number: usize) -> Self {
        let service = number / PODS_PER_SERVICE;
        Self {
            namespace: namespace(service % NAMESPACES),
            pod: format!("pod-{number:06}"),
            service: format!("svc-{service:05}"),
            slice: format!("svc-{service:05}-slice"),
            node: format!("node-{:04}", number % NODES),
            uid: format!("11111111-0000-4000-8000-{number:012}"),
        }
    }
}

/// 2.25 million addresses of the same length.
pub(crate) fn address(number: usize) -> String {
    format!("10.{}.{}.{}", 100 + number / 22_500, 100 + number / 150 % 150, 100 + number % 150)
}

fn cluster_address(number: usize) -> String {
    format!("10.96.{}.{}", 100 + number / 150, 100 + number % 150)
}

/// The objects with number 0, as YAML.
pub(crate) fn templates() -> String {
    let Names { namespace, pod, service, slice, node, .. } = Names::of(0);
    let endpoints: String = (0..PODS_PER_SERVICE)
        .map(|number| {
            let Names { pod, node, .. } = Names::of(number);
            format!(
                "- {{addresses: [{}], conditions: {{ready: true}}, nodeName: {node}, targetRef: {{kind: Pod, namespace: {namespace}, name: {pod}}}}}\n",
                address(number)
            )
        })
        .collect();
    format!(
        r#"
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
---
apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: {namespace}}}
spec:
  clusterIP: {}
  selector: {{app: {service}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {slice}
  namespace: {namespace}
  labels: {{kubernetes.io/service-name: {service}, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
{endpoints}"#,
        cluster_address(0)
    )
}

/// Copies the templates. They are the first of each kind.
pub(crate) fn multiply(etcd: SocketAddr, pods: usize, services: usize) -> Result<()> {
    let first = Names::of(0);
    let template = |path: &str| etcd_store::read(etcd, path);
    let pod_value = template(&pod_path(&first))?;
    let uid = uid_in(&pod_value)?;
    copy(etcd, pods, |number| {
        let names = Names::of(number);
        let changes = [
            (first.pod.clone(), names.pod.clone()),
            (first.namespace.clone(), names.namespace.clone()),
            (first.service.clone(), names.service.clone()),
            (first.node.clone(), names.node.clone()),
            (address(0), address(number)),
            (uid.clone(), names.uid.clone()),
        ];
        Ok((pod_path(&names), replaced(&pod_value, &changes)?))
    })?;
    let service_path =
        |names: &Names| format!("/registry/services/specs/{}/{}", names.namespace, names.service);
    let service_value = template(&service_path(&first))?;
    copy(etcd, services, |number| {
        let names = Names::of(number * PODS_PER_SERVICE);
        let changes = [
            (first.namespace.clone(), names.namespace.clone()),
            (first.service.clone(), names.service.clone()),
            (cluster_address(0), cluster_address(number)),
        ];
        Ok((service_path(&names), replaced(&service_value, &changes)?))
    })?;
    let slice_path = |names: &Names| format!("/registry/endpointslices/{}/{}", names.namespace, names.slice);
    let slice_value = template(&slice_path(&first))?;
    copy(etcd, services, |number| {
        let names = Names::of(number * PODS_PER_SERVICE);
        let mut changes = vec![
            (first.namespace.clone(), names.namespace.clone()),
            (first.service.clone(), names.service.clone()),
        ];
        for endpoint in 0..PODS_PER_SERVICE {
            let pod = number * PODS_PER_SERVICE + endpoint;
            changes.push((Names::of(endpoint).pod, Names::of(pod).pod));
            changes.push((address(endpoint), address(pod)));
        }
        Ok((slice_path(&names), replaced(&slice_value, &changes)?))
    })
}

fn pod_path(names: &Names) -> String {
    format!("/registry/pods/{}/{}", names.namespace, names.pod)
}

fn copy(etcd: SocketAddr, count: usize, make: impl Fn(usize) -> Result<(String, Vec<u8>)>) -> Result<()> {
    let numbers: Vec<usize> = (1..count).collect();
    for some in numbers.chunks(AT_ONCE) {
        let pairs = some.iter().map(|number| make(*number)).collect::<Result<Vec<_>>>()?;
        etcd_store::write(etcd, &pairs)?;
    }
    Ok(())
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

/// The uid within the value of an object: the only text of its form.
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
