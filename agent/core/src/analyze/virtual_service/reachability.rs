//! Rules that no request reaches, and matches that an earlier one covers (S-04).

use std::collections::BTreeMap;

use super::super::objects::{Head, Pairs, PrefixMatch, Rule, VirtualService};
use super::super::{Findings, codes};

/// Checks the rules of a VirtualService.
pub(super) fn check(service: &VirtualService, findings: &mut Findings) {
    for (list, rules) in &service.lists {
        check_list(&service.head, list, rules, findings);
        overlaps(&service.head, list, rules, findings);
    }
}

fn check_list(head: &Head, list: &str, rules: &[Rule], findings: &mut Findings) {
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let mut takes_all: Option<usize> = None;
    for (at, rule) in rules.iter().enumerate() {
        let field = format!("spec.{list}[{at}]");
        if let Some(earlier) = takes_all {
            let message = format!(
                "No request reaches {}: {} before it has no match and takes everything.",
                named(list, at, rule),
                named_at(list, earlier, rules)
            );
            let fix = "Put the rule without `match` last, and keep only one.";
            findings.add(codes::UNREACHABLE_RULE, (head, &field), message, fix);
        } else {
            let covered = duplicates(head, (list, rules, at), &mut known, findings);
            if covered == rule.matches.len() && covered > 0 {
                let message =
                    format!("No request reaches {}: earlier matches are the same.", named(list, at, rule));
                findings.add(
                    codes::UNREACHABLE_RULE,
                    (head, &field),
                    message,
                    "Remove the rule, or change it.",
                );
            }
        }
        if rule.matches.is_empty() {
            takes_all = Some(at);
        }
    }
}

/// Tells of matches of a rule that were there before, and counts them.
fn duplicates<'r>(
    head: &Head,
    (list, rules, at): (&str, &'r [Rule], usize),
    known: &mut BTreeMap<&'r str, usize>,
    findings: &mut Findings,
) -> usize {
    let Some(rule) = rules.get(at) else { return 0 };
    let mut count = 0;
    for (number, one) in rule.matches.iter().enumerate() {
        let Some(earlier) = known.get(one.text.as_str()) else {
            known.insert(&one.text, at);
            continue;
        };
        count += 1;
        let field = format!("spec.{list}[{at}].match[{number}]");
        let message = format!("This match never counts: {} has the same.", named_at(list, *earlier, rules));
        findings.add(codes::INEFFECTIVE_MATCH, (head, &field), message, "Remove the match, or change it.");
    }
    count
}

/// A rule in a sentence.
fn named(list: &str, at: usize, rule: &Rule) -> String {
    if rule.name.is_empty() {
        format!("rule {list}[{at}]")
    } else {
        format!("rule {list}[{at}] (`{}`)", rule.name)
    }
}

fn named_at(list: &str, at: usize, rules: &[Rule]) -> String {
    rules.get(at).map(|rule| named(list, at, rule)).unwrap_or_default()
}

/// Prefixes that begin with an earlier one.
fn overlaps(head: &Head, list: &str, rules: &[Rule], findings: &mut Findings) {
    let mut earlier: Vec<(String, &PrefixMatch)> = Vec::new();
    let mut known: Vec<&str> = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        if rule.matches.is_empty() {
            // What follows is not reached at all.
            return;
        }
        for (number, one) in rule.matches.iter().enumerate() {
            if known.contains(&one.text.as_str()) {
                continue;
            }
            known.push(&one.text);
            let Some(prefix) = &one.prefix else { continue };
            if let Some((where_, covering)) = earlier.iter().find(|(_, known)| covers(known, prefix)) {
                let field = format!("spec.{list}[{at}].match[{number}]");
                let message = format!(
                    "The prefix `{}` is never reached: `{}` of {where_} covers it.",
                    prefix.path, covering.path
                );
                let fix = "Put the longer prefix first.";
                findings.add(codes::INEFFECTIVE_MATCH, (head, &field), message, fix);
            }
            earlier.push((format!("spec.{list}[{at}].match[{number}]"), prefix));
        }
    }
}

/// Whether everything that `later` matches is matched by `earlier` already. Equal prefixes are left to the
/// comparison of whole matches.
fn covers(earlier: &PrefixMatch, later: &PrefixMatch) -> bool {
    earlier.path != later.path
        && later.path.starts_with(&earlier.path)
        && earlier.port == later.port
        && earlier.method.starts_with(&later.method)
        && earlier.authority.starts_with(&later.authority)
        && all_covered(&earlier.headers, &later.headers)
        && all_covered(&earlier.query, &later.query)
        && all_covered(&earlier.without_headers, &later.without_headers)
}

fn all_covered(earlier: &Pairs, later: &Pairs) -> bool {
    let covered =
        |(name, value): (&String, &String)| later.get(name).is_some_and(|other| value.starts_with(other));
    earlier.len() == later.len() && earlier.iter().all(covered)
}
