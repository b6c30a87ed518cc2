//! AuthorizationPolicy, validated as Istio's admission does (AP-2, AP-3, AP-7, AP-12, AP-15, X-16).

pub(super) mod targets;
mod wire;

use std::sync::Arc;

use weft_core::resource::{
    AuthorizationPolicy, Condition, HttpKey, Kind, Match, NamespaceMatch, Operation, PathMatch, PathTemplate,
    PolicyAction, Resource, Rule, Source,
};

use super::Read;
use super::fields::{Body, List, Text};
use super::intern::Interner;
use super::meta::{self, MetaWire, ObjectWire};
use super::report::{Path, Place, Report};
use super::validate::{self, Invalid, each};
use crate::codes;
use targets::Targets;
use wire::{ConditionWire, FromWire, OperationWire, PolicySpec, RuleWire, SourceWire, ToWire};

/// Most service accounts that one source may list (AP-7).
const MAX_SERVICE_ACCOUNTS: usize = 16;

/// Reads the rules of one policy.
struct Reader<'r, 'a> {
    interner: &'r mut Interner,
    report: &'r mut Report<'a>,
    namespace: Arc<str>,
}

pub(super) fn authorization_policy<'a>(
    body: Body<'_>,
    place: Place<'a>,
    interner: &mut Interner,
) -> Read<'a> {
    let wire: ObjectWire<'_, PolicySpec<'_>> = body.read()?;
    let (meta, mut report) = meta::namespaced(&wire.metadata, Kind::AuthorizationPolicy, place, interner);
    let spec = wire.spec.unwrap_or_default();
    let action = action(&spec, &mut report);
    let dry_run = dry_run(&wire.metadata, action, &mut report);
    validate::no_reserved_annotations(&wire.metadata, &mut report);
    let targets = Targets { selector: &spec.selector, one: &spec.target_ref, several: &spec.target_refs };
    targets.check(&mut report);
    check_action(&spec, action, &mut report);
    let selector = validate::selector(spec.selector.as_ref(), interner, &mut report);
    let targets_gateway = targets.are_set();
    let mut reader = Reader { interner, report: &mut report, namespace: meta.key.namespace.clone() };
    let rules = reader.rules(&spec.rules.items);
    let provider = spec.provider.as_ref().and_then(|provider| provider.name.non_empty()).map(Into::into);
    let policy = AuthorizationPolicy { meta, selector, targets_gateway, action, provider, dry_run, rules };
    Ok((Resource::AuthorizationPolicy(policy), report))
}

fn action(spec: &PolicySpec<'_>, report: &mut Report<'_>) -> PolicyAction {
    match spec.action.as_ref().map_or("ALLOW", Text::as_str) {
        "ALLOW" => PolicyAction::Allow,
        "DENY" => PolicyAction::Deny,
        "AUDIT" => PolicyAction::Audit,
        "CUSTOM" => PolicyAction::Custom,
        other => {
            let message = format!("`{other}` is not an action.");
            report.reject("spec.action", message, "Write ALLOW, DENY, AUDIT or CUSTOM.");
            PolicyAction::Deny
        }
    }
}

fn dry_run(metadata: &MetaWire<'_>, action: PolicyAction, report: &mut Report<'_>) -> bool {
    match action {
        PolicyAction::Allow | PolicyAction::Deny => validate::dry_run(metadata, report),
        PolicyAction::Audit | PolicyAction::Custom => {
            validate::no_dry_run(metadata, report);
            false
        }
    }
}

/// What an action needs and excludes (AP-2, AP-17).
fn check_action(spec: &PolicySpec<'_>, action: PolicyAction, report: &mut Report<'_>) {
    let has_rules = !spec.rules.items.is_empty();
    let provider = spec.provider.as_ref().and_then(|provider| provider.name.non_empty());
    match action {
        PolicyAction::Allow | PolicyAction::Audit => {}
        PolicyAction::Deny | PolicyAction::Custom if !has_rules => {
            let message =
                format!("{} without rules never matches, so the policy would do nothing.", action.as_str());
            report.reject(
                "spec.rules",
                message,
                "Write the rules; one empty rule (`- {}`) matches everything.",
            );
        }
        PolicyAction::Deny => {}
        PolicyAction::Custom => {
            if provider.is_none() {
                let message = "CUSTOM needs the provider that decides.";
                report.reject("spec.provider.name", message, "Name one of MeshConfig's extensionProviders.");
            }
            check_custom_rules(&spec.rules.items, report);
        }
    }
    if action != PolicyAction::Custom && spec.provider.is_some() {
        let message = format!("A provider decides only for CUSTOM, not for {}.", action.as_str());
        report.reject("spec.provider", message, "Remove it, or set `action: CUSTOM`.");
    }
}

/// CUSTOM is asked before identities are known: fields tied to them are not allowed.
fn check_custom_rules(rules: &[RuleWire<'_>], report: &mut Report<'_>) {
    let root = Path::Root("spec.rules");
    let fix = "Remove the field, or use ALLOW or DENY.";
    for (at, rule) in rules.iter().enumerate() {
        let rule_path = root.index(at);
        let from_path = rule_path.field("from");
        for (at, source) in
            rule.from.items.iter().enumerate().filter_map(|(at, from)| Some((at, from.source.as_ref()?)))
        {
            let lists = [
                ("namespaces", &source.namespaces),
                ("notNamespaces", &source.not_namespaces),
                ("serviceAccounts", &source.service_accounts),
                ("notServiceAccounts", &source.not_service_accounts),
                ("trustDomains", &source.trust_domains),
                ("notTrustDomains", &source.not_trust_domains),
                ("principals", &source.principals),
                ("notPrincipals", &source.not_principals),
                ("requestPrincipals", &source.request_principals),
                ("notRequestPrincipals", &source.not_request_principals),
            ];
            for (name, _) in lists.iter().filter(|(_, list)| !list.items.is_empty()) {
                let source_path = from_path.index(at);
                let message = format!("`{name}` is not supported with CUSTOM.");
                report.reject(source_path.field("source").field(name), message, fix);
            }
        }
        let when_path = rule_path.field("when");
        for (at, condition) in rule.when.items.iter().enumerate() {
            let key = condition.key.as_str();
            let identity =
                ["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];
            if identity.contains(&key) || key.starts_with("request.auth.") {
                let message = format!("`{key}` is not supported with CUSTOM.");
                report.reject(when_path.index(at).field("key"), message, fix);
            }
        }
    }
}

impl Reader<'_, '_> {
    fn rules(&mut self, wires: &[RuleWire<'_>]) -> Vec<Rule> {
        let root = Path::Root("spec.rules");
        let mut rules = Vec::with_capacity(wires.len());
        // A source's trust domains are a condition on the rule, so each source that has some gets a rule of its
        // own. These stand after all others: the numbers of the rules stay those of the text (AP-23).
        let mut split = Vec::new();
        for (at, wire) in wires.iter().enumerate() {
            self.rule(wire, &root.index(at), &mut rules, &mut split);
        }
        rules.append(&mut split);
        rules
    }

    fn rule(&mut self, wire: &RuleWire<'_>, at: &Path<'_>, rules: &mut Vec<Rule>, split: &mut Vec<Rule>) {
        self.warn_of_hollow_lists(wire, at);
        let to = self.operations(&wire.to.items, &at.field("to"));
        let when = self.conditions(&wire.when.items, &at.field("when"));
        let (mut plain, mut bound) = (Vec::new(), Vec::new());
        for (source, domains) in self.sources(&wire.from.items, &at.field("from")) {
            match domains {
                None => plain.push(source),
                Some(domains) => bound.push((source, domains)),
            }
        }
        let mut bound = bound.into_iter().map(|(source, domains)| {
            let mut when = when.clone();
            when.push(Condition::SourceTrustDomain(domains));
            Rule { from: vec![source], to: to.clone(), when }
        });
        let first = if plain.is_empty() { bound.next() } else { None };
        split.extend(bound);
        // There may be ten thousand of them, mostly with one source each.
        plain.shrink_to_fit();
        rules.push(first.unwrap_or(Rule { from: plain, to, when }));
    }

    /// `from:` without anything below it is easily written by accident and matches everything.
    fn warn_of_hollow_lists(&mut self, wire: &RuleWire<'_>, at: &Path<'_>) {
        let lists =
            [("from", wire.from.is_hollow()), ("to", wire.to.is_hollow()), ("when", wire.when.is_hollow())];
        for (name, _) in lists.into_iter().filter(|(_, hollow)| *hollow) {
            let message = format!("`{name}` is empty and therefore matches everything.");
            let fix = format!("Write what is to match, or remove `{name}`.");
            self.report.add(codes::MATCHES_EVERYTHING, at.field(name), message, fix);
        }
    }

    fn sources(&mut self, wires: &[FromWire<'_>], at: &Path<'_>) -> Vec<(Source, Option<TrustDomains>)> {
        let mut sources = Vec::with_capacity(wires.len());
        for (index, wire) in wires.iter().enumerate() {
            let at = at.index(index);
            let at = at.field("source");
            match &wire.source {
                None => {
                    let message = "`source` has no value; what stands beside it must be indented below it.";
                    self.report.reject(at, message, "Indent the fields of the source below `source:`.");
                }
                Some(wire) => sources.push(self.source(wire, &at)),
            }
        }
        sources
    }

    fn source(&mut self, wire: &SourceWire<'_>, at: &Path<'_>) -> (Source, Option<TrustDomains>) {
        let source = Source {
            principals: self.patterns(
                ("principals", &wire.principals),
                ("notPrincipals", &wire.not_principals),
                at,
            ),
            namespaces: self.namespaces(
                ("namespaces", &wire.namespaces),
                ("notNamespaces", &wire.not_namespaces),
                at,
            ),
            service_accounts: self.accounts(
                ("serviceAccounts", &wire.service_accounts),
                ("notServiceAccounts", &wire.not_service_accounts),
                at,
            ),
            ip_blocks: self.blocks(("ipBlocks", &wire.ip_blocks), ("notIpBlocks", &wire.not_ip_blocks), at),
            remote_ip_blocks: self.blocks(
                ("remoteIpBlocks", &wire.remote_ip_blocks),
                ("notRemoteIpBlocks", &wire.not_remote_ip_blocks),
                at,
            ),
            request_principals: self.patterns(
                ("requestPrincipals", &wire.request_principals),
                ("notRequestPrincipals", &wire.not_request_principals),
                at,
            ),
        };
        let domains = self.trust_domains(
            ("trustDomains", &wire.trust_domains),
            ("notTrustDomains", &wire.not_trust_domains),
            (at, validate::trust_domain),
        );
        self.check_source(wire, at);
        (source, Some(domains).filter(|domains| !domains.is_empty()))
    }

    fn check_source(&mut self, wire: &SourceWire<'_>, at: &Path<'_>) {
        let identities = [&wire.principals, &wire.not_principals, &wire.namespaces, &wire.not_namespaces];
        let accounts = [&wire.service_accounts, &wire.not_service_accounts];
        let others = [
            &wire.request_principals,
            &wire.not_request_principals,
            &wire.trust_domains,
            &wire.not_trust_domains,
            &wire.ip_blocks,
            &wire.not_ip_blocks,
            &wire.remote_ip_blocks,
            &wire.not_remote_ip_blocks,
        ];
        let some = |lists: &[&List<Text<'_>>]| lists.iter().any(|list| !list.items.is_empty());
        if !some(&identities) && !some(&accounts) && !some(&others) {
            let message = "`source` is empty.";
            self.report.reject(
                at,
                message,
                "Write what it is to match, or remove `from` to match every source.",
            );
        }
        // Empty lists count as well: the schema asks whether they are there.
        let there = |lists: &[&List<Text<'_>>]| lists.iter().any(|list| list.listed);
        if there(&identities) && there(&accounts) {
            let message = "Service accounts cannot stand beside principals or namespaces in one source.";
            self.report.reject(at, message, "Write two sources, or only one of the fields.");
        }
    }

    fn operations(&mut self, wires: &[ToWire<'_>], at: &Path<'_>) -> Vec<Operation> {
        let mut operations = Vec::with_capacity(wires.len());
        for (index, wire) in wires.iter().enumerate() {
            let at = at.index(index);
            let at = at.field("operation");
            match &wire.operation {
                None => {
                    let message =
                        "`operation` has no value; what stands beside it must be indented below it.";
                    self.report.reject(at, message, "Indent the fields of the operation below `operation:`.");
                }
                Some(wire) => operations.push(self.operation(wire, &at)),
            }
        }
        operations
    }

    fn operation(&mut self, wire: &OperationWire<'_>, at: &Path<'_>) -> Operation {
        let operation = Operation {
            ports: self.ports(("ports", &wire.ports), ("notPorts", &wire.not_ports), at),
            hosts: self.patterns(("hosts", &wire.hosts), ("notHosts", &wire.not_hosts), at),
            methods: self.patterns(("methods", &wire.methods), ("notMethods", &wire.not_methods), at),
            paths: self.paths(("paths", &wire.paths), ("notPaths", &wire.not_paths), at),
        };
        let lists = [
            &wire.hosts,
            &wire.not_hosts,
            &wire.ports,
            &wire.not_ports,
            &wire.methods,
            &wire.not_methods,
            &wire.paths,
            &wire.not_paths,
        ];
        if lists.iter().all(|list| list.items.is_empty()) {
            let message = "`operation` is empty.";
            self.report.reject(
                at,
                message,
                "Write what it is to match, or remove `to` to match every operation.",
            );
        }
        operation
    }

    fn conditions(&mut self, wires: &[ConditionWire<'_>], at: &Path<'_>) -> Vec<Condition> {
        wires.iter().enumerate().filter_map(|(index, wire)| self.condition(wire, &at.index(index))).collect()
    }

    /// AP-12. `None` after a rejection.
    fn condition(&mut self, wire: &ConditionWire<'_>, at: &Path<'_>) -> Option<Condition> {
        let Some(key) = wire.key.non_empty() else {
            self.report.reject(
                at.field("key"),
                "The condition has no key.",
                "Name an attribute such as `source.ip`.",
            );
            return None;
        };
        if wire.values.items.is_empty() && wire.not_values.items.is_empty() {
            let message = format!("The condition on `{key}` has neither `values` nor `notValues`.");
            self.report.reject(at, message, "Write the values, or remove the condition.");
            return None;
        }
        let (any, not) = (("values", &wire.values), ("notValues", &wire.not_values));
        Some(match key {
            "source.ip" => Condition::SourceIp(self.blocks(any, not, at)),
            "remote.ip" => Condition::RemoteIp(self.blocks(any, not, at)),
            "source.namespace" => Condition::SourceNamespace(self.namespaces(any, not, at)),
            "source.principal" => Condition::SourcePrincipal(self.patterns(any, not, at)),
            "source.serviceAccount" => Condition::SourceServiceAccount(self.accounts(any, not, at)),
            "source.trustDomain" => Condition::SourceTrustDomain(self.trust_domains(
                any,
                not,
                (at, validate::one_wildcard_at_an_end),
            )),
            "destination.ip" => Condition::DestinationIp(self.blocks(any, not, at)),
            "destination.port" => Condition::DestinationPort(self.ports(any, not, at)),
            "connection.sni" => Condition::Sni(self.patterns(any, not, at)),
            _ => {
                if let Some(key) = HttpKey::parse(key) {
                    return Some(Condition::Http { key, values: self.patterns(any, not, at) });
                }
                let message = format!("There is no attribute `{key}`.");
                self.report.reject(
                    at.field("key"),
                    message,
                    "Check the spelling, and that `[name]` follows a map.",
                );
                return None;
            }
        })
    }

    fn patterns(
        &mut self,
        any: Named<'_>,
        not: Named<'_>,
        at: &Path<'_>,
    ) -> Match<weft_core::resource::StringMatch> {
        let Self { interner, report, .. } = self;
        matched(any, not, at, report, |text| Ok(validate::string_match(text, interner)))
    }

    fn trust_domains(
        &mut self,
        any: Named<'_>,
        not: Named<'_>,
        (at, check): (&Path<'_>, CheckText),
    ) -> TrustDomains {
        let Self { interner, report, .. } = self;
        matched(any, not, at, report, |text| {
            check(text)?;
            Ok(validate::string_match(text, interner))
        })
    }

    fn namespaces(&mut self, any: Named<'_>, not: Named<'_>, at: &Path<'_>) -> Match<NamespaceMatch> {
        let Self { interner, report, .. } = self;
        matched(any, not, at, report, |text| Ok(NamespaceMatch(interner.text(text))))
    }

    fn accounts(
        &mut self,
        any: Named<'_>,
        not: Named<'_>,
        at: &Path<'_>,
    ) -> Match<weft_core::resource::ServiceAccountMatch> {
        let Self { interner, report, namespace } = self;
        for (name, list) in [any, not].into_iter().filter(|(_, list)| list.items.len() > MAX_SERVICE_ACCOUNTS)
        {
            let message = format!("There are {} values, more than {MAX_SERVICE_ACCOUNTS}.", list.items.len());
            report.reject(at.field(name), message, "Write several sources or rules.");
        }
        matched(any, not, at, report, |text| validate::service_account(text, namespace, interner))
    }

    fn blocks(&mut self, any: Named<'_>, not: Named<'_>, at: &Path<'_>) -> Match<ipnet::IpNet> {
        matched(any, not, at, self.report, validate::ip_block)
    }

    fn ports(&mut self, any: Named<'_>, not: Named<'_>, at: &Path<'_>) -> Match<u16> {
        matched(any, not, at, self.report, validate::port_value)
    }

    fn paths(&mut self, any: Named<'_>, not: Named<'_>, at: &Path<'_>) -> Match<PathMatch> {
        let Self { interner, report, .. } = self;
        matched(any, not, at, report, |text| {
            validate::path(text)?;
            Ok(match PathTemplate::parse(text) {
                Some(template) => PathMatch::Template(template),
                None => PathMatch::Text(validate::string_match(text, interner)),
            })
        })
    }
}

/// Says why a text is wrong.
type CheckText = fn(&str) -> Result<(), Invalid>;

type TrustDomains = Match<weft_core::resource::StringMatch>;

/// A field's name and values.
type Named<'w> = (&'w str, &'w List<Text<'w>>);

fn matched<T>(
    any: Named<'_>,
    not: Named<'_>,
    at: &Path<'_>,
    report: &mut Report<'_>,
    mut read: impl FnMut(&str) -> Result<T, Invalid>,
) -> Match<T> {
    Match {
        any: each(&any.1.items, &at.field(any.0), report, &mut read).into(),
        not: each(&not.1.items, &at.field(not.0), report, &mut read).into(),
    }
}
