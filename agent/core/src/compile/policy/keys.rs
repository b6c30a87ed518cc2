//! The keys under which rules are filed, and those that a connection or a request has.
//!
//! Keys are hashes. Only kinds and lengths that occur in some rule are looked for, so a request costs what the
//! rules' variety costs, not what it carries.

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::http::{HttpSubject, claim_path};
use super::matcher::Subject;
use crate::hashing::FastState;
use crate::resource::{
    Condition, HttpKey, Match, NamespaceMatch, Operation, PathMatch, Rule, ServiceAccountMatch, Source,
    StringMatch,
};

/// Ways to file one rule that are looked at; more conditions than this only cost selectivity.
const WAYS: usize = 32;

/// What an index is asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Reads {
    /// Connections: fields that only HTTP can answer count for nothing.
    #[default]
    Connections,
    /// Requests.
    Requests,
}

/// One way to file a rule: for each of `members` (alternatives of an OR) one of its key lists.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) members: Vec<Vec<Vec<u64>>>,
}

/// Attributes that are text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Attribute {
    Principal,
    Namespace,
    Sni,
    Host,
    Method,
    Path,
    RequestPrincipal,
}

const ATTRIBUTES: usize = Attribute::RequestPrincipal as usize + 1;

/// Whose address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Source,
    Remote,
}

const SIDES: usize = Side::Remote as usize + 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum KeyKind {
    Exact(Attribute),
    Prefix(Attribute),
    Suffix(Attribute),
    Present(Attribute),
    ServiceAccount,
    Net(Side),
    Port,
    Header,
    HeaderValue,
    Claim,
    ClaimValue,
}

/// Which keys of a text attribute occur.
#[derive(Debug, Clone, Default)]
struct TextShape {
    exact: bool,
    present: bool,
    prefixes: BTreeSet<usize>,
    suffixes: BTreeSet<usize>,
}

#[derive(Debug, Clone, Default)]
struct NetShape {
    v4_lengths: BTreeSet<u8>,
    v6_lengths: BTreeSet<u8>,
}

/// Which keys occur at all, so that a subject is asked for no others.
#[derive(Debug, Clone, Default)]
struct Shape {
    texts: [TextShape; ATTRIBUTES],
    nets: [NetShape; SIDES],
    accounts: bool,
    ports: bool,
    headers: HashSet<Arc<str>>,
    claims: HashSet<Arc<[Arc<str>]>>,
}

/// Turns rules into keys and notes which kinds occur.
pub(super) struct Filing {
    reads: Reads,
    hasher: FastState,
    shape: Shape,
}

impl Filing {
    pub(super) fn new(reads: Reads) -> Self {
        Self { reads, hasher: FastState::default(), shape: Shape::default() }
    }

    pub(super) fn into_keys(self) -> Keys {
        Keys { hasher: self.hasher, shape: self.shape }
    }

    pub(super) fn ways(&mut self, rule: &Rule) -> Vec<Way> {
        let sources = rule.from.iter().map(|source| self.source_keys(source)).collect();
        let mut ways = alternatives(sources);
        let operations = rule.to.iter().map(|operation| self.operation_keys(operation)).collect();
        ways.extend(alternatives(operations));
        for condition in &rule.when {
            let keys = self.condition_keys(condition);
            ways.extend(keys.map(|keys| Way { members: vec![vec![keys]] }));
        }
        ways.truncate(WAYS);
        ways
    }

    fn source_keys(&mut self, source: &Source) -> Vec<Vec<u64>> {
        let request_principals = match self.reads {
            Reads::Connections => None,
            Reads::Requests => self.text_keys(Attribute::RequestPrincipal, &source.request_principals),
        };
        let lists = [
            self.text_keys(Attribute::Principal, &source.principals),
            self.namespace_keys(&source.namespaces),
            self.account_keys(&source.service_accounts),
            self.net_keys(Side::Source, &source.ip_blocks),
            self.net_keys(Side::Remote, &source.remote_ip_blocks),
            request_principals,
        ];
        lists.into_iter().flatten().collect()
    }

    fn operation_keys(&mut self, operation: &Operation) -> Vec<Vec<u64>> {
        let ports = self.port_keys(&operation.ports);
        let lists = match self.reads {
            Reads::Connections => [ports, None, None, None],
            Reads::Requests => [
                ports,
                self.text_keys(Attribute::Host, &operation.hosts),
                self.text_keys(Attribute::Method, &operation.methods),
                self.path_keys(&operation.paths),
            ],
        };
        lists.into_iter().flatten().collect()
    }

    fn condition_keys(&mut self, condition: &Condition) -> Option<Vec<u64>> {
        match condition {
            Condition::SourceIp(blocks) => self.net_keys(Side::Source, blocks),
            Condition::RemoteIp(blocks) => self.net_keys(Side::Remote, blocks),
            Condition::SourceNamespace(values) => self.namespace_keys(values),
            Condition::SourcePrincipal(values) => self.text_keys(Attribute::Principal, values),
            Condition::SourceServiceAccount(values) => self.account_keys(values),
            Condition::SourceTrustDomain(values) => {
                (!values.any.is_empty()).then(|| vec![self.present(Attribute::Principal)])
            }
            Condition::DestinationPort(ports) => self.port_keys(ports),
            Condition::Sni(values) => self.text_keys(Attribute::Sni, values),
            Condition::Http { key, values } => match self.reads {
                Reads::Connections => None,
                Reads::Requests => self.http_keys(key, values),
            },
            Condition::DestinationIp(_) => None,
        }
    }

    fn http_keys(&mut self, key: &HttpKey, values: &Match<StringMatch>) -> Option<Vec<u64>> {
        match key {
            HttpKey::Principal => self.text_keys(Attribute::RequestPrincipal, values),
            HttpKey::Audiences | HttpKey::Presenter | HttpKey::Claim(_) => {
                let path = claim_path(key);
                self.shape.claims.insert(path.clone());
                self.value_keys((KeyKind::Claim, KeyKind::ClaimValue), &path, values)
            }
            // Pseudo headers are no headers: rules about them are few, and are left in the rest.
            HttpKey::Header(name) if name.starts_with(':') || **name == *"host" => None,
            HttpKey::Header(name) => {
                self.shape.headers.insert(name.clone());
                self.value_keys((KeyKind::Header, KeyKind::HeaderValue), &**name, values)
            }
            HttpKey::FilterMetadata(_) => None,
        }
    }

    /// Keys of something that has a name and values: only exact values are told apart.
    fn value_keys<N: Hash + ?Sized>(
        &self,
        (named, valued): (KeyKind, KeyKind),
        name: &N,
        values: &Match<StringMatch>,
    ) -> Option<Vec<u64>> {
        Self::each(values, |pattern| match pattern {
            StringMatch::Exact(text) => self.hasher.hash_one((valued, name, text.as_bytes())),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Present => {
                self.hasher.hash_one((named, name))
            }
        })
    }

    fn each<T>(values: &Match<T>, mut key: impl FnMut(&T) -> u64) -> Option<Vec<u64>> {
        (!values.any.is_empty()).then(|| values.any.iter().map(&mut key).collect())
    }

    fn texts(&mut self, attribute: Attribute) -> &mut TextShape {
        let at = attribute as usize;
        self.shape.texts.get_mut(at).expect("there is a shape for each attribute")
    }

    fn present(&mut self, attribute: Attribute) -> u64 {
        self.texts(attribute).present = true;
        self.hasher.hash_one((KeyKind::Present(attribute), ()))
    }

    fn prefix(&mut self, attribute: Attribute, text: &[u8]) -> u64 {
        if text.is_empty() {
            return self.present(attribute);
        }
        self.texts(attribute).prefixes.insert(text.len());
        self.hasher.hash_one((KeyKind::Prefix(attribute), text))
    }

    fn suffix(&mut self, attribute: Attribute, text: &[u8]) -> u64 {
        if text.is_empty() {
            return self.present(attribute);
        }
        self.texts(attribute).suffixes.insert(text.len());
        self.hasher.hash_one((KeyKind::Suffix(attribute), text))
    }

    fn exact(&mut self, attribute: Attribute, text: &[u8]) -> u64 {
        self.texts(attribute).exact = true;
        self.hasher.hash_one((KeyKind::Exact(attribute), text))
    }

    fn text_key(&mut self, attribute: Attribute, pattern: &StringMatch) -> u64 {
        // Hosts are compared without case (AP-9).
        let folded = |text: &str| match attribute {
            Attribute::Host => text.to_ascii_lowercase(),
            Attribute::Principal
            | Attribute::Namespace
            | Attribute::Sni
            | Attribute::Method
            | Attribute::Path
            | Attribute::RequestPrincipal => text.to_owned(),
        };
        match pattern {
            StringMatch::Exact(text) => self.exact(attribute, folded(text).as_bytes()),
            StringMatch::Prefix(text) => self.prefix(attribute, folded(text).as_bytes()),
            StringMatch::Suffix(text) => self.suffix(attribute, folded(text).as_bytes()),
            StringMatch::Present => self.present(attribute),
        }
    }

    fn text_keys(&mut self, attribute: Attribute, values: &Match<StringMatch>) -> Option<Vec<u64>> {
        Self::each(values, |pattern| self.text_key(attribute, pattern))
    }

    fn path_keys(&mut self, values: &Match<PathMatch>) -> Option<Vec<u64>> {
        Self::each(values, |pattern| match pattern {
            PathMatch::Text(pattern) => self.text_key(Attribute::Path, pattern),
            PathMatch::Template(template) => self.prefix(Attribute::Path, template.beginning().as_bytes()),
        })
    }

    fn namespace_keys(&mut self, values: &Match<NamespaceMatch>) -> Option<Vec<u64>> {
        Self::each(values, |pattern| {
            let Some((head, rest)) = pattern.0.split_once('*') else {
                return self.exact(Attribute::Namespace, pattern.0.as_bytes());
            };
            let tail = rest.rsplit_once('*').map_or(rest, |(_, tail)| tail);
            if head.is_empty() {
                self.suffix(Attribute::Namespace, tail.as_bytes())
            } else {
                self.prefix(Attribute::Namespace, head.as_bytes())
            }
        })
    }

    fn account_keys(&mut self, values: &Match<ServiceAccountMatch>) -> Option<Vec<u64>> {
        self.shape.accounts |= !values.any.is_empty();
        Self::each(values, |account| {
            let name = (account.namespace.as_bytes(), account.name.as_bytes());
            self.hasher.hash_one((KeyKind::ServiceAccount, name))
        })
    }

    fn net_keys(&mut self, side: Side, values: &Match<IpNet>) -> Option<Vec<u64>> {
        Self::each(values, |block| {
            let shape = self.shape.nets.get_mut(side as usize).expect("there is a shape for each side");
            match block {
                IpNet::V4(block) => shape.v4_lengths.insert(block.prefix_len()),
                IpNet::V6(block) => shape.v6_lengths.insert(block.prefix_len()),
            };
            self.hasher.hash_one((KeyKind::Net(side), &block.trunc()))
        })
    }

    fn port_keys(&mut self, values: &Match<u16>) -> Option<Vec<u64>> {
        self.shape.ports |= !values.any.is_empty();
        Self::each(values, |port| self.hasher.hash_one((KeyKind::Port, port)))
    }
}

/// Several sources (or operations) are alternatives and must be filed together; the fields of a single one are not.
fn alternatives(members: Vec<Vec<Vec<u64>>>) -> Vec<Way> {
    match members.as_slice() {
        [] => Vec::new(),
        [single] => single.iter().map(|keys| Way { members: vec![vec![keys.clone()]] }).collect(),
        _ if members.iter().any(Vec::is_empty) => Vec::new(),
        _ => vec![Way { members }],
    }
}

/// The keys of one subject.
pub(super) type Found = SmallVec<[u64; 32]>;

/// Turns connections and requests into keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    hasher: FastState,
    shape: Shape,
}

impl Keys {
    /// The keys that the subject has, of those that occur in some rule.
    pub(super) fn of(&self, subject: &Subject<'_>) -> Found {
        let mut found = Found::new();
        let connection = subject.connection;
        self.add_identity(subject, &mut found);
        self.add_address(Side::Source, || connection.source_ip, &mut found);
        self.add_address(Side::Remote, || subject.remote_ip(), &mut found);
        if self.shape.ports {
            found.push(self.hasher.hash_one((KeyKind::Port, &connection.destination.port())));
        }
        if let Some(sni) = connection.sni {
            self.add_text(Attribute::Sni, sni.as_bytes(), &mut found);
        }
        if let Some(http) = &subject.http {
            self.add_request(http, &mut found);
        }
        found
    }

    fn add_identity(&self, subject: &Subject<'_>, found: &mut Found) {
        let Some(identity) = subject.connection.identity else { return };
        if self.reads(Attribute::Principal) {
            for principal in subject.principals() {
                self.add_text(Attribute::Principal, principal.as_bytes(), found);
            }
        }
        self.add_text(Attribute::Namespace, identity.namespace().as_bytes(), found);
        if self.shape.accounts {
            let name = (identity.namespace().as_bytes(), identity.service_account().as_bytes());
            found.push(self.hasher.hash_one((KeyKind::ServiceAccount, name)));
        }
    }

    fn add_request(&self, http: &HttpSubject<'_>, found: &mut Found) {
        self.add_text(Attribute::Host, http.host.as_bytes(), found);
        self.add_text(Attribute::Method, http.request.method.as_bytes(), found);
        self.add_text(Attribute::Path, http.path.as_bytes(), found);
        if let Some(principal) = http.principal() {
            self.add_text(Attribute::RequestPrincipal, principal.as_bytes(), found);
        }
        if !self.shape.headers.is_empty() {
            self.add_headers(http, found);
        }
        for path in &self.shape.claims {
            let Some(claim) = http.claim(path) else { continue };
            found.push(self.hasher.hash_one((KeyKind::Claim, path)));
            for text in claim.texts() {
                found.push(self.hasher.hash_one((KeyKind::ClaimValue, path, text.as_bytes())));
            }
        }
    }

    fn add_headers(&self, http: &HttpSubject<'_>, found: &mut Found) {
        for (name, value) in http.request.headers {
            let name = name.as_str();
            if self.shape.headers.contains(name) {
                found.push(self.hasher.hash_one((KeyKind::Header, name)));
                found.push(self.hasher.hash_one((KeyKind::HeaderValue, name, value.as_bytes())));
            }
        }
    }

    fn reads(&self, attribute: Attribute) -> bool {
        self.shape.texts.get(attribute as usize).is_some_and(|shape| {
            shape.exact || shape.present || !shape.prefixes.is_empty() || !shape.suffixes.is_empty()
        })
    }

    fn add_text(&self, attribute: Attribute, text: &[u8], found: &mut Found) {
        let Some(shape) = self.shape.texts.get(attribute as usize) else { return };
        if shape.exact {
            found.push(self.hasher.hash_one((KeyKind::Exact(attribute), text)));
        }
        if shape.present {
            found.push(self.hasher.hash_one((KeyKind::Present(attribute), ())));
        }
        for beginning in shape.prefixes.iter().map_while(|length| text.get(..*length)) {
            found.push(self.hasher.hash_one((KeyKind::Prefix(attribute), beginning)));
        }
        let ends = shape.suffixes.iter().map_while(|length| text.get(text.len().checked_sub(*length)?..));
        for end in ends {
            found.push(self.hasher.hash_one((KeyKind::Suffix(attribute), end)));
        }
    }

    fn add_address(&self, side: Side, ip: impl FnOnce() -> IpAddr, found: &mut Found) {
        let Some(shape) = self.shape.nets.get(side as usize) else { return };
        if shape.v4_lengths.is_empty() && shape.v6_lengths.is_empty() {
            return;
        }
        let ip = ip();
        let lengths = match ip {
            IpAddr::V4(_) => &shape.v4_lengths,
            IpAddr::V6(_) => &shape.v6_lengths,
        };
        for block in lengths.iter().filter_map(|length| IpNet::new(ip, *length).ok()) {
            found.push(self.hasher.hash_one((KeyKind::Net(side), &block.trunc())));
        }
    }
}
