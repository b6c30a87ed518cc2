//! One rule against one connection or request (AP-4 to AP-8, AP-13).

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::http::{HttpSubject, remote_ip};
use crate::Identity;
use crate::decide::inbound::{InboundConnection, InboundRequest};
use crate::names;
use crate::resource::{
    Condition, Match, NamespaceMatch, Operation, PolicyAction, Rule, ServiceAccountMatch, Source, StringMatch,
};

/// The names under which policies may speak of this mesh's trust domain (AP-16).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TrustDomains {
    /// The trust domain and its aliases: what a peer's certificate may say.
    own: Vec<Arc<str>>,
}

impl TrustDomains {
    pub(crate) fn new(trust_domain: &Arc<str>, aliases: &[Arc<str>]) -> Self {
        let mut own = vec![trust_domain.clone()];
        for alias in aliases {
            if !own.contains(alias) {
                own.push(alias.clone());
            }
        }
        Self { own }
    }

    fn is_own(&self, name: &str) -> bool {
        self.own.iter().any(|own| **own == *name)
    }

    /// The principal, before it under every other name that a policy may use for a peer of the own domain: whatever
    /// pattern holds of the peer holds of one of these texts.
    ///
    /// Expanding the connection instead of the policies keeps policies as they were written.
    fn principals(&self, identity: &Identity) -> SmallVec<[String; 1]> {
        let actual = identity.principal();
        if !self.is_own(identity.trust_domain()) {
            return SmallVec::from_iter([actual]);
        }
        let (namespace, account) = (identity.namespace(), identity.service_account());
        let written = self.own.iter().map(|name| &**name).chain([names::DEFAULT_TRUST_DOMAIN]);
        let others = written.filter(|name| *name != identity.trust_domain());
        let others = others.map(|name| format!("{name}/ns/{namespace}/sa/{account}"));
        others.chain([actual]).collect()
    }

    /// Whether a pattern holds of a peer with this principal, which begins with its trust domain.
    ///
    /// Only a pattern that spells all five parts of a principal says something about the trust domain. The own one,
    /// an alias or the pointer `cluster.local` then stands for each of the own names, and for nobody else; a wildcard
    /// that one of them fits stands for each of them besides.
    fn principal(&self, pattern: &StringMatch, identity: &Identity, principal: &str) -> bool {
        let as_written = string(pattern, principal.as_bytes());
        let (StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text)) = pattern
        else {
            return as_written;
        };
        let Some((domain, rest)) = text.split_once('/').filter(|(_, rest)| rest.matches('/').count() == 3)
        else {
            return as_written;
        };
        let own = self.is_own(identity.trust_domain());
        let of_peer = principal.get(identity.trust_domain().len() + 1..).unwrap_or_default();
        match pattern {
            StringMatch::Suffix(_) => {
                let fits = !domain.is_empty() && self.own.iter().any(|own| own.ends_with(domain));
                as_written || (fits && own && of_peer == rest)
            }
            _ if !self.is_own(domain) && domain != names::DEFAULT_TRUST_DOMAIN => as_written,
            StringMatch::Prefix(_) => own && of_peer.starts_with(rest),
            StringMatch::Exact(_) | StringMatch::Present => own && of_peer == rest,
        }
    }

    /// AP-16 for `trustDomains`: one of the own names stands for all of them.
    fn trust_domain(&self, pattern: &StringMatch, domain: &str) -> bool {
        let alias = |text: &str| self.is_own(text) && self.is_own(domain);
        string(pattern, domain.as_bytes()) || matches!(pattern, StringMatch::Exact(text) if alias(text))
    }
}

/// A connection, or a request on it, prepared for many rules.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(super) connection: &'a InboundConnection<'a>,
    trust_domains: &'a TrustDomains,
    /// Made when a rule first asks for them.
    principals: OnceCell<SmallVec<[String; 1]>>,
    /// Read when a rule first asks for it.
    remote_ip: OnceCell<IpAddr>,
    trusted_proxies: u32,
    pub(super) http: Option<HttpSubject<'a>>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(connection: &'a InboundConnection<'a>, trust_domains: &'a TrustDomains) -> Self {
        let (principals, remote_ip) = (OnceCell::new(), OnceCell::new());
        Self { connection, trust_domains, principals, remote_ip, trusted_proxies: 0, http: None }
    }

    /// The client behind proxies (AP-8); the direct peer without HTTP.
    pub(super) fn remote_ip(&self) -> IpAddr {
        let peer = self.connection.source_ip;
        *self.remote_ip.get_or_init(|| match &self.http {
            Some(http) => remote_ip(http.request.headers, peer, self.trusted_proxies),
            None => peer,
        })
    }

    /// The principal under every name that a policy may use for it.
    pub(super) fn principals(&self) -> &[String] {
        self.principals.get_or_init(|| {
            let identity = self.connection.identity;
            identity.map(|identity| self.trust_domains.principals(identity)).unwrap_or_default()
        })
    }

    pub(crate) fn of_request(
        request: &'a InboundRequest<'a>,
        trust_domains: &'a TrustDomains,
        trusted_proxies: u32,
    ) -> Self {
        let InboundRequest { connection, request, authentication } = request;
        let http = Some(HttpSubject::new(request, authentication));
        Self { trusted_proxies, http, ..Self::new(connection, trust_domains) }
    }

    /// Whether it is a request, not just a connection.
    pub(super) fn is_request(&self) -> bool {
        self.http.is_some()
    }

    /// Whether a rule of a policy with this action applies.
    ///
    /// Without HTTP, a rule that HTTP alone can answer never applies in ALLOW; elsewhere its HTTP part counts as
    /// met (AP-13).
    pub(crate) fn matches(&self, action: PolicyAction, rule: &Rule) -> bool {
        if self.http.is_none() && !is_evaluable(action, rule) {
            return false;
        }
        (rule.from.is_empty() || rule.from.iter().any(|source| self.source(source)))
            && (rule.to.is_empty() || rule.to.iter().any(|operation| self.operation(operation)))
            && rule.when.iter().all(|condition| self.condition(condition))
    }

    fn source(&self, source: &Source) -> bool {
        let Source {
            principals,
            namespaces,
            service_accounts,
            ip_blocks,
            remote_ip_blocks,
            request_principals,
        } = source;
        holds(principals, |pattern| self.principal(pattern))
            && holds(namespaces, |pattern| self.namespace(pattern))
            && holds(service_accounts, |account| self.service_account(account))
            && holds(ip_blocks, |block| self.source_ip(block))
            && holds(remote_ip_blocks, |block| block.contains(&self.remote_ip()))
            && self.http.as_ref().is_none_or(|http| http.request_principals(request_principals))
    }

    fn operation(&self, operation: &Operation) -> bool {
        holds(&operation.ports, |port| *port == self.connection.destination.port())
            && self.http.as_ref().is_none_or(|http| http.operation(operation))
    }

    fn condition(&self, condition: &Condition) -> bool {
        let identity = self.connection.identity;
        match condition {
            Condition::SourceIp(blocks) => holds(blocks, |block| self.source_ip(block)),
            Condition::RemoteIp(blocks) => holds(blocks, |block| block.contains(&self.remote_ip())),
            Condition::SourceNamespace(values) => holds(values, |pattern| self.namespace(pattern)),
            Condition::SourcePrincipal(values) => holds(values, |pattern| self.principal(pattern)),
            Condition::SourceServiceAccount(values) => holds(values, |account| self.service_account(account)),
            Condition::SourceTrustDomain(values) => holds(values, |pattern| {
                identity.is_some_and(|id| self.trust_domains.trust_domain(pattern, id.trust_domain()))
            }),
            Condition::DestinationIp(blocks) => {
                holds(blocks, |block| block.contains(&self.connection.destination.ip()))
            }
            Condition::DestinationPort(ports) => {
                holds(ports, |port| *port == self.connection.destination.port())
            }
            Condition::Sni(values) => holds(values, |pattern| {
                self.connection.sni.is_some_and(|sni| string(pattern, sni.as_bytes()))
            }),
            // Without HTTP reached for DENY, AUDIT and CUSTOM only: the condition is dropped, the rest applies
            // (AP-13).
            Condition::Http { key, values } => {
                self.http.as_ref().is_none_or(|http| http.condition(key, values))
            }
        }
    }

    fn principal(&self, pattern: &StringMatch) -> bool {
        let peer = self.connection.identity.zip(self.principals().last());
        peer.is_some_and(|(identity, principal)| self.trust_domains.principal(pattern, identity, principal))
    }

    fn namespace(&self, pattern: &NamespaceMatch) -> bool {
        self.connection.identity.is_some_and(|identity| glob(&pattern.0, identity.namespace()))
    }

    fn service_account(&self, account: &ServiceAccountMatch) -> bool {
        self.connection.identity.is_some_and(|identity| {
            *account.namespace == *identity.namespace() && *account.name == *identity.service_account()
        })
    }

    fn source_ip(&self, block: &IpNet) -> bool {
        let ip: &IpAddr = &self.connection.source_ip;
        block.contains(ip)
    }
}

/// Whether the rule can be decided without HTTP under this action (AP-13).
pub(crate) fn is_evaluable(action: PolicyAction, rule: &Rule) -> bool {
    match action {
        PolicyAction::Allow => !needs_http(rule),
        PolicyAction::Deny | PolicyAction::Audit | PolicyAction::Custom => true,
    }
}

/// Whether the rule has a field that only HTTP can answer.
pub(crate) fn needs_http(rule: &Rule) -> bool {
    rule.from.iter().any(|source| !source.request_principals.is_empty())
        || rule.to.iter().any(Operation::has_http)
        || rule.when.iter().any(|condition| matches!(condition, Condition::Http { .. }))
}

/// Whether the rule asks for an identity, so that no client without one can match it (AP-6).
pub(crate) fn needs_identity(rule: &Rule) -> bool {
    let named = |source: &Source| {
        let Source { principals, namespaces, service_accounts, .. } = source;
        !(principals.any.is_empty() && namespaces.any.is_empty() && service_accounts.any.is_empty())
    };
    let conditional = |condition: &Condition| match condition {
        Condition::SourcePrincipal(values) | Condition::SourceTrustDomain(values) => !values.any.is_empty(),
        Condition::SourceNamespace(values) => !values.any.is_empty(),
        Condition::SourceServiceAccount(values) => !values.any.is_empty(),
        Condition::SourceIp(_)
        | Condition::RemoteIp(_)
        | Condition::DestinationIp(_)
        | Condition::DestinationPort(_)
        | Condition::Sni(_)
        | Condition::Http { .. } => false,
    };
    (!rule.from.is_empty() && rule.from.iter().all(named)) || rule.when.iter().any(conditional)
}

/// Positive values are ORed, an empty list is no condition; none of the negative ones may match (AP-4).
pub(super) fn holds<T>(values: &Match<T>, matches: impl Fn(&T) -> bool) -> bool {
    (values.any.is_empty() || values.any.iter().any(&matches)) && !values.not.iter().any(&matches)
}

/// AP-5.
pub(super) fn string(pattern: &StringMatch, value: &[u8]) -> bool {
    match pattern {
        StringMatch::Exact(text) => text.as_bytes() == value,
        StringMatch::Prefix(text) => value.starts_with(text.as_bytes()),
        StringMatch::Suffix(text) => value.ends_with(text.as_bytes()),
        StringMatch::Present => !value.is_empty(),
    }
}

/// Text in which every `*` stands for any number of characters.
fn glob(pattern: &str, value: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == value;
    };
    let Some(mut value) = value.strip_prefix(head) else {
        return false;
    };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    // Taking the leftmost place for each part leaves the most room for those that follow.
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        let Some(at) = value.find(part) else {
            return false;
        };
        value = value.get(at + part.len()..).unwrap_or_default();
    }
    value.len() >= tail.len() && value.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_with_stars_anywhere() {
        for (pattern, value, expected) in [
            ("shop", "shop", true),
            ("shop", "shops", false),
            ("*", "anything", true),
            ("*", "", true),
            ("shop-*", "shop-a", true),
            ("shop-*", "shop", false),
            ("*-prod", "eu-prod", true),
            ("*-prod", "-prod-x", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
            ("*b*b", "b", false),
            ("*ab*b", "xabb", true),
            ("*ab*b", "xab", false),
        ] {
            assert_eq!(glob(pattern, value), expected, "{pattern} {value}");
        }
    }

    #[test]
    fn aliases_are_names_of_the_own_trust_domain() {
        let domains = TrustDomains::new(&"corp".into(), &["old".into(), "corp".into()]);
        let principals = |td: &str| domains.principals(&Identity::new(td, "a", "b")).to_vec();
        assert_eq!(principals("corp"), ["old/ns/a/sa/b", "cluster.local/ns/a/sa/b", "corp/ns/a/sa/b"]);
        assert_eq!(principals("old"), ["corp/ns/a/sa/b", "cluster.local/ns/a/sa/b", "old/ns/a/sa/b"]);
        assert_eq!(principals("foreign"), ["foreign/ns/a/sa/b"]);
        assert_eq!(principals("cluster.local"), ["cluster.local/ns/a/sa/b"]);
        let plain = TrustDomains::new(&"cluster.local".into(), &[]);
        assert_eq!(plain.principals(&Identity::new("cluster.local", "a", "b")).len(), 1);
    }

    #[test]
    fn a_whole_principal_of_the_own_domain_stands_for_its_aliases() {
        let domains = TrustDomains::new(&"corp".into(), &["old".into()]);
        for (text, expected) in [
            // Whether it holds of peers of corp, old, cluster.local (a stranger here) and foreign.
            ("corp/ns/a/sa/b", [true, true, false, false]),
            ("old/ns/a/sa/b", [true, true, false, false]),
            ("cluster.local/ns/a/sa/b", [true, true, false, false]),
            ("foreign/ns/a/sa/b", [false, false, false, true]),
            ("corp/ns/a/sa/c", [false; 4]),
            ("corp/ns/a/sa/*", [true, true, false, false]),
            ("corp/ns/a/sa/c*", [false; 4]),
            ("corp/ns/a/*", [true, false, false, false]),
            ("cluster.local/ns/a/*", [false, false, true, false]),
            ("co*", [true, false, false, false]),
            ("*ld/ns/a/sa/b", [true, true, false, false]),
            ("*reign/ns/a/sa/b", [false, false, false, true]),
            ("*/ns/a/sa/b", [true; 4]),
            ("*/sa/b", [true; 4]),
            ("*", [true; 4]),
        ] {
            let found = ["corp", "old", "cluster.local", "foreign"].map(|domain| {
                let identity = Identity::new(domain, "a", "b");
                domains.principal(&crate::testing::pattern(text), &identity, &identity.principal())
            });
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn an_own_trust_domain_stands_for_its_aliases() {
        let domains = TrustDomains::new(&"corp".into(), &["old".into()]);
        for (text, expected) in [
            ("corp", [true, true, false]),
            ("old", [true, true, false]),
            ("cluster.local", [false, false, true]),
            ("c*", [true, false, true]),
            ("*", [true; 3]),
        ] {
            let pattern = crate::testing::pattern(text);
            let found = ["corp", "old", "cluster.local"].map(|domain| domains.trust_domain(&pattern, domain));
            assert_eq!(found, expected, "{text}");
        }
    }
}
