//! Short ways to write objects in tests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::compile::{CompileOptions, Compiler};
use crate::decide::InboundConnection;
use crate::resource::*;
use crate::visibility::Visibility;
use crate::{Identity, Snapshot};

pub(crate) fn labels(text: &str) -> Labels {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.trim().split_once('=').expect("key=value")).collect()
}

/// `ns/name`
pub(crate) fn key(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    NamespacedName::new(namespace, name)
}

pub(crate) fn meta(text: &str) -> Meta {
    Meta { key: key(text), created: None, origin: None }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// `td/ns/x/sa/y`
pub(crate) fn identity(text: &str) -> Identity {
    format!("spiffe://{text}").parse().expect("an identity")
}

pub(crate) fn namespace(name: &str, labelled: &str, annotated: &str) -> Namespace {
    Namespace {
        name: name.into(),
        labels: Arc::new(labels(labelled)),
        annotations: Arc::new(labels(annotated)),
        origin: None,
    }
}

/// A ready pod on node `a` in the mesh with service account `default`.
pub(crate) fn pod(name: &str, ips: &[&str], labelled: &str) -> Pod {
    let labelled = format!("weft.dev/mesh=enabled,{labelled}");
    Pod {
        meta: meta(name),
        labels: Arc::new(labels(&labelled)),
        annotations: Arc::default(),
        node: Some("a".into()),
        ips: ips.iter().map(|text| ip(text)).collect(),
        service_account: "default".into(),
        host_network: false,
        runtime_class: None,
        ready: true,
        terminated: false,
        owner: None,
        ports: Arc::default(),
        netns: None,
        uid: None,
    }
}

pub(crate) fn port(name: &str, number: u16, target: u16, protocol: PortProtocol) -> ServicePort {
    let name = Some(name).filter(|name| !name.is_empty()).map(Into::into);
    ServicePort { name, port: number, target: TargetPort::Number(target), protocol }
}

pub(crate) fn service(name: &str, vips: &[&str], selector: &str, ports: &[ServicePort]) -> Service {
    Service {
        meta: meta(name),
        annotations: Arc::default(),
        vips: vips.iter().map(|text| ip(text)).collect(),
        ports: ports.into(),
        selector: Some(labels(selector)).filter(|selector| !selector.is_empty()),
        publish_not_ready: false,
        external_name: None,
        distribution: None,
        export_to: Vec::new(),
    }
}

pub(crate) fn slice(
    name: &str,
    service: &str,
    ports: &[(&str, u16)],
    endpoints: &[(&str, bool)],
) -> EndpointSlice {
    let endpoint = |(address, ready): &(&str, bool)| SliceEndpoint {
        addresses: [ip(address)].into_iter().collect(),
        ready: *ready,
        pod: None,
        node: None,
    };
    EndpointSlice {
        meta: meta(name),
        service: Some(service.into()),
        ports: ports.iter().map(|(name, port)| ((*name).into(), *port)).collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

pub(crate) fn policy(
    name: &str,
    action: PolicyAction,
    selector: &str,
    rules: Vec<Rule>,
) -> AuthorizationPolicy {
    AuthorizationPolicy {
        meta: meta(name),
        selector: Some(labels(selector)).filter(|selector| !selector.is_empty()),
        targets_gateway: false,
        action,
        provider: None,
        dry_run: false,
        rules,
    }
}

pub(crate) fn peer_authentication(name: &str, selector: &str, mode: Option<MtlsMode>) -> PeerAuthentication {
    let selector = Some(labels(selector)).filter(|selector| !selector.is_empty());
    PeerAuthentication { meta: meta(name), selector, mode, ports: Vec::new() }
}

/// A pattern as users write it (AP-5).
pub(crate) fn pattern(text: &str) -> StringMatch {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text == "*" => StringMatch::Present,
        (Some(suffix), _) => StringMatch::Suffix(suffix.into()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        (None, None) => StringMatch::Exact(text.into()),
    }
}

pub(crate) fn any<T>(values: impl IntoIterator<Item = T>) -> Match<T> {
    Match { any: values.into_iter().collect(), not: Box::default() }
}

pub(crate) fn not<T>(values: impl IntoIterator<Item = T>) -> Match<T> {
    Match { any: Box::default(), not: values.into_iter().collect() }
}

pub(crate) fn from(source: Source) -> Rule {
    Rule { from: vec![source], ..Rule::default() }
}

pub(crate) fn to_ports(ports: &[u16]) -> Rule {
    Rule {
        to: vec![Operation { ports: any(ports.iter().copied()), ..Operation::default() }],
        ..Rule::default()
    }
}

pub(crate) fn principals(texts: &[&str]) -> Source {
    Source { principals: any(texts.iter().map(|text| pattern(text))), ..Source::default() }
}

pub(crate) fn connection<'a>(
    identity: Option<&'a Identity>,
    source: &str,
    to: &str,
) -> InboundConnection<'a> {
    InboundConnection { identity, source_ip: ip(source), destination: addr(to), sni: None }
}

/// A rule that accepts the tokens of one issuer.
pub(crate) fn jwt_rule(issuer: &str) -> request_authentication::JwtRule {
    request_authentication::JwtRule {
        issuer: issuer.into(),
        audiences: Vec::new(),
        keys: request_authentication::KeySource::Discovery,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        output_claim_to_headers: Vec::new(),
        forward_original_token: false,
        timeout: std::time::Duration::from_secs(5),
        space_delimited_claims: Vec::new(),
        required: false,
    }
}

pub(crate) fn request_authentication(
    name: &str,
    selector: &str,
    rules: Vec<request_authentication::JwtRule>,
) -> RequestAuthentication {
    let selector = Some(labels(selector)).filter(|selector| !selector.is_empty());
    RequestAuthentication { meta: meta(name), selector, targets_gateway: false, rules }
}

pub(crate) fn upsert(resource: Resource) -> Change {
    Change::Upsert(Box::new(resource))
}

pub(crate) fn compiler() -> Compiler {
    Compiler::new(CompileOptions {
        node: Some("a".into()),
        adopt_istio_labels: true,
        endpoints_from_pods: true,
    })
}

pub(crate) fn compile(resources: impl IntoIterator<Item = Resource>) -> Arc<Snapshot> {
    let mut compiler = compiler();
    compiler.apply(resources.into_iter().map(upsert));
    compiler.snapshot()
}

/// Everything that a snapshot says, as text in a fixed order.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let mut lines = vec![format!("mesh {:?}", snapshot.mesh()), format!("objects {}", snapshot.objects())];
    let mut workloads: Vec<_> = snapshot.workloads().map(|workload| render_workload(workload)).collect();
    workloads.sort();
    lines.extend(workloads);
    let mut ips: Vec<_> = snapshot.by_ip.iter().collect();
    ips.sort_by_key(|(ip, _)| *ip);
    for (ip, owner) in ips {
        let current = snapshot.workload(&owner.key).is_some_and(|known| Arc::ptr_eq(known, owner));
        lines.push(format!("ip {ip} is {}{}", owner.key, if current { "" } else { " (STALE)" }));
    }
    let mut services: Vec<_> = snapshot.services().map(|service| render_service(service)).collect();
    services.sort();
    lines.extend(services);
    let mut vips: Vec<_> = snapshot.by_vip.iter().collect();
    vips.sort_by_key(|(ip, _)| *ip);
    for (ip, owner) in vips {
        let current = snapshot.service(&owner.key).is_some_and(|known| Arc::ptr_eq(known, owner));
        lines.push(format!("vip {ip} is {}{}", owner.key, if current { "" } else { " (STALE)" }));
    }
    lines.extend(snapshot.local().iter().map(|local| {
        let current = *local.http == *snapshot.mesh().http;
        format!("{}{}", render_local(local), if current { "" } else { " (STALE)" })
    }));
    lines.extend(snapshot.local_services().map(|service| format!("local service {}", service.key)));
    let placed = !snapshot.localities.is_empty();
    lines.extend(placed.then(|| format!("localities {:?}", snapshot.localities)));
    lines.extend(snapshot.bypassed.iter().map(|key| format!("bypassed {key}")));
    lines.extend(crate::compile::routing::tests::render(snapshot));
    lines.extend(snapshot.problems().iter().map(|problem| problem.to_string()));
    lines.join("\n")
}

fn render_workload(workload: &crate::snapshot::Workload) -> String {
    let labels = &workload.labels;
    format!(
        "workload {} {:?} on {} as {} {:?}{}{}\n    labels {} {} {} app {} version {} canonical {} {}",
        workload.key,
        workload.ips,
        workload.node.as_deref().unwrap_or("no node"),
        workload.identity,
        workload.membership,
        if workload.ready { "" } else { " not ready" },
        if workload.encrypt_same_node { " encrypt" } else { "" },
        labels.workload,
        labels.namespace,
        labels.principal,
        labels.app,
        labels.version,
        labels.canonical_service,
        labels.canonical_revision,
    )
}

fn render_service(service: &crate::snapshot::CompiledService) -> String {
    let mut text = format!("service {} {} {:?}", service.key, service.host, service.vips);
    text.extend(service.distribution.map(|distribution| format!(" {distribution:?}")));
    if service.visibility != Visibility::Everywhere {
        text += &format!(" seen by {:?}", service.visibility);
    }
    for port in service.ports.iter() {
        let name = port.name.as_deref().unwrap_or("-");
        text += &format!("\n    port {} {name} {:?}:", port.port, port.protocol);
        for endpoint in port.endpoints.iter() {
            text += &format!(" {}{}", endpoint.addr(), if endpoint.ready { "" } else { "!" });
        }
    }
    text
}

fn render_local(local: &crate::snapshot::LocalWorkload) -> String {
    let mut policies: Vec<_> = local.policies.policies().map(|policy| policy.meta.key.to_string()).collect();
    policies.sort();
    let tokens = match &*local.request_authentication {
        [] => String::new(),
        rules => format!("\n    tokens {rules:?}"),
    };
    format!(
        "local {} netns {:?} policies {policies:?}\n    {:?}\n    {:?}\n    {:?} pass {} bypass {} declares {:?}{tokens}",
        local.workload.key,
        local.netns,
        local.peer_authentication,
        local.capture,
        local.traffic,
        local.pass_when_agent_gone,
        local.bypass,
        local.declared_ports,
    )
}
