//! Kinds of `networking.istio.io`, and Gateway of the Gateway API.

use serde_json::Value;
use weft_core::analyze::Object;
use weft_core::analyze::objects::{
    ClientTls, Destination, DestinationList, DestinationRule, Gateway, Head, KubernetesGateway, Pairs,
    PrefixMatch, Rule, RuleMatch, Server, ServerTls, ServiceEntry, Sidecar, VirtualService,
};

use super::super::validated::value::{entries, get, has, items, number, text};
use super::{pairs, selector, strings};

pub(super) fn gateway(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    let tls = |server: &Value| {
        let tls = get(server, "tls");
        has(server, "tls").then(|| ServerTls {
            credential: text(tls, "credentialName").to_owned(),
            certificate: text(tls, "serverCertificate").to_owned(),
            key: text(tls, "privateKey").to_owned(),
        })
    };
    let server = |server: &Value| Server {
        port: number(get(server, "port"), "number"),
        hosts: strings(server, "hosts"),
        bind: text(server, "bind").to_owned(),
        tls: tls(server),
    };
    Object::Gateway(Gateway {
        head,
        selector: pairs(spec, "selector"),
        servers: items(spec, "servers").iter().map(server).collect(),
    })
}

pub(super) fn kubernetes_gateway(head: Head, value: &Value) -> Object {
    let listeners = items(get(value, "spec"), "listeners").iter();
    let hosts = listeners.map(|listener| text(listener, "hostname").to_owned()).collect();
    Object::KubernetesGateway(KubernetesGateway { head, hosts })
}

pub(super) fn service_entry(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    let port = |port: &Value| (number(port, "number"), text(port, "protocol").to_owned());
    Object::ServiceEntry(ServiceEntry {
        head,
        hosts: strings(spec, "hosts"),
        export_to: strings(spec, "exportTo"),
        has_addresses: [spec, get(value, "status")]
            .into_iter()
            .any(|owner| !items(owner, "addresses").is_empty()),
        ports: items(spec, "ports").iter().map(port).collect(),
        selector: selector(spec, "workloadSelector", "labels"),
        endpoints: items(spec, "endpoints").iter().map(|endpoint| pairs(endpoint, "labels")).collect(),
    })
}

pub(super) fn sidecar(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    Object::Sidecar(Sidecar {
        head,
        selector: selector(spec, "workloadSelector", "labels").unwrap_or_default(),
        has_egress_proxy: has(get(spec, "outboundTrafficPolicy"), "egressProxy"),
    })
}

pub(super) fn destination_rule(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    let policy = get(spec, "trafficPolicy");
    let subset = |subset: &Value| (text(subset, "name").to_owned(), pairs(subset, "labels"));
    let of_ports = items(policy, "portLevelSettings").iter().enumerate().map(|(at, settings)| {
        let field = format!("spec.trafficPolicy.portLevelSettings[{at}].tls");
        client_tls(get(settings, "tls"), field, Some(number(get(settings, "port"), "number")))
    });
    let whole = client_tls(get(policy, "tls"), "spec.trafficPolicy.tls".to_owned(), None);
    Object::DestinationRule(DestinationRule {
        head,
        host: text(spec, "host").to_owned(),
        export_to: strings(spec, "exportTo"),
        subsets: items(spec, "subsets").iter().map(subset).collect(),
        selects_workloads: has(spec, "workloadSelector"),
        tls: std::iter::once(whole).chain(of_ports).collect(),
    })
}

fn client_tls(tls: &Value, field: String, port: Option<i64>) -> ClientTls {
    ClientTls {
        field,
        port,
        mode: text(tls, "mode").to_owned(),
        has_authority: !text(tls, "caCertificates").is_empty(),
        has_credential: !text(tls, "credentialName").is_empty(),
    }
}

pub(super) fn virtual_service(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    let http = items(spec, "http");
    let in_percent = |(at, rule): (usize, &Value)| {
        let delay = get(get(rule, "fault"), "delay");
        (number(delay, "percent") > 0).then_some(at)
    };
    Object::VirtualService(VirtualService {
        head,
        hosts: strings(spec, "hosts"),
        gateways: strings(spec, "gateways"),
        export_to: strings(spec, "exportTo"),
        lists: ["http", "tls", "tcp"].map(|list| (list, items(spec, list).iter().map(rule).collect())).into(),
        destinations: destinations(spec),
        claim: http.iter().flat_map(|rule| items(rule, "match")).find_map(claim),
        delays_in_percent: http.iter().enumerate().filter_map(in_percent).collect(),
    })
}

fn rule(value: &Value) -> Rule {
    Rule {
        name: text(value, "name").to_owned(),
        matches: items(value, "match").iter().map(rule_match).collect(),
    }
}

fn rule_match(value: &Value) -> RuleMatch {
    let mut rest = value.clone();
    if let Some(fields) = rest.as_object_mut() {
        fields.remove("name");
        // What has no value is the same as what is not there.
        fields.retain(|_, value| !is_nothing(value));
    }
    RuleMatch { name: text(value, "name").to_owned(), text: rest.to_string(), prefix: prefix(value) }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // An empty match of a text asks for its presence.
        Value::Bool(true) | Value::Number(_) | Value::Object(_) => false,
    }
}

fn prefix(value: &Value) -> Option<PrefixMatch> {
    let path = text(get(value, "uri"), "prefix");
    if path.is_empty() {
        return None;
    }
    let compared = |name: &str| -> Pairs {
        entries(value, name).map(|(key, value)| (key.to_owned(), comparable(value))).collect()
    };
    let method = Some(comparable(get(value, "method"))).filter(|method| !method.is_empty());
    Some(PrefixMatch {
        path: path.to_owned(),
        port: number(value, "port"),
        method: method.unwrap_or_else(|| "exact:GET".to_owned()),
        authority: comparable(get(value, "authority")),
        headers: compared("headers"),
        query: compared("queryParams"),
        without_headers: compared("withoutHeaders"),
    })
}

fn comparable(value: &Value) -> String {
    let kinds = ["exact", "prefix"];
    let written = kinds.into_iter().find(|kind| !text(value, kind).is_empty());
    written.map(|kind| format!("{kind}:{}", text(value, kind))).unwrap_or_default()
}

/// The name of the first header that stands for a claim of a token (RA-9).
fn claim(value: &Value) -> Option<String> {
    const CLAIMS: &str = "@request.auth.claims";
    let is_claim = |name: &&str| {
        let rest = name.get(CLAIMS.len()..).filter(|_| name.to_ascii_lowercase().starts_with(CLAIMS));
        rest.is_some_and(|rest| {
            (rest.starts_with('.') && rest.len() > 1)
                || (rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
        })
    };
    let headers = entries(value, "headers").chain(entries(value, "withoutHeaders"));
    headers.map(|(name, _)| name).find(is_claim).map(str::to_owned)
}

fn destinations(spec: &Value) -> Vec<Destination> {
    let mut found = Vec::new();
    for list in ["tcp", "tls", "http"] {
        let kind = if list == "http" { DestinationList::Http } else { DestinationList::Connection };
        for (rule_at, rule) in items(spec, list).iter().enumerate() {
            for (at, route) in items(rule, "route").iter().enumerate() {
                let field = format!("spec.{list}[{rule_at}].route[{at}].destination");
                found.push(destination(get(route, "destination"), kind, field));
            }
            if has(rule, "mirror") {
                let field = format!("spec.{list}[{rule_at}].mirror");
                found.push(destination(get(rule, "mirror"), DestinationList::Mirror, field));
            }
            for (at, mirror) in items(rule, "mirrors").iter().enumerate() {
                let field = format!("spec.{list}[{rule_at}].mirrors[{at}].destination");
                found.push(destination(get(mirror, "destination"), DestinationList::Mirror, field));
            }
        }
    }
    // A destination without host is a fault of its own, which validation tells.
    found.retain(|destination| !destination.host.is_empty());
    found
}

fn destination(value: &Value, list: DestinationList, field: String) -> Destination {
    Destination {
        field,
        list,
        host: text(value, "host").to_owned(),
        subset: text(value, "subset").to_owned(),
        port: has(value, "port").then(|| number(get(value, "port"), "number")),
    }
}
