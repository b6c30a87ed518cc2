//! What the author of an AuthorizationPolicy should know about its effect where it is applied (AP-13, AP-17).

use std::collections::BTreeSet;

use super::matcher;
use crate::problem::{Problem, Severity};
use crate::resource::{
    AuthorizationPolicy, Condition, Kind, Match, MeshHttp, ObjectRef, Operation, PolicyAction, Rule, Source,
};

fn finding(policy: &AuthorizationPolicy, code: &'static str, name: &'static str, field: String) -> Problem {
    let key = &policy.meta.key;
    Problem {
        severity: Severity::Warning,
        code,
        name,
        object: Some(ObjectRef::new(Kind::AuthorizationPolicy, key.namespace.clone(), key.name.clone())),
        field,
        origin: policy.meta.origin.clone(),
        message: String::new(),
        fix: String::new(),
    }
}

/// The finding about a policy that decides on requests, and applies to ports on which there are none (AP-13).
pub(crate) fn port_finding(policy: &AuthorizationPolicy, opaque: &BTreeSet<u16>) -> Option<Problem> {
    let of = |rule: &Rule| opaque.iter().copied().find(|port| applies_to(rule, *port));
    if policy.action == PolicyAction::Custom {
        let port = policy.rules.iter().find_map(of)?;
        let mut problem = finding(policy, "WEFT0102", "CustomActionOnTcp", "spec.action".into());
        problem.message = format!(
            "an external authoriser cannot be asked about connections that are not HTTP, as those to port {port} of \
             a workload that it selects; connections that the rules match are refused"
        );
        problem.fix =
            "use ALLOW or DENY for TCP traffic, or say in the rules which ports they are for".into();
        return Some(problem);
    }
    let needing = policy.rules.iter().enumerate().filter(|(_, rule)| matcher::needs_http(rule));
    let met: Vec<(usize, &Rule, u16)> =
        needing.filter_map(|(at, rule)| Some((at, rule, of(rule)?))).collect();
    let (_, _, port) = met.first()?;
    let mut fields = Vec::new();
    for (at, rule, _) in &met {
        rule_fields(*at, rule, &mut fields);
    }
    let first = fields.first()?.0.clone();
    let names: BTreeSet<&str> = fields.iter().map(|(_, name)| name.as_str()).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    let effect = match policy.action {
        PolicyAction::Allow => "the rules that use it allow nothing",
        PolicyAction::Deny | PolicyAction::Audit | PolicyAction::Custom => {
            "it is left out, so that the rules that use it match more connections"
        }
    };
    let mut problem = finding(policy, "WEFT0101", "HttpFieldOnTcp", first);
    problem.message = format!(
        "{names} can be evaluated on HTTP requests only; on port {port} of a workload that it selects, which does \
         not speak HTTP, {effect}"
    );
    problem.fix =
        "say in `ports` which ports the rule is for; use principals, namespaces, serviceAccounts, ipBlocks \
                   or ports for TCP traffic"
            .into();
    Some(problem)
}

/// Whether the rule may match something on a port.
fn applies_to(rule: &Rule, port: u16) -> bool {
    let admits = |ports: &Match<u16>| {
        (ports.any.is_empty() || ports.any.contains(&port)) && !ports.not.contains(&port)
    };
    let conditions = rule.when.iter().all(|condition| match condition {
        Condition::DestinationPort(ports) => admits(ports),
        Condition::SourceIp(_)
        | Condition::RemoteIp(_)
        | Condition::SourceNamespace(_)
        | Condition::SourcePrincipal(_)
        | Condition::SourceServiceAccount(_)
        | Condition::SourceTrustDomain(_)
        | Condition::DestinationIp(_)
        | Condition::Sni(_)
        | Condition::Http { .. } => true,
    });
    conditions && (rule.to.is_empty() || rule.to.iter().any(|operation| admits(&operation.ports)))
}

/// The finding about a CUSTOM policy whose provider no MeshConfig knows (AP-17).
pub(crate) fn provider_finding(policy: &AuthorizationPolicy, mesh: &MeshHttp) -> Option<Problem> {
    let wanted = policy.provider.as_deref().filter(|_| policy.action == PolicyAction::Custom)?;
    if mesh.ext_authz.iter().any(|provider| *provider.name == *wanted) {
        return None;
    }
    let mut problem = finding(policy, "WEFT0113", "ProviderNotFound", "spec.provider.name".into());
    problem.message = format!(
        "MeshConfig has no external authoriser `{wanted}` among its extensionProviders; what the rules match is \
         refused"
    );
    problem.fix =
        "define the provider with envoyExtAuthzHttp or envoyExtAuthzGrpc, or correct the name".into();
    Some(problem)
}

/// The finding about a DENY policy whose rules ask for an identity, where a client may come without one (ruling 11).
pub(crate) fn plaintext_finding(policy: &AuthorizationPolicy) -> Problem {
    let mut problem = finding(policy, "WEFT0112", "DenyMissesPlaintext", "spec.rules".into());
    problem.message = "it denies by identity, but workloads that it selects accept plaintext; \
                       a client without mTLS has no identity and is not denied"
        .into();
    problem.fix = "set PeerAuthentication to STRICT for these workloads, or use an ALLOW policy".into();
    problem
}

/// Path and name of every field of a rule that needs HTTP.
fn rule_fields(at: usize, rule: &Rule, fields: &mut Vec<(String, String)>) {
    for (index, source) in rule.from.iter().enumerate() {
        for name in source_fields(source) {
            fields.push((format!("spec.rules[{at}].from[{index}].source.{name}"), name.into()));
        }
    }
    for (index, operation) in rule.to.iter().enumerate() {
        for name in operation_fields(operation) {
            fields.push((format!("spec.rules[{at}].to[{index}].operation.{name}"), name.into()));
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        if let Condition::Http { key, values: _ } = condition {
            fields.push((format!("spec.rules[{at}].when[{index}]"), key.to_string()));
        }
    }
}

fn source_fields(source: &Source) -> impl Iterator<Item = &'static str> {
    present([
        (!source.request_principals.any.is_empty(), "requestPrincipals"),
        (!source.request_principals.not.is_empty(), "notRequestPrincipals"),
    ])
}

fn operation_fields(operation: &Operation) -> impl Iterator<Item = &'static str> {
    let Operation { ports: _, hosts, methods, paths } = operation;
    present([
        (!hosts.any.is_empty(), "hosts"),
        (!hosts.not.is_empty(), "notHosts"),
        (!methods.any.is_empty(), "methods"),
        (!methods.not.is_empty(), "notMethods"),
        (!paths.any.is_empty(), "paths"),
        (!paths.not.is_empty(), "notPaths"),
    ])
}

fn present<const N: usize>(fields: [(bool, &'static str); N]) -> impl Iterator<Item = &'static str> {
    fields.into_iter().filter(|(present, _)| *present).map(|(_, name)| name)
}
