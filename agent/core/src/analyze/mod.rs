//! What Istio's analyzers find, found before anything is in force (V-32, S-60).
//!
//! [`ObjectSet`] holds what was read, reduced to what the analyzers ask for; [`analyze`] is a pure function over it.
//! Each family of conditions has a file. Nothing here runs in the agent: some conditions compare every object
//! with every other.

mod annotations;
mod authorization;
pub mod codes;
mod deployment;
mod destination_rule;
mod gateway;
mod hosts;
mod namespace;
pub mod objects;
mod selectors;
mod service;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;
mod workloads;

pub use objects::{Object, ObjectSet};

use std::collections::HashSet;

use crate::problem::{Code, Problem};
use crate::resource::ObjectRef;
use objects::Head;

/// Everything found, by analyzer and then in the order in which objects were read.
pub fn analyze(set: &ObjectSet) -> Vec<Problem> {
    let mut findings = Findings::default();
    annotations::check(set, &mut findings);
    authorization::check(set, &mut findings);
    deployment::check(set, &mut findings);
    destination_rule::check(set, &mut findings);
    gateway::check(set, &mut findings);
    namespace::check(set, &mut findings);
    selectors::check(set, &mut findings);
    service::check(set, &mut findings);
    service_entry::check(set, &mut findings);
    sidecar::check(set, &mut findings);
    telemetry::check(set, &mut findings);
    virtual_service::check(set, &mut findings);
    findings.problems
}

/// Namespaces in which Kubernetes keeps what is its own: nobody is told about objects there.
const OF_KUBERNETES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Collects what is found.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
    known: HashSet<Problem>,
}

impl Findings {
    /// A finding about a field of a user's object; the same one twice counts once.
    fn add(
        &mut self,
        code: Code,
        (head, field): (&Head, &str),
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if OF_KUBERNETES.contains(&head.namespace.as_str()) {
            return;
        }
        let object = ObjectRef {
            kind: head.kind.into(),
            namespace: head.namespace.as_str().into(),
            name: head.name.as_str().into(),
        };
        let problem = Problem {
            severity: code.severity,
            code: code.code,
            name: code.name,
            object: Some(object),
            field: format!("{}{field}", head.prefix),
            origin: head.origin.clone(),
            message: message.into(),
            fix: fix.into(),
        };
        if self.known.insert(problem.clone()) {
            self.problems.push(problem);
        }
    }
}

/// Names in a sentence: sorted, with commas.
fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// A selector in a sentence.
fn shown(selector: &objects::Pairs) -> String {
    if selector.is_empty() {
        return "(none)".to_owned();
    }
    let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::codes::ALL;

    #[test]
    fn codes_and_names_are_unique() {
        let codes: BTreeSet<_> = ALL.iter().map(|code| code.code).collect();
        let names: BTreeSet<_> = ALL.iter().map(|code| code.name).collect();
        assert_eq!((codes.len(), names.len()), (ALL.len(), ALL.len()));
    }
}
