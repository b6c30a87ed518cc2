//! What the author of an AuthorizationPolicy should know about its effect without HTTP (AP-13, AP-17, AP-22).

use std::collections::BTreeSet;

use super::matcher;
use crate::problem::{Problem, Severity};
use crate::resource::{
    AuthorizationPolicy, Condition, Kind, ObjectRef, Operation, PolicyAction, Rule, Source,
};

/// The findings about one policy.
pub(crate) fn findings(policy: &AuthorizationPolicy) -> Vec<Problem> {
    if policy.targets_gateway {
        return Vec::new();
    }
    http_finding(policy).into_iter().chain(custom_finding(policy)).collect()
}

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

fn http_finding(policy: &AuthorizationPolicy) -> Option<Problem> {
    let mut fields = Vec::new();
    for (at, rule) in policy.rules.iter().enumerate().filter(|(_, rule)| matcher::needs_http(rule)) {
        rule_fields(at, rule, &mut fields);
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
    problem.message = format!("{names} can be evaluated on HTTP requests only; on TCP connections {effect}");
    problem.fix = "use principals, namespaces, serviceAccounts, ipBlocks or ports for TCP traffic".into();
    Some(problem)
}

fn custom_finding(policy: &AuthorizationPolicy) -> Option<Problem> {
    if policy.action != PolicyAction::Custom {
        return None;
    }
    let mut problem = finding(policy, "WEFT0102", "CustomActionOnTcp", "spec.action".into());
    problem.message = "an external authoriser cannot be asked about TCP connections; \
                       connections that the rules match are refused"
        .into();
    problem.fix = "use ALLOW or DENY for TCP traffic".into();
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
