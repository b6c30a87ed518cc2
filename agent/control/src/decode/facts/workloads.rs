//! Pods, Deployments and Services.

use serde_json::Value;
use weft_core::analyze::Object;
use weft_core::analyze::objects::{Container, Head, Pairs, Pod, Service, ServicePort};

use super::super::validated::value::{get, items, number, text};
use super::pairs;

pub(super) fn pod(head: Head, value: &Value) -> Object {
    let (labels, annotations) = (head.labels.clone(), head.annotations.clone());
    Object::Pod(workload(head, get(value, "spec"), (labels, annotations)))
}

pub(super) fn deployment(head: Head, value: &Value) -> Object {
    let template = get(get(value, "spec"), "template");
    let metadata = get(template, "metadata");
    let marks = (pairs(metadata, "labels"), pairs(metadata, "annotations"));
    Object::Deployment(workload(head, get(template, "spec"), marks))
}

fn workload(head: Head, spec: &Value, (labels, annotations): (Pairs, Pairs)) -> Pod {
    let containers = items(spec, "containers");
    let is_sidecar =
        |container: &Value| text(container, "name") == "istio-proxy" && !text(container, "image").is_empty();
    let awaits =
        |container: &Value| text(container, "name") == "istio-proxy" && text(container, "image") == "auto";
    Pod {
        head,
        labels,
        annotations,
        node: text(spec, "nodeName").to_owned(),
        user: user(spec),
        has_sidecar: containers.iter().chain(items(spec, "initContainers")).any(is_sidecar),
        awaits_sidecar: containers.iter().any(awaits),
        containers: containers
            .iter()
            .map(|container| Container { name: text(container, "name").to_owned(), user: user(container) })
            .collect(),
    }
}

fn user(owner: &Value) -> Option<i64> {
    get(get(owner, "securityContext"), "runAsUser").as_i64()
}

pub(super) fn service(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    Object::Service(Service {
        head,
        is_external_name: text(spec, "type") == "ExternalName",
        selector: pairs(spec, "selector"),
        ports: items(spec, "ports").iter().map(service_port).collect(),
    })
}

fn service_port(port: &Value) -> ServicePort {
    let target = match get(port, "targetPort") {
        Value::String(name) if !name.is_empty() => name.clone(),
        Value::Number(target) if target.as_i64() != Some(0) => target.to_string(),
        _ => number(port, "port").to_string(),
    };
    ServicePort {
        name: text(port, "name").to_owned(),
        port: number(port, "port"),
        protocol: Some(text(port, "protocol")).filter(|name| !name.is_empty()).unwrap_or("TCP").to_owned(),
        app_protocol: get(port, "appProtocol").as_str().map(str::to_owned),
        target,
    }
}
