//! AuthorizationPolicies of one workload, indexed so that many policies cost no more than one.
//!
//! A [`PolicySet`] has up to three layers: the policies of the whole mesh, those of the workload's namespace,
//! and those whose selector matches. The first two are shared between all pods that they concern.

mod http;
mod index;
mod keys;
mod matcher;
pub(super) mod report;

use std::sync::Arc;

use smallvec::SmallVec;

use self::index::{Index, RuleId};
use self::keys::Reads;
pub(crate) use self::matcher::{Subject, TrustDomains};
use crate::resource::{AuthorizationPolicy, Condition, PolicyAction, Rule, Source};

/// Policies that are evaluated together. Those of AUDIT are matched and never decide (AP-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Enforced policies with this action.
    Enforced(PolicyAction),
    /// Dry-run policies with this action (AP-18).
    DryRun(PolicyAction),
}

impl Class {
    fn of(policy: &AuthorizationPolicy) -> Self {
        match policy.dry_run {
            false => Self::Enforced(policy.action),
            true => Self::DryRun(policy.action),
        }
    }

    fn action(self) -> PolicyAction {
        match self {
            Self::Enforced(action) | Self::DryRun(action) => action,
        }
    }

    /// Where an index keeps the class.
    fn slot(self) -> usize {
        let action = match self.action() {
            PolicyAction::Custom => 0,
            PolicyAction::Deny => 1,
            PolicyAction::Allow => 2,
            PolicyAction::Audit => 3,
        };
        match self {
            Self::Enforced(_) => action,
            Self::DryRun(_) => action + CLASSES / 2,
        }
    }
}

const CLASSES: usize = 8;
/// As many rules are asked without a look at the index.
const FEW: usize = 3;

/// A rule that matched, with its policy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hit<'p> {
    pub(crate) policy: &'p Arc<AuthorizationPolicy>,
    pub(crate) rule: usize,
}

/// Policies of one class, in the order in which they are reported.
#[derive(Debug, Default)]
struct ClassIndex {
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// What decides on connections.
    connections: RuleIndex,
    /// What decides on requests; `None` where no rule needs HTTP, which leaves no difference.
    requests: Option<RuleIndex>,
}

/// Rules with their index.
#[derive(Debug, Default)]
struct RuleIndex {
    /// Policy and index of the rule, by the index's rule identifiers.
    rules: Vec<(u32, u32)>,
    index: Index,
}

impl RuleIndex {
    fn new(reads: Reads, policies: &[Arc<AuthorizationPolicy>], counts: impl Fn(&Rule) -> bool) -> Self {
        let evaluable = || {
            policies.iter().enumerate().flat_map(|(at, policy)| {
                let rules = policy.rules.iter().enumerate();
                let rules = rules.filter(|(_, rule)| counts(rule));
                rules.map(move |(index, rule)| ((at as u32, index as u32), rule))
            })
        };
        let rules = evaluable().map(|(at, _)| at).collect();
        let index = Index::new(reads, evaluable().map(|(_, rule)| rule));
        Self { rules, index }
    }

    /// The rules that may match, in order. Of a few each is asked: that costs less than to find out.
    fn candidates(&self, subject: &Subject<'_>) -> impl Iterator<Item = RuleId> {
        let few = self.rules.len() <= FEW;
        let all = if few { 0..self.rules.len() as RuleId } else { 0..0 };
        let indexed = (!few).then(|| self.index.candidates(subject));
        all.chain(indexed.into_iter().flatten())
    }
}

impl ClassIndex {
    fn new(action: PolicyAction, policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let connections =
            RuleIndex::new(Reads::Connections, &policies, |rule| matcher::is_evaluable(action, rule));
        let needs_http = policies.iter().flat_map(|policy| &policy.rules).any(matcher::needs_http);
        let requests = needs_http.then(|| RuleIndex::new(Reads::Requests, &policies, |_| true));
        Self { policies, connections, requests }
    }

    fn candidates<'p>(&'p self, subject: &Subject<'_>) -> impl Iterator<Item = Hit<'p>> {
        let requests = self.requests.as_ref().filter(|_| subject.is_request());
        let of = requests.unwrap_or(&self.connections);
        of.candidates(subject).filter_map(|id| {
            let (policy, rule) = of.rules.get(id as usize)?;
            Some(Hit { policy: self.policies.get(*policy as usize)?, rule: *rule as usize })
        })
    }

    fn matches<'p>(&'p self, subject: &Subject<'_>) -> impl Iterator<Item = Hit<'p>> {
        self.candidates(subject).filter(|hit| {
            let rule = hit.policy.rules.get(hit.rule);
            rule.is_some_and(|rule| subject.matches(hit.policy.action, rule))
        })
    }
}

/// The index over one layer of policies.
#[derive(Debug, Default)]
pub(crate) struct PolicyIndex {
    classes: [Option<Box<ClassIndex>>; CLASSES],
    /// Enforced DENY policies with a rule that no client without identity can match.
    identity_denies: Vec<Arc<AuthorizationPolicy>>,
    /// Policies that need HTTP, or somebody to be asked about requests.
    http: Vec<Arc<AuthorizationPolicy>>,
    reads_source_ip: bool,
    reads_destination_ip: bool,
    reads_sni: bool,
}

impl PolicyIndex {
    /// Indexes `policies`, given in any order.
    pub(crate) fn new(mut policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        policies.sort_by(|a, b| order(a).cmp(&order(b)));
        let mut this = Self::default();
        let mut classes: [Vec<Arc<AuthorizationPolicy>>; CLASSES] = Default::default();
        for policy in policies {
            let Some(class) = classes.get_mut(Class::of(&policy).slot()) else { continue };
            let denies = policy.action == PolicyAction::Deny && !policy.dry_run;
            if denies && policy.rules.iter().any(matcher::needs_identity) {
                this.identity_denies.push(policy.clone());
            }
            if policy.action == PolicyAction::Custom || policy.rules.iter().any(matcher::needs_http) {
                this.http.push(policy.clone());
            }
            this.reads_source_ip |= policy.rules.iter().any(reads_source_ip);
            this.reads_destination_ip |= policy.rules.iter().any(reads_destination_ip);
            this.reads_sni |= policy.rules.iter().any(reads_sni);
            class.push(policy);
        }
        for (slot, policies) in this.classes.iter_mut().zip(classes) {
            if let Some(first) = policies.first() {
                *slot = Some(Box::new(ClassIndex::new(first.action, policies)));
            }
        }
        this
    }

    fn class(&self, class: Class) -> Option<&ClassIndex> {
        self.classes.get(class.slot())?.as_deref()
    }

    pub(crate) fn identity_denies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.identity_denies
    }

    pub(crate) fn http_policies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.http
    }

    fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.classes.iter().flatten().flat_map(|class| class.policies.iter())
    }
}

/// The policies that select one workload.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    layers: SmallVec<[Arc<PolicyIndex>; 3]>,
    trust_domains: Arc<TrustDomains>,
}

impl PolicySet {
    pub(crate) fn new(layers: SmallVec<[Arc<PolicyIndex>; 3]>, trust_domains: Arc<TrustDomains>) -> Self {
        Self { layers, trust_domains }
    }

    /// Every policy of the set, also those that never decide (dry-run, AUDIT), in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.layers.iter().flat_map(|layer| layer.policies())
    }

    pub(crate) fn layers(&self) -> &[Arc<PolicyIndex>] {
        &self.layers
    }

    /// Whether an answer may depend on what only HTTP says.
    pub fn reads_http(&self) -> bool {
        let mut classes = self.layers.iter().flat_map(|layer| layer.classes.iter().flatten());
        classes.any(|class| class.requests.is_some())
    }

    /// Whether no policy of any kind is to be evaluated, also of those that never decide.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|layer| layer.classes.iter().all(Option::is_none))
    }

    /// Whether a policy selects the workload whose answer is enforced (ruling 1).
    pub fn enforces(&self) -> bool {
        [PolicyAction::Custom, PolicyAction::Deny, PolicyAction::Allow]
            .into_iter()
            .any(|action| self.has(Class::Enforced(action)))
    }

    /// Whether an answer may depend on the source's address.
    pub fn reads_source_ip(&self) -> bool {
        self.layers.iter().any(|layer| layer.reads_source_ip)
    }

    /// Whether an answer may depend on the destination's address.
    pub fn reads_destination_ip(&self) -> bool {
        self.layers.iter().any(|layer| layer.reads_destination_ip)
    }

    /// Whether an answer may depend on the server name of a TLS handshake.
    pub fn reads_sni(&self) -> bool {
        self.layers.iter().any(|layer| layer.reads_sni)
    }

    pub(crate) fn trust_domains(&self) -> &TrustDomains {
        &self.trust_domains
    }

    pub(crate) fn has(&self, class: Class) -> bool {
        self.layers.iter().any(|layer| layer.class(class).is_some())
    }

    /// The first policy of a class in the order of reporting, whether it matches or not.
    pub(crate) fn first_policy(&self, class: Class) -> Option<&Arc<AuthorizationPolicy>> {
        let firsts = self.layers.iter().filter_map(|layer| layer.class(class)?.policies.first());
        firsts.min_by(|a, b| order(a).cmp(&order(b)))
    }

    /// The first matching rule of a class: by age, name and namespace of the policy, then by its index.
    pub(crate) fn first_match(&self, class: Class, subject: &Subject<'_>) -> Option<Hit<'_>> {
        let firsts = self.layers.iter().filter_map(|layer| layer.class(class)?.matches(subject).next());
        firsts.min_by(|a, b| order(a.policy).cmp(&order(b.policy)))
    }

    /// The first matching rule of each policy of a class, in the order of reporting.
    pub(crate) fn first_matches(&self, class: Class, subject: &Subject<'_>) -> Vec<Hit<'_>> {
        // Most often there is none of those that never decide.
        if !self.has(class) {
            return Vec::new();
        }
        let layers = self.layers.iter().filter_map(|layer| layer.class(class));
        let mut found: Vec<_> = layers.flat_map(|index| index.matches(subject)).collect();
        found.sort_by(|a, b| order(a.policy).cmp(&order(b.policy)).then(a.rule.cmp(&b.rule)));
        found.dedup_by(|a, b| Arc::ptr_eq(a.policy, b.policy));
        found
    }

    /// Every policy of a class that matches, in the order of reporting.
    pub(crate) fn matching_policies(
        &self,
        class: Class,
        subject: &Subject<'_>,
    ) -> Vec<&Arc<AuthorizationPolicy>> {
        self.first_matches(class, subject).into_iter().map(|hit| hit.policy).collect()
    }
}

/// The order in which policies are reported: oldest first, then by name, then by namespace.
pub(crate) fn order(policy: &AuthorizationPolicy) -> (i64, &str, &str) {
    policy.meta.precedence()
}

fn reads_source_ip(rule: &Rule) -> bool {
    let by_source = |source: &Source| !source.ip_blocks.is_empty() || !source.remote_ip_blocks.is_empty();
    let by_condition =
        |condition: &Condition| matches!(condition, Condition::SourceIp(_) | Condition::RemoteIp(_));
    rule.from.iter().any(by_source) || rule.when.iter().any(by_condition)
}

fn reads_destination_ip(rule: &Rule) -> bool {
    rule.when.iter().any(|condition| matches!(condition, Condition::DestinationIp(_)))
}

fn reads_sni(rule: &Rule) -> bool {
    rule.when.iter().any(|condition| matches!(condition, Condition::Sni(_)))
}

#[cfg(test)]
pub(crate) mod tests;
