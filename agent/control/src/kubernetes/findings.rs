//! Findings about the source itself.

use std::collections::BTreeMap;

use weft_core::Problem;

use super::kinds::Target;
use crate::codes;

/// What there is to say: `failing` are kinds with the reason, and whether that is a denial.
pub(super) fn of_source<'a>(
    failing: impl Iterator<Item = (Target, &'a str, bool)>,
    discovery: Option<&str>,
    polling: bool,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    // An API server that is away is one finding, not one for each kind.
    let mut away: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (target, failure, is_denied) in failing {
        if is_denied {
            problems.push(denied(&target, failure));
        } else {
            away.entry(failure).or_default().push(target.label());
        }
    }
    for (failure, kinds) in away {
        problems.push(not_followed(failure, &kinds.join(", ")));
    }
    problems.extend(discovery.map(undiscovered));
    if polling {
        let message = "Kinds that are installed later are found by asking every half minute: \
                       CustomResourceDefinitions may not be watched."
            .to_owned();
        let fix = "Allow `list` and `watch` of customresourcedefinitions.apiextensions.k8s.io.".to_owned();
        problems.push(codes::POLLING_FOR_KINDS.of_source(message, fix));
    }
    problems
}

fn denied(target: &Target, failure: &str) -> Problem {
    let (label, resource) = (target.label(), target.resource());
    let message = format!(
        "{label} cannot be read, so nothing that stands in objects of this kind is in force: {failure}."
    );
    let fix =
        format!("Allow the service account to `list` and `watch` {resource}; it is tried again by itself.");
    codes::KIND_DENIED.of_source(message, fix)
}

fn not_followed(failure: &str, kinds: &str) -> Problem {
    let message =
        format!("What was read last stays in force, because changes are not heard of: {failure} ({kinds}).");
    let fix = "Check the API server and the way to it; it is tried again by itself.".to_owned();
    codes::NOT_FOLLOWED.of_source(message, fix)
}

fn undiscovered(failure: &str) -> Problem {
    let message = format!("Which kinds the cluster has cannot be asked: {failure}.");
    let fix = "Check the API server and the way to it; it is tried again by itself.".to_owned();
    codes::NOT_FOLLOWED.of_source(message, fix)
}
