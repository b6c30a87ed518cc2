mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use smallvec::SmallVec;

use super::*;
use crate::Identity;
use crate::decide::{AuthorizationDecision, AuthorizationOutcome, InboundConnection, inbound::inbound};
use crate::resource::*;
use crate::snapshot::{EffectiveMode, LocalWorkload, PeerAuthenticationModes};
use crate::testing::{self, any, connection, from, identity, pattern, policy, principals, to_ports};

/// A workload with these policies and nothing else.
fn workload(layers: Vec<Vec<AuthorizationPolicy>>, trust_domains: TrustDomains) -> LocalWorkload {
    let pod = testing::compile([Resource::Pod(testing::pod("shop/web", &["10.0.0.1"], ""))]);
    let local = (*pod.local()[0]).clone();
    let layers: SmallVec<_> = layers
        .into_iter()
        .map(|policies| Arc::new(PolicyIndex::new(policies.into_iter().map(Arc::new).collect())))
        .collect();
    LocalWorkload { policies: Arc::new(PolicySet::new(layers, Arc::new(trust_domains))), ..local }
}

fn own_domain() -> TrustDomains {
    TrustDomains::new(&"cluster.local".into(), &["old.example".into()])
}

fn candidates(set: &PolicySet, subject: &Subject<'_>) -> usize {
    let indices = set.layers.iter().flat_map(|layer| layer.classes.iter().flatten());
    indices.map(|index| index.candidates(subject).count()).sum()
}

const CLIENT: &str = "cluster.local/ns/shop/sa/client";

/// 10,000 policies of one kind, each made from its number.
fn many(rule: impl Fn(usize) -> Rule) -> PolicySet {
    let policies =
        (0..10_000).map(|at| policy(&format!("shop/p{at}"), PolicyAction::Deny, "", vec![rule(at)]));
    PolicySet::clone(&workload(vec![policies.collect()], own_domain()).policies)
}

#[test]
fn ten_thousand_policies_leave_few_candidates() {
    let id = identity(CLIENT);
    let sni =
        InboundConnection { sni: Some("s7.example"), ..connection(Some(&id), "10.1.2.3", "10.0.0.1:8080") };
    let net = |text: String| -> IpNet { text.parse().unwrap() };
    let account =
        |at: usize| ServiceAccountMatch { namespace: "shop".into(), name: format!("sa{at}").into() };
    type Build<'b> = Box<dyn Fn(usize) -> Rule + 'b>;
    let kinds: Vec<(&str, Build<'_>)> = vec![
        ("principals", Box::new(|at| from(principals(&[&format!("cluster.local/ns/shop/sa/c{at}")])))),
        ("prefixes", Box::new(|at| from(principals(&[&format!("cluster.local/ns/n{at}/*")])))),
        ("suffixes", Box::new(|at| from(principals(&[&format!("*/sa/c{at}")])))),
        (
            "namespaces",
            Box::new(|at| {
                from(Source {
                    namespaces: any([NamespaceMatch(format!("n{at}").into())]),
                    ..Source::default()
                })
            }),
        ),
        (
            "namespace patterns",
            Box::new(|at| {
                from(Source {
                    namespaces: any([NamespaceMatch(format!("n{at}-*x*").into())]),
                    ..Source::default()
                })
            }),
        ),
        (
            "accounts",
            Box::new(|at| from(Source { service_accounts: any([account(at)]), ..Source::default() })),
        ),
        (
            "blocks",
            Box::new(|at| {
                let block = net(format!("172.16.{}.{}/32", at / 250, at % 250));
                from(Source { ip_blocks: any([block]), ..Source::default() })
            }),
        ),
        ("ports", Box::new(|at| to_ports(&[10_000 + at as u16]))),
        (
            "names",
            Box::new(|at| Rule {
                when: vec![Condition::Sni(any([pattern(&format!("s{at}.example"))]))],
                ..Rule::default()
            }),
        ),
        (
            "one client, many ports",
            Box::new(|at| Rule { from: vec![principals(&[CLIENT])], ..to_ports(&[10_000 + at as u16]) }),
        ),
        (
            "hundred clients by hundred ports",
            Box::new(|at| Rule {
                from: vec![principals(&[&format!("cluster.local/ns/shop/sa/client{}", at % 100)])],
                ..to_ports(&[8080 + (at / 100) as u16])
            }),
        ),
        (
            "alternatives",
            Box::new(|at| Rule {
                from: vec![
                    principals(&[
                        &format!("cluster.local/ns/shop/sa/c{at}"),
                        &format!("cluster.local/ns/b/sa/c{at}"),
                    ]),
                    Source { service_accounts: any([account(at)]), ..Source::default() },
                ],
                ..to_ports(&[8080, 8081])
            }),
        ),
    ];
    for (name, build) in kinds {
        let set = many(build);
        let found = candidates(&set, &Subject::new(&sni, set.trust_domains()));
        assert!(found <= 2, "{name}: {found} candidates");
    }
}

#[test]
fn rules_that_match_nearly_everything_end_the_search_at_once() {
    let set = many(|_| from(Source { principals: testing::not([pattern("nobody")]), ..Source::default() }));
    let id = identity(CLIENT);
    let connection = connection(Some(&id), "10.1.2.3", "10.0.0.1:8080");
    let subject = Subject::new(&connection, set.trust_domains());
    let hit = set.first_match(Class::Enforced(PolicyAction::Deny), &subject).unwrap();
    assert_eq!(&*hit.policy.meta.key.name, "p0");
}

#[test]
fn the_oldest_policy_is_reported() {
    let deny = |name: &str, created: Option<i64>| {
        let mut policy = policy(name, PolicyAction::Deny, "", vec![to_ports(&[1]), Rule::default()]);
        policy.meta.created = created;
        policy
    };
    let report = |layers: Vec<Vec<AuthorizationPolicy>>| {
        let connection = connection(None, "10.1.2.3", "10.0.0.1:8080");
        let decision = inbound(&workload(layers, own_domain()), &connection).authorization;
        assert_eq!(decision.rule, Some(1));
        decision.object.unwrap().to_string()
    };
    let by_age = vec![vec![deny("a/b", Some(5)), deny("a/c", Some(4))], vec![deny("a/a", Some(6))]];
    assert_eq!(report(by_age), "AuthorizationPolicy a/c");
    let by_name = vec![vec![deny("a/b", None)], vec![deny("z/a", None), deny("y/a", None)]];
    assert_eq!(report(by_name), "AuthorizationPolicy y/a");
}

// The naive interpreter: reads policies from first to last, as the specification is written.

fn text_matches(pattern: &StringMatch, value: &str) -> bool {
    match pattern {
        StringMatch::Exact(text) => value == &**text,
        StringMatch::Prefix(text) => value.get(..text.len()) == Some(text),
        StringMatch::Suffix(text) => value.len() >= text.len() && value[value.len() - text.len()..] == **text,
        StringMatch::Present => !value.is_empty(),
    }
}

fn namespace_matches(pattern: &[u8], value: &[u8]) -> bool {
    match (pattern, value) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            namespace_matches(rest, value) || (!value.is_empty() && namespace_matches(pattern, &value[1..]))
        }
        ([a, pattern @ ..], [b, value @ ..]) => a == b && namespace_matches(pattern, value),
        _ => false,
    }
}

fn field<T>(values: &Match<T>, matches: impl Fn(&T) -> bool) -> bool {
    let positive = values.any.is_empty() || values.any.iter().any(&matches);
    positive && values.not.iter().all(|value| !matches(value))
}

const OWN_DOMAINS: [&str; 2] = ["cluster.local", "old.example"];

/// As a policy writes it.
fn written(pattern: &StringMatch) -> String {
    match pattern {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Present => "*".into(),
    }
}

/// Own trust domain and alias are one, in principals of five parts; `cluster.local` is the own one here.
fn principal_matches(written_as: &StringMatch, identity: Option<&Identity>) -> bool {
    let Some(identity) = identity else { return false };
    let actual = identity.principal();
    let written = written(written_as);
    let fits = |domain: &str, own: &str| domain.strip_prefix('*').is_some_and(|end| own.ends_with(end));
    match written.split_once('/') {
        Some((domain, rest))
            if rest.split('/').count() == 4
                && domain != "*"
                && OWN_DOMAINS.iter().any(|own| domain == *own || fits(domain, own)) =>
        {
            OWN_DOMAINS.iter().any(|own| {
                let replaced = format!("{own}/{rest}");
                let text = if fits(domain, own) { &written } else { &replaced };
                text_matches(&pattern(text), &actual)
            })
        }
        _ => text_matches(written_as, &actual),
    }
}

fn trust_domain_matches(pattern: &StringMatch, domain: &str) -> bool {
    let own = |name: &str| OWN_DOMAINS.contains(&name);
    text_matches(pattern, domain) || (own(&written(pattern)) && own(domain))
}

/// What is decided: a connection, or a request on it.
#[derive(Clone, Copy)]
struct Asked<'a> {
    connection: &'a InboundConnection<'a>,
    request: Option<&'a requests::Facts>,
}

fn rule_matches(action: PolicyAction, rule: &Rule, asked: Asked<'_>) -> bool {
    let Asked { connection, request } = asked;
    let id = connection.identity;
    let remote = request.map_or(connection.source_ip, |request| request.remote_ip(connection.source_ip));
    let principal = |m: &Match<StringMatch>| field(m, |p| principal_matches(p, id));
    let namespace = |m: &Match<NamespaceMatch>| {
        field(m, |p| id.is_some_and(|id| namespace_matches(p.0.as_bytes(), id.namespace().as_bytes())))
    };
    let account = |m: &Match<ServiceAccountMatch>| {
        field(m, |a| id.is_some_and(|id| (id.namespace(), id.service_account()) == (&*a.namespace, &*a.name)))
    };
    let source_ip = |m: &Match<IpNet>| field(m, |net| net.contains(&connection.source_ip));
    let remote_ip = |m: &Match<IpNet>| field(m, |net| net.contains(&remote));
    let port = |m: &Match<u16>| field(m, |port| *port == connection.destination.port());
    let mut http = false;
    let from = rule.from.iter().map(|source| {
        http |= !source.request_principals.is_empty();
        principal(&source.principals)
            && namespace(&source.namespaces)
            && account(&source.service_accounts)
            && source_ip(&source.ip_blocks)
            && remote_ip(&source.remote_ip_blocks)
            && request.is_none_or(|request| request.principal(&source.request_principals))
    });
    let from = from.collect::<Vec<_>>();
    let to = rule.to.iter().map(|operation| {
        http |= operation.has_http();
        port(&operation.ports) && request.is_none_or(|request| request.operation(operation))
    });
    let to = to.collect::<Vec<_>>();
    let when = rule.when.iter().map(|condition| match condition {
        Condition::SourceIp(m) => source_ip(m),
        Condition::RemoteIp(m) => remote_ip(m),
        Condition::SourceNamespace(m) => namespace(m),
        Condition::SourcePrincipal(m) => principal(m),
        Condition::SourceServiceAccount(m) => account(m),
        Condition::SourceTrustDomain(m) => {
            field(m, |p| id.is_some_and(|id| trust_domain_matches(p, id.trust_domain())))
        }
        Condition::DestinationIp(m) => field(m, |net| net.contains(&connection.destination.ip())),
        Condition::DestinationPort(m) => port(m),
        Condition::Sni(m) => field(m, |p| connection.sni.is_some_and(|sni| text_matches(p, sni))),
        Condition::Http { key, values } => {
            http = true;
            request.is_none_or(|request| request.condition(key, values))
        }
    });
    let when = when.collect::<Vec<_>>();
    let matches = (from.is_empty() || from.contains(&true))
        && (to.is_empty() || to.contains(&true))
        && !when.contains(&false);
    matches && (request.is_some() || !(http && action == PolicyAction::Allow))
}

/// Outcome, policy and rule; dry-run answers; policies that audit, each with its rule.
type Answer = (
    (AuthorizationOutcome, Option<String>, Option<usize>),
    BTreeMap<String, AuthorizationOutcome>,
    Vec<(String, usize)>,
);

/// What was decided, in the form of the naive answer.
fn answer(decision: AuthorizationDecision) -> Answer {
    let name = |object: &ObjectRef| format!("{}/{}", object.namespace, object.name);
    let dry_run = decision.dry_run.iter().map(|dry_run| (name(&dry_run.object), dry_run.outcome)).collect();
    let audits = decision.audits.iter().map(|audit| (name(&audit.object), audit.rule)).collect();
    ((decision.outcome, decision.object.as_ref().map(name), decision.rule), dry_run, audits)
}

fn naive(policies: &[AuthorizationPolicy], asked: Asked<'_>) -> Answer {
    let mut sorted: Vec<_> = policies.iter().collect();
    sorted.sort_by_key(|p| {
        (p.meta.created.unwrap_or(i64::MIN), p.meta.key.name.clone(), p.meta.key.namespace.clone())
    });
    let name = |policy: &AuthorizationPolicy| policy.meta.key.to_string();
    let hit = |policy: &AuthorizationPolicy| {
        policy.rules.iter().position(|rule| rule_matches(policy.action, rule, asked))
    };
    let of = |action: PolicyAction, dry_run: bool| {
        sorted.iter().copied().filter(move |p| p.action == action && p.dry_run == dry_run)
    };
    let mut dry_run = BTreeMap::new();
    for action in [PolicyAction::Custom, PolicyAction::Deny] {
        for policy in of(action, true).filter(|policy| hit(policy).is_some()) {
            dry_run.insert(name(policy), AuthorizationOutcome::Deny);
        }
    }
    let allowing: Vec<_> = of(PolicyAction::Allow, true).filter(|policy| hit(policy).is_some()).collect();
    for policy in &allowing {
        dry_run.insert(name(policy), AuthorizationOutcome::Allow);
    }
    if let (true, Some(first)) = (allowing.is_empty(), of(PolicyAction::Allow, true).next()) {
        dry_run.insert(name(first), AuthorizationOutcome::Deny);
    }
    let audits = of(PolicyAction::Audit, false).filter_map(|policy| Some((name(policy), hit(policy)?)));
    let audits = audits.collect();
    for action in [PolicyAction::Custom, PolicyAction::Deny, PolicyAction::Allow] {
        for policy in of(action, false) {
            let external = asked.request.is_some() && policy.provider.is_some();
            if let (Some(rule), false) = (hit(policy), external) {
                let allow = action == PolicyAction::Allow;
                let outcome = if allow { AuthorizationOutcome::Allow } else { AuthorizationOutcome::Deny };
                return ((outcome, Some(name(policy)), Some(rule)), dry_run, audits);
            }
        }
    }
    let enforcing = sorted.iter().any(|policy| !policy.dry_run && policy.action != PolicyAction::Audit);
    let outcome = if of(PolicyAction::Allow, false).next().is_some() {
        AuthorizationOutcome::Deny
    } else if enforcing {
        AuthorizationOutcome::Allow
    } else {
        AuthorizationOutcome::None
    };
    ((outcome, None, None), dry_run, audits)
}

// Random policies over a small world, so that things meet.

fn values<T: std::fmt::Debug + Clone + 'static>(
    one: impl Strategy<Value = T> + Clone + 'static,
) -> BoxedStrategy<Match<T>> {
    let list = move |most: usize| prop::collection::vec(one.clone(), 0..=most);
    prop_oneof![
        4 => Just(Match::default()),
        3 => list(3).prop_map(any),
        1 => (list(2), list(2)).prop_map(|(any, not)| Match { any: any.into(), not: not.into() }),
    ]
    .boxed()
}

fn principal_pattern() -> impl Strategy<Value = StringMatch> + Clone {
    let texts = [
        "*",
        "cluster.local/ns/a/sa/x",
        "cluster.local/ns/a/sa/y",
        "old.example/ns/b/sa/x",
        "other/ns/a/sa/x",
        "cluster.local/ns/a/*",
        "cluster.local/*",
        "*/sa/x",
        "*/ns/b/sa/y",
        "old*",
        "*y",
        "nobody",
    ];
    prop::sample::select(texts.to_vec()).prop_map(pattern)
}

fn namespace_pattern() -> impl Strategy<Value = NamespaceMatch> + Clone {
    prop::sample::select(vec!["a", "b", "a*", "*b", "*", "a-*-c", "*-*"])
        .prop_map(|text| NamespaceMatch(text.into()))
}

fn account() -> impl Strategy<Value = ServiceAccountMatch> + Clone {
    let namespaces = prop::sample::select(vec!["a", "b", "a-b-c"]);
    let names = prop::sample::select(vec!["x", "y"]);
    (namespaces, names)
        .prop_map(|(namespace, name)| ServiceAccountMatch { namespace: namespace.into(), name: name.into() })
}

fn block() -> impl Strategy<Value = IpNet> + Clone {
    let texts =
        vec!["0.0.0.0/0", "10.0.0.0/8", "10.0.0.9/24", "10.0.0.1/32", "10.0.1.0/24", "::/0", "fd00::/64"];
    prop::sample::select(texts).prop_map(|text| text.parse().unwrap())
}

fn port() -> impl Strategy<Value = u16> + Clone {
    prop::sample::select(vec![80, 443, 8080])
}

fn sni_pattern() -> impl Strategy<Value = StringMatch> + Clone {
    prop::sample::select(vec!["*", "a.example", "a.*", "*.example"]).prop_map(pattern)
}

fn source() -> impl Strategy<Value = Source> {
    let http = prop_oneof![12 => Just(Match::default()), 2 => requests::principals()];
    (
        values(principal_pattern()),
        values(namespace_pattern()),
        values(account()),
        values(block()),
        values(block()),
        http,
    )
        .prop_map(
            |(principals, namespaces, service_accounts, ip_blocks, remote_ip_blocks, request_principals)| {
                Source {
                    principals,
                    namespaces,
                    service_accounts,
                    ip_blocks,
                    remote_ip_blocks,
                    request_principals,
                }
            },
        )
}

fn operation() -> impl Strategy<Value = Operation> {
    let plain = values(port()).prop_map(|ports| Operation { ports, ..Operation::default() });
    prop_oneof![3 => plain, 2 => requests::operation()]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        values(block()).prop_map(Condition::SourceIp),
        values(block()).prop_map(Condition::RemoteIp),
        values(namespace_pattern()).prop_map(Condition::SourceNamespace),
        values(principal_pattern()).prop_map(Condition::SourcePrincipal),
        values(account()).prop_map(Condition::SourceServiceAccount),
        values(prop::sample::select(vec!["cluster.local", "old*", "*", "other"]).prop_map(pattern))
            .prop_map(Condition::SourceTrustDomain),
        values(block()).prop_map(Condition::DestinationIp),
        values(port()).prop_map(Condition::DestinationPort),
        values(sni_pattern()).prop_map(Condition::Sni),
        requests::condition(),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let from = prop::collection::vec(source(), 0..3);
    let to = prop::collection::vec(operation(), 0..3);
    let when = prop::collection::vec(condition(), 0..2);
    (from, to, when).prop_map(|(from, to, when)| Rule { from, to, when })
}

pub(crate) fn random_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![
        3 => Just(PolicyAction::Allow),
        3 => Just(PolicyAction::Deny),
        1 => Just(PolicyAction::Audit),
        1 => Just(PolicyAction::Custom),
    ];
    let name = ("[a-c]", 0..1000u32).prop_map(|(namespace, name)| format!("{namespace}/p{name}"));
    let dry_run = prop::bool::weighted(0.2);
    let created = prop::option::of(0..3i64);
    (name, created, action, dry_run, prop::collection::vec(rule(), 0..4)).prop_map(
        |(name, created, action, dry_run, rules)| {
            let mut policy = policy(&name, action, "", rules);
            policy.dry_run = dry_run;
            policy.provider = Some(requests::PROVIDER.into())
                .filter(|_| action == PolicyAction::Custom && created == Some(1));
            policy.meta.created = created;
            policy
        },
    )
}

fn peer() -> impl Strategy<Value = Option<Identity>> {
    let domains = prop::sample::select(vec!["cluster.local", "old.example", "other"]);
    let namespaces = prop::sample::select(vec!["a", "b", "a-b-c"]);
    let names = prop::sample::select(vec!["x", "y"]);
    prop::option::weighted(0.8, (domains, namespaces, names).prop_map(|(d, n, s)| Identity::new(d, n, s)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_answers_as_a_naive_reading(
        layers in prop::collection::vec(prop::collection::vec(random_policy(), 0..40), 1..4),
        peers in prop::collection::vec((peer(), prop::sample::select(vec!["10.0.0.1", "10.0.1.7", "192.0.2.1", "fd00::1"]),
            port(), prop::option::of(prop::sample::select(vec!["a.example", "b.test"]))), 12),
    ) {
        // Two policies cannot have one name.
        let mut names = std::collections::HashSet::new();
        let layers: Vec<Vec<_>> = layers.into_iter()
            .map(|layer| layer.into_iter().filter(|policy| names.insert(policy.meta.key.clone())).collect())
            .collect();
        let all: Vec<_> = layers.iter().flatten().cloned().collect();
        let workload = workload(layers, own_domain());
        for (id, source, port, sni) in &peers {
            let destination = if source.contains(':') { format!("[fd00::2]:{port}") } else { format!("10.0.0.1:{port}") };
            let connection = InboundConnection { sni: *sni, ..connection(id.as_ref(), source, &destination) };
            let decision = inbound(&workload, &connection).authorization;
            prop_assert_eq!(answer(decision), naive(&all, Asked { connection: &connection, request: None }));
        }
    }
}

#[test]
fn strict_comes_before_policies() {
    let allow = policy("shop/all", PolicyAction::Allow, "", vec![Rule::default()]);
    let mut local = workload(vec![vec![allow]], own_domain());
    let mode = |mode| EffectiveMode { mode, object: None };
    local.peer_authentication = PeerAuthenticationModes {
        default: mode(MtlsMode::Strict),
        ports: vec![(80, mode(MtlsMode::Permissive)), (81, mode(MtlsMode::Disable))],
    };
    let id = identity(CLIENT);
    let ask = |id: Option<&Identity>, port: u16| {
        let decision = inbound(&local, &connection(id, "10.1.2.3", &format!("10.0.0.1:{port}")));
        (decision.verdict, decision.authorization.outcome)
    };
    use crate::decide::Verdict;
    assert_eq!(ask(None, 8080), (Verdict::DenyPeerAuthentication, AuthorizationOutcome::None));
    assert_eq!(ask(Some(&id), 8080), (Verdict::Allow, AuthorizationOutcome::Allow));
    assert_eq!(ask(None, 80), (Verdict::Allow, AuthorizationOutcome::Allow));
    assert_eq!(ask(None, 81), (Verdict::Allow, AuthorizationOutcome::Allow));
}
