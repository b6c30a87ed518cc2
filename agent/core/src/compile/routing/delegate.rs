//! Delegation: rules of one VirtualService that stand in another (V-29).

use std::sync::Arc;

use crate::resource::virtual_service::{
    ExportTo, HeaderOperations, HttpAction, HttpMatch, HttpRule, TextMatch, VirtualService,
};
use crate::resource::{Kind, Labels, NamespacedName, ObjectRef};
use crate::visibility::Visibility;

/// A rule as it is in force.
#[derive(Debug)]
pub(super) struct Merged {
    /// Index of the rule in the VirtualService that has the hosts.
    pub(super) at: usize,
    /// The delegate and the index of its rule.
    pub(super) delegate: Option<(ObjectRef, usize)>,
    /// The rule; the root's and the delegate's merged.
    pub(super) rule: HttpRule,
    /// For each match of `rule` its index in the object that the rule is told of; `None` for the root's.
    pub(super) match_indices: Vec<Option<usize>>,
}

/// Why a delegate, or one of its rules, is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such VirtualService.
    Missing,
    /// It has hosts: it stands for itself.
    HasHosts,
    /// It is not exported to the root's namespace.
    NotExported,
    /// One of its rules delegates again.
    Nested(usize),
    /// One of its rules matches requests that the root's does not.
    Outside(usize),
}

/// A refusal with the root's rule and the delegate's name.
pub(super) type Refused = (usize, NamespacedName, Refusal);

/// The rules of a VirtualService with those of its delegates, which `lookup` finds. `default` says who sees a delegate
/// that says nothing.
pub(super) fn merged<'a>(
    root: &VirtualService,
    lookup: impl Fn(&NamespacedName) -> Option<&'a Arc<VirtualService>>,
    default: &[ExportTo],
) -> (Vec<Merged>, Vec<Refused>) {
    let mut rules = Vec::new();
    let mut refused = Vec::new();
    for (at, rule) in root.http.iter().enumerate() {
        let HttpAction::Delegate(name) = &rule.action else {
            let match_indices = (0..rule.matches.len()).map(Some).collect();
            rules.push(Merged { at, delegate: None, rule: rule.clone(), match_indices });
            continue;
        };
        match usable(lookup(name), &root.meta.key.namespace, default) {
            Ok(delegate) => {
                let (merged, refusals) = merge_all(at, rule, delegate);
                rules.extend(merged);
                refused.extend(refusals.into_iter().map(|refusal| (at, name.clone(), refusal)));
            }
            Err(refusal) => refused.push((at, name.clone(), refusal)),
        }
    }
    (rules, refused)
}

fn usable<'a>(
    delegate: Option<&'a Arc<VirtualService>>,
    namespace: &str,
    default: &[ExportTo],
) -> Result<&'a VirtualService, Refusal> {
    let delegate = delegate.ok_or(Refusal::Missing)?;
    if !delegate.hosts.is_empty() {
        return Err(Refusal::HasHosts);
    }
    let home = &delegate.meta.key.namespace;
    if &**home != namespace && !Visibility::new(&delegate.export_to, default, home).reaches(namespace) {
        return Err(Refusal::NotExported);
    }
    Ok(delegate)
}

fn merge_all(at: usize, root: &HttpRule, delegate: &VirtualService) -> (Vec<Merged>, Vec<Refusal>) {
    let key = &delegate.meta.key;
    let object = ObjectRef::new(Kind::VirtualService, key.namespace.clone(), key.name.clone());
    let mut rules = Vec::new();
    let mut refused = Vec::new();
    for (own, rule) in delegate.http.iter().enumerate() {
        if matches!(rule.action, HttpAction::Delegate(_)) {
            refused.push(Refusal::Nested(own));
            continue;
        }
        match merge_matches(&root.matches, &rule.matches) {
            Some((matches, match_indices)) => rules.push(Merged {
                at,
                delegate: Some((object.clone(), own)),
                rule: merge(root, rule, matches),
                match_indices,
            }),
            None => refused.push(Refusal::Outside(own)),
        }
    }
    (rules, refused)
}

/// The delegate's fields win, the root's fill what it leaves.
fn merge(root: &HttpRule, own: &HttpRule, matches: Vec<HttpMatch>) -> HttpRule {
    let headers = if own.headers == HeaderOperations::default() { &root.headers } else { &own.headers };
    HttpRule {
        name: joined(root.name.as_ref(), own.name.as_ref()),
        matches,
        action: own.action.clone(),
        rewrite: own.rewrite.clone().or_else(|| root.rewrite.clone()),
        timeout: own.timeout.or(root.timeout),
        retries: own.retries.clone().or_else(|| root.retries.clone()),
        fault: own.fault.clone().or_else(|| root.fault.clone()),
        mirrors: if own.mirrors.is_empty() { root.mirrors.clone() } else { own.mirrors.clone() },
        cors: own.cors.clone().or_else(|| root.cors.clone()),
        headers: headers.clone(),
    }
}

fn joined(root: Option<&Arc<str>>, own: Option<&Arc<str>>) -> Option<Arc<str>> {
    match (root, own) {
        (Some(root), Some(own)) => Some(format!("{root}-{own}").into()),
        (root, own) => root.or(own).cloned(),
    }
}

/// Each match of the delegate has to lie within one of the root's; else the rule is dropped (`None`).
fn merge_matches(root: &[HttpMatch], own: &[HttpMatch]) -> Option<(Vec<HttpMatch>, Vec<Option<usize>>)> {
    if root.is_empty() {
        return Some((own.to_vec(), (0..own.len()).map(Some).collect()));
    }
    if own.is_empty() {
        return Some((root.to_vec(), vec![None; root.len()]));
    }
    let mut matches = Vec::new();
    let mut indices = Vec::new();
    for (at, own) in own.iter().enumerate() {
        let before = matches.len();
        matches.extend(root.iter().filter(|root| within(root, own)).map(|root| merge_match(root, own)));
        if matches.len() == before {
            return None;
        }
        indices.resize(matches.len(), Some(at));
    }
    Some((matches, indices))
}

fn merge_match(root: &HttpMatch, own: &HttpMatch) -> HttpMatch {
    let text = |own: &Option<TextMatch>, root: &Option<TextMatch>| own.clone().or_else(|| root.clone());
    HttpMatch {
        name: joined(root.name.as_ref(), own.name.as_ref()),
        uri: text(&own.uri, &root.uri),
        ignore_uri_case: own.ignore_uri_case || root.ignore_uri_case,
        scheme: text(&own.scheme, &root.scheme),
        method: text(&own.method, &root.method),
        authority: text(&own.authority, &root.authority),
        headers: merge_fields(&root.headers, &own.headers),
        without_headers: merge_fields(&root.without_headers, &own.without_headers),
        query_params: merge_fields(&root.query_params, &own.query_params),
        port: own.port.or(root.port),
        source_labels: merge_labels(&root.source_labels, &own.source_labels),
        source_namespace: own.source_namespace.clone().or_else(|| root.source_namespace.clone()),
        gateways: if own.gateways.is_empty() { root.gateways.clone() } else { own.gateways.clone() },
    }
}

type Fields = [(Arc<str>, TextMatch)];

fn merge_fields(root: &Fields, own: &Fields) -> Vec<(Arc<str>, TextMatch)> {
    let missing = root.iter().filter(|(name, _)| own.iter().all(|(known, _)| known != name));
    own.iter().chain(missing).cloned().collect()
}

fn merge_labels(root: &Labels, own: &Labels) -> Labels {
    own.iter_shared().chain(root.iter_shared().filter(|(key, _)| own.get(key).is_none())).cloned().collect()
}

/// Whether every request that `own` matches could be one that `root` matches, field by field. A root for one namespace
/// wants it said again.
fn within(root: &HttpMatch, own: &HttpMatch) -> bool {
    let text = |root: &Option<TextMatch>, own: &Option<TextMatch>| match (root, own) {
        (Some(root), Some(own)) => text_within(root, own),
        (Some(_) | None, _) => true,
    };
    let fields = |root: &Fields, own: &Fields| {
        let both = own.iter().filter_map(|(name, own)| {
            let (_, root) = root.iter().find(|(known, _)| known == name)?;
            Some(text_within(root, own))
        });
        both.into_iter().all(|within| within)
    };
    let same_labels = root
        .source_labels
        .iter()
        .all(|(key, value)| own.source_labels.get(key).is_none_or(|own| own == value));
    let gateways = root.gateways.is_empty()
        || own.gateways.len() <= root.gateways.len()
            && own.gateways.iter().all(|gateway| root.gateways.contains(gateway));
    text(&root.uri, &own.uri)
        && text(&root.scheme, &own.scheme)
        && text(&root.method, &own.method)
        && text(&root.authority, &own.authority)
        && fields(&root.headers, &own.headers)
        && fields(&root.without_headers, &own.without_headers)
        && fields(&root.query_params, &own.query_params)
        && root.ignore_uri_case == own.ignore_uri_case
        && (root.port.is_none() || own.port.is_none() || root.port == own.port)
        && (root.source_namespace.is_none() || root.source_namespace == own.source_namespace)
        && same_labels
        && gateways
}

/// What is not compared lies outside, even of itself: expressions, and the question whether something is there.
fn text_within(root: &TextMatch, own: &TextMatch) -> bool {
    match (root, own) {
        (TextMatch::Exact(root), TextMatch::Exact(own)) => root == own && !root.is_empty(),
        (TextMatch::Prefix(root), TextMatch::Exact(own) | TextMatch::Prefix(own)) => {
            !root.is_empty() && !own.is_empty() && own.starts_with(&**root)
        }
        (TextMatch::Exact(_), TextMatch::Prefix(_))
        | (TextMatch::Present | TextMatch::Regex(_), _)
        | (_, TextMatch::Present | TextMatch::Regex(_)) => false,
    }
}
