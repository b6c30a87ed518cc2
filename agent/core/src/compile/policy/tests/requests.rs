//! Rules that need HTTP, and how fast they are found.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::{
    Asked, answer, candidates, field, naive, own_domain, peer, port, random_policy, text_matches, workload,
};
use crate::compile::policy::{Class, PolicySet, Subject};
use crate::decide::http::Request;
use crate::decide::inbound::{self, InboundRequest};
use crate::decide::request_authentication::{Authentication, Claim, Claims};
use crate::decide::{AuthorizationOutcome, Verdict};
use crate::resource::*;
use crate::snapshot::LocalWorkload;
use crate::testing::{any, connection, from, identity, pattern, policy};

pub(super) const PROVIDER: &str = "known";

type TokenClaims = Vec<(&'static str, Vec<&'static str>)>;

/// A request, for the naive interpreter.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    /// Principal and claims.
    token: Option<(&'static str, TokenClaims)>,
}

impl Facts {
    pub(super) fn remote_ip(&self, peer: IpAddr) -> IpAddr {
        let forwarded = self.headers.iter().rfind(|(name, _)| *name == "x-forwarded-for");
        forwarded.and_then(|(_, value)| value.rsplit(',').next()?.trim().parse().ok()).unwrap_or(peer)
    }

    pub(super) fn principal(&self, values: &Match<StringMatch>) -> bool {
        let Some((issuer, subject)) = self.token.as_ref().and_then(|(name, _)| name.split_once('/')) else {
            return values.any.is_empty();
        };
        let both = |of: &str, wanted: &str| {
            text_matches(&pattern(of), issuer) && text_matches(&pattern(wanted), subject)
        };
        field(values, |p| {
            let written = super::written(p);
            match written.rsplit_once('/') {
                Some((of, wanted)) => both(of, wanted),
                None if written.starts_with('*') => both("*", &written),
                None if written.ends_with('*') => both(&written, "*"),
                None => false,
            }
        })
    }

    pub(super) fn operation(&self, operation: &Operation) -> bool {
        let folded = |text: &StringMatch| match text {
            StringMatch::Exact(text) => StringMatch::Exact(text.to_lowercase().into()),
            StringMatch::Prefix(text) => StringMatch::Prefix(text.to_lowercase().into()),
            StringMatch::Suffix(text) => StringMatch::Suffix(text.to_lowercase().into()),
            StringMatch::Present => StringMatch::Present,
        };
        let path = self.path.split('?').next().unwrap();
        field(&operation.methods, |p| text_matches(p, self.method))
            && field(&operation.hosts, |p| text_matches(&folded(p), &self.host.to_lowercase()))
            && field(&operation.paths, |p| match p {
                PathMatch::Text(p) => text_matches(p, path),
                PathMatch::Template(template) => template_matches(&template.to_string(), path),
            })
    }

    pub(super) fn condition(&self, key: &HttpKey, values: &Match<StringMatch>) -> bool {
        let claim = |name: &str| -> Vec<&str> {
            let claims = self.token.iter().flat_map(|(_, claims)| claims);
            claims.filter(|(key, _)| *key == name).flat_map(|(_, values)| values.iter().copied()).collect()
        };
        let found: Vec<&str> = match key {
            HttpKey::Header(name) => {
                let headers = self.headers.iter().filter(|(key, _)| **key == **name);
                let found: Vec<&str> = headers.map(|(_, value)| *value).collect();
                return field(values, |p| match p {
                    StringMatch::Present => !found.is_empty(),
                    _ => found.iter().any(|value| text_matches(p, value)),
                });
            }
            HttpKey::Principal => return self.principal(values),
            HttpKey::Audiences => claim("aud"),
            HttpKey::Presenter => claim("azp"),
            HttpKey::Claim(path) => claim(&path.join(".")),
            HttpKey::FilterMetadata(_) => Vec::new(),
        };
        field(values, |p| found.iter().any(|value| text_matches(p, value)))
    }

    fn headers(&self) -> HeaderMap {
        let headers = self.headers.iter();
        headers
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn authentication(&self) -> Authentication {
        let Some((principal, claims)) = &self.token else { return Authentication::default() };
        let text = |text: &&str| Claim::Text((*text).into());
        let entries = claims.iter().map(|(key, values)| {
            let list = Claim::List(values.iter().map(text).collect());
            match key.split_once('.') {
                Some((outer, inner)) => (outer.into(), Claim::Map(vec![(inner.into(), list)])),
                None => ((*key).into(), list),
            }
        });
        let (issuer, subject) = principal.split_once('/').unwrap();
        let claims = Claims {
            issuer: issuer.into(),
            subject: subject.into(),
            values: Claim::Map(entries.collect()),
            payload: String::new(),
        };
        let principal = claims.principal();
        Authentication { principal, claims: [claims].into_iter().collect(), ..Authentication::default() }
    }

    fn ask<T>(&self, of: impl FnOnce(&Request<'_>, &Authentication) -> T) -> T {
        let headers = self.headers();
        let request = Request {
            method: self.method,
            scheme: "http",
            authority: self.host,
            target: self.path,
            headers: &headers,
        };
        of(&request, &self.authentication())
    }
}

/// Segment by segment, as AP-10 is written.
fn template_matches(template: &str, path: &str) -> bool {
    let (mut wanted, mut found) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return true,
            (Some("{**}"), Some(_)) => {
                let rest: Vec<&str> = wanted.collect();
                return rest.is_empty();
            }
            (Some("{*}"), Some(segment)) if !segment.is_empty() => {}
            (Some(literal), Some(segment)) if literal == segment => {}
            _ => return false,
        }
    }
}

fn some<T: std::fmt::Debug + Clone + 'static>(texts: Vec<T>) -> impl Strategy<Value = Match<T>> {
    let one = prop::sample::select(texts);
    let list = move |least: usize| prop::collection::vec(one.clone(), least..3);
    prop_oneof![
        4 => list(1).prop_map(any),
        1 => (list(0), list(1)).prop_map(|(any, not)| Match { any: any.into(), not: not.into() }),
    ]
}

fn patterns(texts: &[&str]) -> impl Strategy<Value = Match<StringMatch>> + use<> {
    some(texts.iter().map(|text| pattern(text)).collect())
}

fn path(text: &str) -> PathMatch {
    PathTemplate::parse(text).map_or_else(|| PathMatch::Text(pattern(text)), PathMatch::Template)
}

pub(super) fn principals() -> impl Strategy<Value = Match<StringMatch>> {
    patterns(&["me/x", "me/*", "*/x", "*", "you/y", "me", "m*", "*x", "*e/x", "me/x*"])
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let maybe = |strategy: BoxedStrategy<Match<StringMatch>>| prop_oneof![Just(Match::default()), strategy];
    let paths = ["/", "/a", "/a/b", "/a*", "*/b", "*", "/a/{*}", "/{*}/b", "/a/{**}", "/{**}"];
    let paths: Vec<PathMatch> = paths.into_iter().map(path).collect();
    let paths = prop_oneof![Just(Match::default()), some(paths)];
    (
        super::values(port()),
        maybe(patterns(&["Shop.example", "shop.*", "*.EXAMPLE", "*", "shop.example:80"]).boxed()),
        maybe(patterns(&["GET", "P*", "*ET", "*"]).boxed()),
        paths,
    )
        .prop_map(|(ports, hosts, methods, paths)| Operation { ports, hosts, methods, paths })
}

pub(super) fn condition() -> impl Strategy<Value = Condition> {
    let keys = [
        "request.headers[x]",
        "request.headers[y]",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[group]",
        "request.auth.claims[deep][list]",
        "experimental.envoy.filters.network.redis[x]",
    ];
    let key = prop::sample::select(keys.map(|key| HttpKey::parse(key).unwrap()).to_vec());
    (key, patterns(&["1", "2", "1*", "*2", "*", "me/x"]))
        .prop_map(|(key, values)| Condition::Http { key, values })
}

fn facts() -> impl Strategy<Value = Facts> {
    let headers = prop::sample::subsequence(
        vec![
            ("x", "1"),
            ("x", "2"),
            ("x", ""),
            ("y", "12"),
            ("x-forwarded-for", "10.0.1.3"),
            ("x-forwarded-for", "192.0.2.9, 10.0.0.1"),
        ],
        0..5,
    );
    let claims = prop::sample::subsequence(
        vec![
            ("aud", vec!["1", "3"]),
            ("azp", vec!["2"]),
            ("group", vec!["12", "1"]),
            ("deep.list", vec!["2"]),
        ],
        0..4,
    );
    let token = prop::option::of((prop::sample::select(vec!["me/x", "me/y", "you/y"]), claims));
    (
        prop::sample::select(vec!["GET", "PUT", "POST", "PURGE"]),
        prop::sample::select(vec!["shop.example", "SHOP.example:80", "other.example", "shop.test"]),
        prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c?x=/a", "/z/b", "/A"]),
        headers,
        token,
    )
        .prop_map(|(method, host, path, headers, token)| Facts { method, host, path, headers, token })
}

fn providers(local: &mut LocalWorkload) {
    let provider = ExtAuthz {
        name: PROVIDER.into(),
        grpc: false,
        service: "authoriser".into(),
        port: 80,
        timeout: std::time::Duration::from_secs(1),
        fail_open: false,
        status_on_error: 403,
        path_prefix: None,
        include_request_headers: Vec::new(),
        include_additional_headers: Vec::new(),
        include_body: None,
        headers_to_upstream_on_allow: Vec::new(),
        headers_to_downstream_on_deny: Vec::new(),
        headers_to_downstream_on_allow: Vec::new(),
    };
    local.http = std::sync::Arc::new(MeshHttp { ext_authz: vec![provider.into()], ..MeshHttp::default() });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_are_answered_as_by_a_naive_reading(
        layers in prop::collection::vec(prop::collection::vec(random_policy(), 0..40), 1..4),
        asked in prop::collection::vec((peer(), prop::sample::select(vec!["10.0.0.1", "10.0.1.7"]), port(), facts()), 12),
    ) {
        let mut names = std::collections::HashSet::new();
        let layers: Vec<Vec<_>> = layers.into_iter()
            .map(|layer| layer.into_iter().filter(|policy| names.insert(policy.meta.key.clone())).collect())
            .collect();
        let all: Vec<_> = layers.iter().flatten().cloned().collect();
        let mut workload = workload(layers, own_domain());
        providers(&mut workload);
        for (id, source, port, facts) in &asked {
            let connection = connection(id.as_ref(), source, &format!("10.0.0.1:{port}"));
            let decision = facts.ask(|request, authentication| {
                inbound::request(&workload, &InboundRequest { connection, request: *request, authentication })
            }).authorization;
            let asked = Asked { connection: &connection, request: Some(facts) };
            prop_assert_eq!(answer(decision.clone()), naive(&all, asked));
            let refused = decision.action == Some(PolicyAction::Custom);
            let external = all.iter().any(|policy| {
                let custom = policy.action == PolicyAction::Custom && !policy.dry_run && policy.provider.is_some();
                custom && policy.rules.iter().any(|rule| super::rule_matches(policy.action, rule, asked))
            });
            prop_assert_eq!(decision.external.len(), usize::from(external && !refused));
        }
    }
}

/// 10,000 policies of one kind, each made from its number.
fn many(rule: impl Fn(usize) -> Rule) -> PolicySet {
    let policies =
        (0..10_000).map(|at| policy(&format!("shop/p{at}"), PolicyAction::Allow, "", vec![rule(at)]));
    PolicySet::clone(&workload(vec![policies.collect()], own_domain()).policies)
}

fn to(operation: Operation) -> Rule {
    Rule { to: vec![operation], ..Rule::default() }
}

fn when(key: &str, value: &str) -> Rule {
    let key = HttpKey::parse(key).unwrap();
    Rule { when: vec![Condition::Http { key, values: any([pattern(value)]) }], ..Rule::default() }
}

const REQUEST: Facts =
    Facts { method: "GET", host: "shop.example", path: "/items/7/price", headers: Vec::new(), token: None };

#[test]
fn ten_thousand_policies_leave_few_candidates_for_a_request() {
    let paths = |text: String| to(Operation { paths: any([path(&text)]), ..Operation::default() });
    let get = || any([pattern("GET")]);
    type Build<'b> = Box<dyn Fn(usize) -> Rule + 'b>;
    let kinds: Vec<(&str, Build<'_>)> = vec![
        ("paths", Box::new(|at| paths(format!("/items/{at}/price")))),
        ("prefixes", Box::new(|at| paths(format!("/items/{at}/*")))),
        ("suffixes", Box::new(|at| paths(format!("*/{at}/price")))),
        ("templates", Box::new(|at| paths(format!("/items/{at}/{{*}}")))),
        (
            "hosts",
            Box::new(|at| {
                to(Operation { hosts: any([pattern(&format!("h{at}.example"))]), ..Operation::default() })
            }),
        ),
        (
            "methods and paths",
            Box::new(move |at| {
                let paths = any([path(&format!("/items/{at}*"))]);
                to(Operation { methods: get(), paths, ..Operation::default() })
            }),
        ),
        (
            "one client, one path each",
            Box::new(|at| Rule {
                from: from(Source {
                    principals: any([pattern("cluster.local/ns/shop/sa/client")]),
                    ..Source::default()
                })
                .from,
                ..paths(format!("/items/{at}/price"))
            }),
        ),
        ("header values", Box::new(|at| when("request.headers[x]", &format!("v{at}")))),
        ("header names", Box::new(|at| when(&format!("request.headers[x-{at}]"), "*"))),
        ("claims", Box::new(|at| when("request.auth.claims[group]", &format!("g{at}")))),
        (
            "request principals",
            Box::new(|at| {
                let request_principals = any([pattern(&format!("me/{at}"))]);
                from(Source { request_principals, ..Source::default() })
            }),
        ),
    ];
    let id = identity("cluster.local/ns/shop/sa/client");
    let connection = connection(Some(&id), "10.1.2.3", "10.0.0.1:8080");
    let facts = Facts {
        headers: vec![("x", "v7"), ("x-9", "")],
        token: Some(("me/7", vec![("group", vec!["g1", "g2"])])),
        ..REQUEST
    };
    for (name, build) in kinds {
        let set = many(build);
        let found = facts.ask(|request, authentication| {
            let asked = InboundRequest { connection, request: *request, authentication };
            candidates(&set, &Subject::of_request(&asked, set.trust_domains(), 0))
        });
        assert!(found <= 3, "{name}: {found} candidates");
    }
}

/// The verdict over one policy, for a request of nobody.
fn verdict(action: PolicyAction, rule: Rule, facts: &Facts) -> Verdict {
    let local = workload(vec![vec![policy("shop/p", action, "", vec![rule])]], own_domain());
    let connection = connection(None, "10.1.2.3", "10.0.0.1:8080");
    facts.ask(|request, authentication| {
        inbound::request(&local, &InboundRequest { connection, request: *request, authentication }).verdict
    })
}

#[test]
fn a_deny_on_any_of_several_header_values_fires() {
    let facts = Facts { headers: vec![("x", "good"), ("x", "bad")], ..REQUEST };
    assert_eq!(
        verdict(PolicyAction::Deny, when("request.headers[x]", "bad"), &facts),
        Verdict::DenyAuthorization
    );
    // AP-21: values are not joined.
    assert_eq!(verdict(PolicyAction::Deny, when("request.headers[x]", "good,bad"), &facts), Verdict::Allow);
}

#[test]
fn pseudo_headers_are_headers_too() {
    for (key, value) in
        [(":authority", "shop.example"), ("host", "shop.*"), (":method", "GET"), (":path", "/items/*")]
    {
        let rule = when(&format!("request.headers[{key}]"), value);
        assert_eq!(verdict(PolicyAction::Allow, rule, &REQUEST), Verdict::Allow, "{key}");
    }
}

#[test]
fn a_refusal_says_which_rule() {
    let deny = policy(
        "foo/deny-admin",
        PolicyAction::Deny,
        "",
        vec![to(Operation { paths: any([path("/items*")]), ..Operation::default() })],
    );
    let allow = policy(
        "foo/allow",
        PolicyAction::Allow,
        "",
        vec![to(Operation { paths: any([path("/ok*")]), ..Operation::default() })],
    );
    let local = workload(vec![vec![deny, allow]], own_domain());
    let connection = connection(None, "10.1.2.3", "10.0.0.1:8080");
    let ask = |path: &'static str| {
        let facts = Facts { path, ..REQUEST };
        facts.ask(|request, authentication| {
            inbound::request(&local, &InboundRequest { connection, request: *request, authentication })
        })
    };
    let denied = ask("/items");
    assert_eq!(
        denied.authorization.details(),
        "rbac_access_denied_matched_policy[ns[foo]-policy[deny-admin]-rule[0]]"
    );
    let reply = denied.refusal().unwrap();
    assert_eq!((reply.status, &*reply.body), (403, &b"RBAC: access denied"[..]));
    assert_eq!(ask("/other").authorization.details(), "rbac_access_denied_matched_policy[none]");
    assert_eq!((ask("/ok?x").verdict, ask("/ok").refusal()), (Verdict::Allow, None));
}

#[test]
fn a_provider_that_nobody_knows_denies_what_its_rules_match() {
    let mut custom = policy(
        "foo/ask",
        PolicyAction::Custom,
        "",
        vec![to(Operation { paths: any([path("/items*")]), ..Operation::default() })],
    );
    custom.provider = Some(PROVIDER.into());
    let mut local = workload(vec![vec![custom]], own_domain());
    let connection = connection(None, "10.1.2.3", "10.0.0.1:8080");
    let ask = |local: &LocalWorkload, path: &'static str| {
        Facts { path, ..REQUEST }.ask(|request, authentication| {
            inbound::request(local, &InboundRequest { connection, request: *request, authentication })
        })
    };
    let unknown = ask(&local, "/items");
    assert_eq!(unknown.verdict, Verdict::DenyAuthorization);
    assert_eq!(unknown.authorization.action, Some(PolicyAction::Custom));
    assert_eq!(ask(&local, "/other").verdict, Verdict::Allow);
    providers(&mut local);
    let known = ask(&local, "/items");
    assert_eq!((known.verdict, known.authorization.outcome), (Verdict::Allow, AuthorizationOutcome::Allow));
    let check = &known.authorization.external[0];
    assert_eq!((&*check.provider.name, check.rule), (PROVIDER, 0));
    assert!(ask(&local, "/other").authorization.external.is_empty());
    assert!(local.policies.has(Class::Enforced(PolicyAction::Custom)) && local.policies.reads_http());
}
