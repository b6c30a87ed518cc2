//! VirtualServices, compiled: patterns ready to be asked, defaults filled in.

use std::sync::Arc;
use std::time::Duration;

use super::delegate::Merged;
use super::expressions::Expressions;
use super::retry::Retry;
use crate::decide::http::CorsPolicy;
use crate::decide::http::pattern::Pattern;
use crate::resource::virtual_service::{
    DestinationRef, DirectResponse, Fault, HeaderChanges, HeaderOperations, HttpAction, HttpMatch, HttpRule,
    PerMillion, Redirect, Rewrite, TextMatch, VirtualService,
};
use crate::resource::{Kind, Labels, ObjectRef};
use crate::visibility::Visibility;

/// The gateway that stands for every client in the mesh.
const MESH: &str = "mesh";

/// A VirtualService.
#[derive(Debug)]
pub(crate) struct CompiledVirtualService {
    pub(crate) object: ObjectRef,
    /// As written: hosts, and the rules for connections, which need no compiling.
    pub(crate) source: Arc<VirtualService>,
    pub(crate) visibility: Visibility,
    /// Whether it binds the mesh at all (V-2).
    pub(crate) mesh: bool,
    pub(crate) http: Box<[Arc<CompiledRule>]>,
}

/// One rule for requests, with what a delegate inherited.
#[derive(Debug)]
pub(crate) struct CompiledRule {
    /// The object in which it stands: the delegate's, where there is one.
    pub(crate) object: ObjectRef,
    /// Its index there.
    pub(crate) rule: usize,
    /// The VirtualService that delegates, with the index of its rule.
    pub(crate) root: Option<(ObjectRef, usize)>,
    pub(crate) name: Option<Arc<str>>,
    /// `None` is a catch-all.
    pub(crate) matches: Option<Box<[CompiledMatch]>>,
    pub(crate) action: CompiledAction,
    pub(crate) rewrite: Option<CompiledRewrite>,
    pub(crate) timeout: Option<Duration>,
    /// `None` takes the mesh's default.
    pub(crate) retry: Option<Retry>,
    pub(crate) fault: Option<Arc<Fault>>,
    pub(crate) mirrors: Box<[(DestinationRef, PerMillion)]>,
    pub(crate) cors: Option<Arc<CorsPolicy>>,
    pub(crate) headers: Arc<HeaderOperations>,
}

/// The VirtualServices of one host in the order in which a client's namespace has them: its own private ones, those that
/// others export to it, and those for everybody, each by age.
pub(crate) fn in_order<'s>(
    services: &'s [Arc<CompiledVirtualService>],
    client: &str,
) -> impl Iterator<Item = &'s Arc<CompiledVirtualService>> {
    let private = move |service: &&Arc<CompiledVirtualService>| {
        *service.object.namespace == *client && service.visibility != Visibility::Everywhere
    };
    let others = services.iter().filter(move |service| !private(service));
    services.iter().filter(private).chain(others)
}

/// What a rule does.
#[derive(Debug)]
pub(crate) enum CompiledAction {
    Forward(CompiledForward),
    Redirect(Redirect),
    Direct(DirectResponse),
}

/// The destinations of a rule.
#[derive(Debug)]
pub(crate) struct CompiledForward {
    /// Without those of weight 0 (V-16).
    pub(crate) targets: Box<[CompiledTarget]>,
    /// Whether the rule has one destination, as written (E31).
    pub(crate) single: bool,
}

/// One destination.
#[derive(Debug)]
pub(crate) struct CompiledTarget {
    pub(crate) destination: DestinationRef,
    pub(crate) weight: u32,
    pub(crate) headers: Arc<HeaderOperations>,
}

/// `rewrite`.
#[derive(Debug)]
pub(crate) struct CompiledRewrite {
    pub(crate) uri: Option<Arc<str>>,
    pub(crate) regex: Option<(regex::Regex, Replacement)>,
    pub(crate) authority: Option<Arc<str>>,
}

/// The replacement of a `uriRegexRewrite`: text and groups in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replacement(Box<[Piece]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

impl Replacement {
    /// Reads RE2's form: `\0` to `\9`, and `\\` for a backslash.
    fn new(written: &str) -> Self {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut chars = written.chars();
        while let Some(next) = chars.next() {
            let escaped = if next == '\\' { chars.next() } else { None };
            match escaped.and_then(|digit| Some((digit, digit.to_digit(10)?))) {
                Some((_, group)) => {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                    pieces.push(Piece::Group(group as usize));
                }
                None => text.push(escaped.unwrap_or(next)),
            }
        }
        pieces.push(Piece::Text(text));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        Self(pieces.into())
    }

    /// What stands for one place where the expression matched.
    pub(crate) fn fill(&self, captures: &regex::Captures<'_>) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Group(at) => captures.get(*at).map(|group| group.as_str().to_owned()).unwrap_or_default(),
        };
        self.0.iter().map(piece).collect()
    }
}

/// One entry of a rule's `match`.
#[derive(Debug)]
pub(crate) struct CompiledMatch {
    /// Its index as written; `None` for one that a delegate has of its root.
    pub(crate) at: Option<usize>,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) uri: Option<Pattern>,
    pub(crate) ignore_uri_case: bool,
    pub(crate) scheme: Option<Pattern>,
    pub(crate) method: Option<Pattern>,
    pub(crate) authority: Option<Pattern>,
    pub(crate) headers: Box<[(Arc<str>, Pattern)]>,
    pub(crate) without_headers: Box<[(Arc<str>, Pattern)]>,
    pub(crate) query_params: Box<[(Arc<str>, Pattern)]>,
    pub(crate) port: Option<u16>,
    pub(crate) source: SourceMatch,
}

/// Whose requests a match is about (V-11, V-12).
#[derive(Debug)]
pub(crate) enum SourceMatch {
    /// `gateways`: whether the mesh is among them. Nothing else about the source counts then.
    Gateways(bool),
    /// `sourceLabels` and `sourceNamespace`.
    Workload { labels: Labels, namespace: Option<Arc<str>> },
}

/// Whether a list of gateways contains the mesh.
pub(crate) fn includes_mesh(gateways: &[Arc<str>]) -> bool {
    gateways.iter().any(|gateway| &**gateway == MESH)
}

/// Compiles a VirtualService with the rules of its delegates merged in.
pub(super) fn compile(
    source: &Arc<VirtualService>,
    rules: &[Merged],
    visibility: Visibility,
    expressions: &mut Expressions,
) -> CompiledVirtualService {
    let key = &source.meta.key;
    let object = ObjectRef::new(Kind::VirtualService, key.namespace.clone(), key.name.clone());
    CompiledVirtualService {
        source: source.clone(),
        visibility,
        mesh: includes_mesh(&source.gateways),
        http: rules.iter().map(|merged| Arc::new(rule(&object, merged, expressions))).collect(),
        object,
    }
}

fn rule(root: &ObjectRef, merged: &Merged, expressions: &mut Expressions) -> CompiledRule {
    let written: &HttpRule = &merged.rule;
    let matches = written.matches.iter().zip(&merged.match_indices);
    let matches: Box<[_]> = matches.map(|(written, at)| compile_match(written, *at, expressions)).collect();
    let delegate = merged.delegate.as_ref();
    CompiledRule {
        object: delegate.map_or(root, |(object, _)| object).clone(),
        rule: delegate.map_or(merged.at, |(_, at)| *at),
        root: delegate.map(|_| (root.clone(), merged.at)),
        name: written.name.clone(),
        matches: (!matches.is_empty()).then_some(matches),
        action: action(&written.action),
        rewrite: written.rewrite.as_ref().map(rewrite),
        timeout: written.timeout.filter(|timeout| !timeout.is_zero()),
        retry: written.retries.as_ref().map(Retry::new),
        fault: written.fault.clone().map(Arc::new),
        mirrors: written.mirrors.iter().map(|mirror| (mirror.destination.clone(), mirror.share)).collect(),
        cors: written.cors.as_ref().map(|written| Arc::new(cors(written, expressions))),
        headers: Arc::new(written.headers.clone()),
    }
}

fn action(written: &HttpAction) -> CompiledAction {
    match written {
        HttpAction::Route(destinations) => {
            // The weight of a single destination does not count; with weights of 0 only, all get the same.
            let equal = destinations.len() == 1 || destinations.iter().all(|to| to.weight == 0);
            let weighted = destinations.iter().map(|to| CompiledTarget {
                destination: to.destination.clone(),
                weight: if equal { 1 } else { to.weight },
                headers: Arc::new(to.headers.clone()),
            });
            let targets = weighted.filter(|to| to.weight > 0).collect();
            CompiledAction::Forward(CompiledForward { targets, single: destinations.len() == 1 })
        }
        HttpAction::Redirect(redirect) => CompiledAction::Redirect(redirect.clone()),
        HttpAction::DirectResponse(response) => CompiledAction::Direct(response.clone()),
        // Delegates are merged before.
        HttpAction::Delegate(_) => {
            CompiledAction::Forward(CompiledForward { targets: Box::default(), single: false })
        }
    }
}

/// An expression that does not compile rewrites nothing; the findings say so.
fn rewrite(written: &Rewrite) -> CompiledRewrite {
    let regex = written.regex.as_ref().and_then(|(expression, replacement)| {
        let regex = crate::re2::anywhere(expression).ok()?;
        Some((regex, Replacement::new(replacement)))
    });
    CompiledRewrite { uri: written.uri.clone(), regex, authority: written.authority.clone() }
}

fn cors(written: &crate::resource::virtual_service::CorsPolicy, expressions: &mut Expressions) -> CorsPolicy {
    let origins = written.allow_origins.iter().map(|origin| Pattern::new(origin, expressions)).collect();
    CorsPolicy { written: written.clone(), origins }
}

fn compile_match(written: &HttpMatch, at: Option<usize>, expressions: &mut Expressions) -> CompiledMatch {
    let mut one = |text: &Option<TextMatch>| text.as_ref().map(|text| Pattern::new(text, expressions));
    let [uri, scheme, method, authority] =
        [&written.uri, &written.scheme, &written.method, &written.authority].map(&mut one);
    let mut fields = |fields: &[(Arc<str>, TextMatch)]| -> Box<[(Arc<str>, Pattern)]> {
        fields.iter().map(|(name, text)| (name.clone(), Pattern::new(text, expressions))).collect()
    };
    let source = match written.gateways.is_empty() {
        false => SourceMatch::Gateways(includes_mesh(&written.gateways)),
        true => SourceMatch::Workload {
            labels: written.source_labels.clone(),
            namespace: written.source_namespace.clone(),
        },
    };
    CompiledMatch {
        at,
        name: written.name.clone(),
        uri,
        ignore_uri_case: written.ignore_uri_case,
        scheme,
        method,
        authority,
        headers: fields(&written.headers),
        without_headers: fields(&written.without_headers),
        query_params: fields(&written.query_params),
        port: written.port,
        source,
    }
}

/// The Host that header changes ask for (V-17).
pub(crate) fn host_of(changes: &HeaderChanges) -> Option<&Arc<str>> {
    let mut asked = changes.set.iter().chain(&changes.add);
    asked.find(|(name, _)| crate::decide::http::is_host(name)).map(|(_, value)| value)
}
