//! DestinationRules, compiled: one policy for each port and subset (D-1 to D-5).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::hosts::HostIndex;
use crate::decide::http::ClusterPolicy;
use crate::hashing::FastMap;
use crate::resource::destination_rule::{
    DestinationRule, LoadBalancer, PolicyBlocks, PoolDefaults, TrafficPolicy,
};
use crate::resource::virtual_service::ExportTo;
use crate::resource::{Kind, Labels, ObjectRef};
use crate::visibility::Visibility;

/// The rules for one host in one namespace: those for selected clients first, then by age (D-3).
pub(crate) type HostRules = Arc<[Arc<CompiledDestinationRule>]>;

/// DestinationRules of one namespace, host and audience, merged (D-2).
#[derive(Debug)]
pub(crate) struct CompiledDestinationRule {
    visibility: Visibility,
    /// Who of its own namespace, and of others, it is for at all (D-20).
    reach: RuleReach,
    selector: Option<Labels>,
    top: Policies,
    subsets: FastMap<Arc<str>, CompiledSubset>,
}

/// A subset with its policies.
#[derive(Debug)]
pub(crate) struct CompiledSubset {
    pub(crate) labels: Arc<Labels>,
    policies: Policies,
}

/// A policy for each port that has its own, and one for the others.
#[derive(Debug)]
struct Policies {
    default: Arc<ClusterPolicy>,
    ports: Box<[(u16, Arc<ClusterPolicy>)]>,
}

impl Policies {
    fn of_port(&self, port: u16) -> &Arc<ClusterPolicy> {
        self.ports.iter().find(|(number, _)| *number == port).map_or(&self.default, |(_, policy)| policy)
    }
}

impl CompiledDestinationRule {
    /// The policy of one port for the whole host.
    pub(crate) fn policy(&self, port: u16) -> &Arc<ClusterPolicy> {
        self.top.of_port(port)
    }

    /// A subset, and its policy for one port.
    pub(crate) fn subset(&self, name: &str, port: u16) -> Option<(&CompiledSubset, &Arc<ClusterPolicy>)> {
        let subset = self.subsets.get(name)?;
        Some((subset, subset.policies.of_port(port)))
    }

    /// All of it as text, for tests that compare.
    #[cfg(test)]
    pub(super) fn render(&self) -> String {
        let subsets: BTreeMap<_, _> = self.subsets.iter().collect();
        format!("{:?} {:?} {:?} {subsets:?}", self.visibility, self.selector, self.top)
    }

    /// The policy of ports that have none of their own.
    pub(crate) fn default_policy(&self) -> &Arc<ClusterPolicy> {
        &self.top.default
    }

    /// The names of all subsets, sorted.
    pub(crate) fn subset_names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.subsets.keys().cloned().collect();
        names.sort();
        names
    }

    /// The labels of all subsets.
    pub(super) fn subset_labels(&self) -> impl Iterator<Item = &Arc<Labels>> {
        self.subsets.values().map(|subset| &subset.labels)
    }
}

/// All rules by host, then by namespace.
pub(crate) type RuleIndex = HostIndex<Arc<FastMap<Arc<str>, HostRules>>>;

/// Who asks for a rule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
}

/// Whose rules a DestinationRule is among, whatever the namespaces that `exportTo` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RuleReach {
    /// Those of clients in its own namespace: unless `exportTo` names others only.
    local: bool,
    /// Those of clients elsewhere: unless it is private or has a selector (D-3).
    exported: bool,
}

impl RuleReach {
    fn of(rule: &DestinationRule, visibility: &Visibility) -> Self {
        let own = &rule.meta.key.namespace;
        let private = |namespaces: &[Arc<str>]| matches!(namespaces, [only] if only == own);
        Self {
            // What the mesh says counts for others only.
            local: rule.workload_selector.is_some() || rule.export_to.is_empty() || visibility.reaches(own),
            exported: rule.workload_selector.is_none()
                && !matches!(visibility, Visibility::Namespaces(namespaces) if private(namespaces)),
        }
    }
}

/// The rule that a client has for a host of a Service in `service`: its own namespace's before the Service's before
/// the root namespace's (D-1). In each only the most specific host counts, also where its rules are for other clients:
/// in the client's own namespace that ends the search. Clients in the root namespace have their private rules first
/// only, for what stands there is meant for everybody.
pub(crate) fn find<'a>(
    index: &'a RuleIndex,
    client: Client<'_>,
    host: &'a str,
    [service, root]: [&str; 2],
) -> Option<&'a Arc<CompiledDestinationRule>> {
    let covering = index.covering(host);
    if covering.is_empty() {
        return None;
    }
    let most_specific = |namespace: &str, counts: &dyn Fn(&CompiledDestinationRule) -> bool| {
        let rules = covering.iter().filter_map(|found| found.value.get(namespace));
        rules.map(|rules| &rules[..]).find(|rules| rules.iter().any(|rule| counts(rule)))
    };
    let in_root = client.namespace == root;
    let own = |rule: &CompiledDestinationRule| rule.reach.local && !(in_root && rule.reach.exported);
    if let Some(rules) = most_specific(client.namespace, &own) {
        let selects = |rule: &CompiledDestinationRule| {
            rule.selector.as_ref().is_none_or(|selector| selector.is_subset_of(client.labels))
        };
        return rules.iter().find(|rule| own(rule) && selects(rule));
    }
    let exported = |rule: &CompiledDestinationRule| rule.reach.exported;
    [service, root].into_iter().find_map(|namespace| {
        let mut rules = most_specific(namespace, &exported)?.iter();
        rules.find(|rule| exported(rule) && rule.visibility.reaches(client.namespace))
    })
}

/// What the mesh says where objects say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Base {
    /// `defaultTrafficPolicy` (D-21).
    pub(crate) policy: Option<Arc<TrafficPolicy>>,
    /// What stands behind single fields of a connection pool (C-1).
    pub(crate) pool: PoolDefaults,
    /// `defaultDestinationRuleExportTo`.
    pub(crate) export_to: Vec<ExportTo>,
}

impl Base {
    fn blocks(&self) -> PolicyBlocks {
        self.policy.as_ref().map(|policy| policy.blocks.clone()).unwrap_or_default()
    }
}

/// What a client gets for whom no object says anything: the mesh's default (D-21).
pub(crate) fn default_policy(base: &Base) -> ClusterPolicy {
    policy_of(None, &base.blocks(), base)
}

/// The rules of one host by namespace, merged.
pub(super) fn compile(rules: &[Arc<DestinationRule>], base: &Base) -> FastMap<Arc<str>, HostRules> {
    let mut by_namespace = BTreeMap::<Arc<str>, Vec<&DestinationRule>>::new();
    for rule in rules {
        by_namespace.entry(rule.meta.key.namespace.clone()).or_default().push(rule);
    }
    by_namespace.into_iter().map(|(namespace, rules)| (namespace, merge(rules, base))).collect()
}

fn merge(mut rules: Vec<&DestinationRule>, base: &Base) -> HostRules {
    rules.sort_by(|a, b| {
        let first = |rule: &DestinationRule| rule.workload_selector.is_none();
        first(a).cmp(&first(b)).then_with(|| a.meta.precedence().cmp(&b.meta.precedence()))
    });
    let mut groups = Vec::<(Visibility, Vec<&DestinationRule>)>::new();
    for rule in rules {
        let visibility = Visibility::new(&rule.export_to, &base.export_to, &rule.meta.key.namespace);
        let same = groups.iter_mut().find(|(known, members)| {
            let selector = members.first().map(|member| &member.workload_selector);
            *known == visibility && selector == Some(&rule.workload_selector)
        });
        match same {
            Some((_, members)) => members.push(rule),
            None => groups.push((visibility, vec![rule])),
        }
    }
    let compiled = groups.into_iter().map(|(visibility, members)| compile_group(visibility, &members, base));
    compiled.map(Arc::new).collect()
}

/// `members` are sorted by age: the first policy and the first subset of a name count (D-2).
fn compile_group(
    visibility: Visibility,
    members: &[&DestinationRule],
    base: &Base,
) -> CompiledDestinationRule {
    let leading = members.iter().find(|rule| rule.policy.is_some()).or(members.first());
    let top = leading.and_then(|rule| rule.policy.clone()).unwrap_or_default();
    let top = over(&top, base);
    let object = leading.map(|rule| reference(rule));
    let mut subsets = FastMap::default();
    for rule in members {
        for subset in &rule.subsets {
            subsets.entry(subset.name.clone()).or_insert_with(|| CompiledSubset {
                labels: Arc::new(subset.labels.clone()),
                policies: subset_policies(&top, subset.policy.as_ref(), &reference(rule), base),
            });
        }
    }
    let reach = members.first().map(|rule| RuleReach::of(rule, &visibility));
    CompiledDestinationRule {
        visibility,
        reach: reach.unwrap_or(RuleReach { local: false, exported: false }),
        selector: members.first().and_then(|rule| rule.workload_selector.clone()),
        top: policies(&top, object.as_ref(), base),
        subsets,
    }
}

fn reference(rule: &DestinationRule) -> ObjectRef {
    ObjectRef::new(Kind::DestinationRule, rule.meta.key.namespace.clone(), rule.meta.key.name.clone())
}

/// What a rule says, and the mesh's default where it says nothing (D-21). A port's blocks replace the rule's wholesale,
/// but not the mesh's (D-5); of retries only the whole host speaks.
fn over(top: &TrafficPolicy, base: &Base) -> TrafficPolicy {
    let base = base.blocks();
    let blocks = top.blocks.over(&base);
    let budget = blocks.retry_budget;
    let of_port =
        |(port, own): &(u16, PolicyBlocks)| (*port, PolicyBlocks { retry_budget: budget, ..own.over(&base) });
    TrafficPolicy { ports: top.ports.iter().map(of_port).collect(), blocks }
}

fn policies(top: &TrafficPolicy, object: Option<&ObjectRef>, base: &Base) -> Policies {
    let policy = |blocks: &PolicyBlocks| Arc::new(policy_of(object, blocks, base));
    Policies {
        default: policy(&top.blocks),
        ports: top.ports.iter().map(|(port, blocks)| (*port, policy(blocks))).collect(),
    }
}

/// Subset's port before subset before port before top: the subset overrides block by block (D-4).
fn subset_policies(
    top: &TrafficPolicy,
    own: Option<&TrafficPolicy>,
    object: &ObjectRef,
    base: &Base,
) -> Policies {
    let Some(own) = own else { return policies(top, Some(object), base) };
    let policy = |blocks: &PolicyBlocks| Arc::new(policy_of(Some(object), blocks, base));
    let mesh = base.blocks();
    let default = own.blocks.over(&top.blocks);
    let budget = default.retry_budget;
    let own_ports = own.ports.iter().map(|(port, blocks)| {
        let blocks = PolicyBlocks { retry_budget: budget, ..blocks.over(&mesh) };
        (*port, policy(&blocks))
    });
    let others = top.ports.iter().filter(|(port, _)| own.ports.iter().all(|(own, _)| own != port));
    let others = others.map(|(port, blocks)| (*port, policy(&own.blocks.over(blocks))));
    Policies { default: policy(&default), ports: own_ports.chain(others).collect() }
}

fn policy_of(object: Option<&ObjectRef>, blocks: &PolicyBlocks, base: &Base) -> ClusterPolicy {
    let balancing = blocks.load_balancer.as_ref();
    ClusterPolicy {
        object: object.cloned(),
        load_balancer: balancing.map_or(LoadBalancer::LeastRequest, |balancing| balancing.balancer.clone()),
        locality: balancing.and_then(|balancing| balancing.locality.clone()),
        warmup: balancing.and_then(|balancing| balancing.warmup),
        connection_pool: blocks.connection_pool.clone().unwrap_or_default().over(&base.pool),
        outlier_detection: blocks.outlier_detection.clone(),
        tls: blocks.tls.clone(),
        retry_budget: blocks.retry_budget,
    }
}
