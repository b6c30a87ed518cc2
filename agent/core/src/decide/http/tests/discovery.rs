//! Namespaces that `discoverySelectors` leave out (C-1).

use super::policies::{balancing, destination_rule};
use super::*;
use crate::decide::outbound::{OutboundDecision, outbound};
use crate::resource::destination_rule::LoadBalancer;
use crate::snapshot::Membership;

/// Selectors of namespaces with these labels.
fn settings(selectors: &[&str], registry_only: bool) -> Resource {
    let selector = |text: &&str| LabelSelector { labels: labels(text), expressions: Vec::new() };
    let discovery_selectors = selectors.iter().map(selector).collect();
    Resource::MeshConfig(MeshConfig {
        discovery_selectors,
        registry_only,
        ..MeshConfig::new(key("istio-system/istio"))
    })
}

fn labelled(name: &str, labels: &str) -> Resource {
    Resource::Namespace(namespace(name, labels, ""))
}

/// What `other` has for everybody (rules for `b`, a delegate, a policy for its own Service), and what `default` has that
/// leads there.
fn objects_of_other() -> [Resource; 5] {
    let root = HttpRule { action: HttpAction::Delegate(key("other/part")), ..HttpRule::default() };
    let rule = destination_rule("other/d", "d.other.svc.cluster.local", balancing(LoadBalancer::Random));
    [
        vs("other/b", &["b"], vec![answers(201, vec![])]),
        vs("other/part", &[], vec![answers(202, vec![])]),
        vs("default/c", &["c"], vec![root]),
        vs("default/a", &["a"], vec![super::rule(vec![], &["d.other.svc.cluster.local"])]),
        Resource::DestinationRule(rule),
    ]
}

/// Where requests of `default/client` go.
fn goes(snapshot: &Snapshot) -> [String; 4] {
    ["b", "c", "d.other", "a"].map(|host| ask(host, "/").goes(snapshot))
}

const SEEN: [&str; 4] = ["201 direct_response", "202 direct_response", "80||d.other", "80||d.other"];
const HIDDEN: [&str; 4] = ["80||b.default", "80||c.default", "passthrough", "NC 80||d.other"];

fn membership<'s>(snapshot: &'s Snapshot, pod: &str) -> &'s Membership {
    &snapshot.workload(&key(pod)).expect("the pod").membership
}

#[test]
fn nothing_of_a_namespace_that_is_left_out_counts_until_it_is_labelled() {
    let mut compiler = compiler();
    let spaces = [labelled("default", "env=prod"), labelled("other", "env=test,weft.dev/mesh=enabled")];
    compiler.apply(world().into_iter().chain(objects_of_other()).chain(spaces).map(upsert));
    let before = compiler.snapshot();
    assert_eq!(goes(&before), SEEN);
    assert!(before.opted_namespaces().contains("other") && before.problems().is_empty());

    let hidden = applied(&mut compiler, [upsert(settings(&["env=prod", "env=stage"], false))]);
    assert_eq!(goes(&hidden), HIDDEN);
    let rules = |snapshot: &Snapshot| snapshot.routing.rules.covering("d.other.svc.cluster.local").len();
    assert_eq!((rules(&before), rules(&hidden)), (1, 0));
    assert!(hidden.opted_namespaces().is_empty(), "new pods are not waited for");
    let Membership::Excluded(reason) = membership(&hidden, "other/d") else { panic!("{hidden:?}") };
    assert!(reason.contains("discoverySelectors"), "{reason}");
    assert_eq!(*membership(&hidden, "default/a"), Membership::InMesh);
    let mut told: Vec<_> = hidden.problems().iter().map(|problem| problem.code).collect();
    told.dedup();
    assert_eq!(told, ["WEFT0114", "WEFT0110", "IST0101"], "{:?}", hidden.problems());

    let selected = labelled("other", "env=stage,weft.dev/mesh=enabled");
    let after = applied(&mut compiler, [upsert(selected)]);
    assert_eq!(goes(&after), SEEN);
    assert_eq!(all_but_settings(&after), all_but_settings(&before));

    let anew = applied(&mut compiler, [upsert(labelled("other", "env=none")), upsert(settings(&[], false))]);
    assert_eq!(goes(&anew), SEEN, "without selectors all count");
}

/// Everything that a snapshot says but the settings, which are an object more.
fn all_but_settings(snapshot: &Snapshot) -> Vec<String> {
    let text = render(snapshot);
    let settings = |line: &&str| line.starts_with("mesh ") || line.starts_with("objects ");
    text.lines().filter(|line| !settings(line)).map(str::to_owned).collect()
}

#[test]
fn what_is_left_out_is_refused_where_only_the_registry_counts() {
    let objects = [labelled("other", ""), settings(&["env=prod"], true)];
    let snapshot = with(objects);
    assert_eq!(ask("d.other", "/").dials("10.96.0.4:80").goes(&snapshot), "502 block_all");
    let client = snapshot.workload(&key("default/client")).expect("the client");
    let decision = outbound(&snapshot, client, addr("10.96.0.4:9090"));
    assert!(matches!(decision, OutboundDecision::Unreachable { .. }), "{decision:?}");
}

/// A selector that forgets the root namespace opens nothing: what stands there holds for the whole mesh.
#[test]
fn the_root_namespace_always_counts() {
    let deny = || Resource::AuthorizationPolicy(policy("istio-system/no", PolicyAction::Deny, "", vec![]));
    let rule = || destination_rule("istio-system/a", "a", balancing(LoadBalancer::Random));
    let objects = [labelled("istio-system", ""), settings(&["env=prod"], false), deny()];
    let snapshot = with(objects.into_iter().chain([Resource::DestinationRule(rule())]));
    let local = snapshot.local_workload(&key("default/a")).expect("the pod");
    assert_eq!(local.policies.policies().count(), 1);
    let decision = ask("a", "/").route(&snapshot);
    assert_eq!(cluster_at(&decision, 0).policy.load_balancer, LoadBalancer::Random);
}

/// A namespace that nobody wrote is not left out: files for `weft analyze` seldom have any.
#[test]
fn namespaces_without_an_object_count() {
    assert_eq!(goes(&with(objects_of_other().into_iter().chain([settings(&["env=prod"], false)]))), SEEN);
}
