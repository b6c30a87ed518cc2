//! `%OPERATORS%` in header values (V-17).

use std::sync::Arc;

use super::{Request, RouteDecision, Target, fields};
use crate::resource::virtual_service::{HeaderChanges, HeaderOperations};

/// What the operators read.
struct Context<'a> {
    decision: &'a RouteDecision,
    target: &'a Target,
    request: &'a Request<'a>,
}

type Pairs = [(Arc<str>, Arc<str>)];

/// Replaces operators in all values; one that comes out empty is left out. Without operators it is the same object.
pub(super) fn expand_all(
    operations: Arc<HeaderOperations>,
    decision: &RouteDecision,
    target: &Target,
    request: &Request<'_>,
) -> Arc<HeaderOperations> {
    let has = |pairs: &Pairs| pairs.iter().any(|(_, value)| value.contains('%'));
    let sides = [&operations.request, &operations.response];
    if !sides.into_iter().any(|side| has(&side.set) || has(&side.add)) {
        return operations;
    }
    let context = Context { decision, target, request };
    let side = |changes: &HeaderChanges| HeaderChanges {
        set: pairs(&changes.set, &context),
        add: pairs(&changes.add, &context),
        remove: changes.remove.clone(),
    };
    Arc::new(HeaderOperations { request: side(&operations.request), response: side(&operations.response) })
}

fn pairs(pairs: &Pairs, context: &Context<'_>) -> Vec<(Arc<str>, Arc<str>)> {
    let expanded = pairs.iter().map(|(name, value)| match value.contains('%') {
        true => (name.clone(), Arc::from(expand(value, context))),
        false => (name.clone(), value.clone()),
    });
    expanded
        .zip(pairs)
        .filter(|((_, new), (_, old))| !new.is_empty() || old.is_empty())
        .map(|(new, _)| new)
        .collect()
}

/// `%%` is a per cent sign; an operator that is not known here stays as it is written.
fn expand(value: &str, context: &Context<'_>) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let Some((operator, next)) = after.split_once('%') else {
            out.push('%');
            rest = after;
            continue;
        };
        match operator {
            "" => out.push('%'),
            _ => match operate(operator, context) {
                Some(text) => out.push_str(&text),
                None => {
                    out.push('%');
                    rest = after;
                    continue;
                }
            },
        }
        rest = next;
    }
    out.push_str(rest);
    out
}

fn operate(operator: &str, context: &Context<'_>) -> Option<String> {
    let (name, length) = match operator.rsplit_once("):") {
        Some((name, length)) => (name, length.parse::<usize>().ok()?),
        None => (operator.strip_suffix(')').unwrap_or(operator), usize::MAX),
    };
    let text = match name.split_once('(') {
        Some(("REQ", names)) => {
            names.split('?').find_map(|name| header(context.request, name)).unwrap_or_default()
        }
        Some(_) => return None,
        None => plain(name, context)?,
    };
    Some(text.chars().take(length).collect())
}

fn header(request: &Request<'_>, name: &str) -> Option<String> {
    let mut values = fields::values(request, &name.to_ascii_lowercase()).peekable();
    values.peek()?;
    let texts: Vec<_> = values.map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    Some(texts.join(","))
}

fn plain(name: &str, context: &Context<'_>) -> Option<String> {
    match name {
        "UPSTREAM_CLUSTER" => Some(match &context.target.cluster {
            Ok(cluster) => cluster.name.to_string(),
            Err(name) => name.to_string(),
        }),
        "ROUTE_NAME" => Some(context.decision.route_name().unwrap_or_default().to_owned()),
        _ => None,
    }
}
