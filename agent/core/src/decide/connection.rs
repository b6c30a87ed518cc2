//! Where does a connection go that is not taken apart? TLS and TCP rules (V-30, V-31).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::http::{Caller, Field, Observer, RuleRef, Target, Trace, cluster_of};
use crate::Snapshot;
use crate::compile::routing::rules::{CompiledVirtualService, in_order, includes_mesh};
use crate::resource::PortProtocol;
use crate::resource::virtual_service::{ConnectionMatch, DestinationRef, TlsMatch};
use crate::snapshot::CompiledService;

/// The answer of [`route_connection`].
#[derive(Debug, Clone)]
pub struct ConnectionDecision {
    /// The Service that was addressed, and the index of its port.
    pub service: Option<(Arc<CompiledService>, usize)>,
    /// The rule; `None` for the Service's own default.
    pub rule: Option<RuleRef>,
    /// One of these by weight ([`choose`](super::http::choose)); each with the client's DestinationRule. Empty where
    /// no Service's port was dialled: then [`outbound`](super::outbound::outbound) decides alone.
    pub targets: SmallVec<[Target; 1]>,
}

/// Decides on a connection that `caller` makes; `sni` where it begins with a ClientHello.
///
/// The Service is the one whose virtual address, or endpoint where it has none, was dialled. TLS rules match by SNI, TCP
/// rules by port and address; the first that matches by declaration wins, else the connection goes to the Service's own
/// port.
pub fn route_connection(snapshot: &Snapshot, caller: &Caller<'_>, sni: Option<&str>) -> ConnectionDecision {
    decide(snapshot, caller, sni, &mut ())
}

/// The same decision, with what was passed over on the way.
pub fn route_connection_traced(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    sni: Option<&str>,
) -> (ConnectionDecision, Trace) {
    let mut trace = Trace::default();
    let decision = decide(snapshot, caller, sni, &mut trace);
    (decision, trace)
}

fn decide(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    sni: Option<&str>,
    observer: &mut impl Observer,
) -> ConnectionDecision {
    let original = SocketAddr::new(caller.original.ip().to_canonical(), caller.original.port());
    let nothing = ConnectionDecision { service: None, rule: None, targets: SmallVec::new() };
    let namespace = &caller.workload.key.namespace;
    let Some((service, at)) = snapshot.addressed(&original, Some(namespace)) else { return nothing };
    let Some(port) = service.ports.get(at) else { return nothing };
    // Rules speak of the Service's port, which an endpoint's need not be.
    let caller = &Caller { original: SocketAddr::new(original.ip(), port.port), ..*caller };
    let sni = sni.map(str::to_ascii_lowercase);
    let connection = Connection { caller, sni: sni.as_deref(), protocol: port.protocol };
    for found in snapshot.routing.virtual_services.covering(&service.host) {
        let mut visible = in_order(found.value, namespace)
            .filter(|rules| rules.mesh && rules.visibility.reaches(namespace));
        let matched = visible.find_map(|rules| first_match(&connection, rules, observer));
        if let Some((rule, routes)) = matched {
            let targets = targets(snapshot, caller, routes);
            return ConnectionDecision { service: Some((service.clone(), at)), rule: Some(rule), targets };
        }
    }
    let own = DestinationRef { host: service.host.clone(), subset: None, port: Some(port.port) };
    let targets = targets(snapshot, caller, &[(own, 1)]);
    ConnectionDecision { service: Some((service.clone(), at)), rule: None, targets }
}

/// What rules look at.
struct Connection<'a> {
    caller: &'a Caller<'a>,
    sni: Option<&'a str>,
    /// What the Service declares the port to speak.
    protocol: PortProtocol,
}

type Routes = [(DestinationRef, u32)];

fn first_match<'v>(
    connection: &Connection<'_>,
    service: &'v CompiledVirtualService,
    observer: &mut impl Observer,
) -> Option<(RuleRef, &'v Routes)> {
    let reference = |list: &'static str, rule: usize, matched: Option<usize>| RuleRef {
        object: service.object.clone(),
        list,
        rule,
        matched,
        name: None,
        root: None,
    };
    // TLS rules are for ports that speak TLS, and TCP rules for the others; where nobody says, both are asked.
    if connection.sni.is_some() && matches!(connection.protocol, PortProtocol::Tls | PortProtocol::Undeclared)
    {
        for (at, rule) in service.source.tls.iter().enumerate() {
            for (own, entry) in rule.matches.iter().enumerate() {
                match connection.tls_mismatch(entry) {
                    None => return Some((reference("tls", at, Some(own)), &rule.routes)),
                    Some(field) => observer.skipped(&service.object, "tls", at, Some(own), field),
                }
            }
        }
    }
    let tcp = if connection.protocol == PortProtocol::Tls { &[] } else { &service.source.tcp[..] };
    for (at, rule) in tcp.iter().enumerate() {
        if rule.matches.is_empty() {
            return Some((reference("tcp", at, None), &rule.routes));
        }
        for (own, entry) in rule.matches.iter().enumerate() {
            match connection.mismatch(entry) {
                None => return Some((reference("tcp", at, Some(own)), &rule.routes)),
                Some(field) => observer.skipped(&service.object, "tcp", at, Some(own), field),
            }
        }
    }
    None
}

impl Connection<'_> {
    fn tls_mismatch(&self, entry: &TlsMatch) -> Option<Field<'static>> {
        let sni = self.sni.unwrap_or_default();
        let named = entry.sni_hosts.iter().any(|host| match host.strip_prefix('*') {
            Some(suffix) => sni.len() > suffix.len() && sni.ends_with(&suffix.to_ascii_lowercase()),
            None => host.eq_ignore_ascii_case(sni),
        });
        if named { self.mismatch(&entry.connection) } else { Some(Field::SniHosts) }
    }

    /// The first condition that does not hold: all are ANDed (V-11).
    fn mismatch(&self, entry: &ConnectionMatch) -> Option<Field<'static>> {
        let ip: IpAddr = self.caller.original.ip();
        let subnets = &entry.destination_subnets;
        let workload = self.caller.workload;
        if !entry.gateways.is_empty() && !includes_mesh(&entry.gateways) {
            Some(Field::Gateways)
        } else if entry.port.is_some_and(|port| port != self.caller.original.port()) {
            Some(Field::Port)
        } else if !subnets.is_empty() && !subnets.iter().any(|subnet| subnet.contains(&ip)) {
            Some(Field::DestinationSubnets)
        } else if !entry.source_labels.is_subset_of(self.caller.labels) {
            Some(Field::SourceLabels)
        } else if entry
            .source_namespace
            .as_ref()
            .is_some_and(|namespace| *namespace != workload.key.namespace)
        {
            Some(Field::SourceNamespace)
        } else {
            None
        }
    }
}

/// As for requests: the weight of a single destination does not count, those of 0 are left out (V-16).
fn targets(snapshot: &Snapshot, caller: &Caller<'_>, routes: &Routes) -> SmallVec<[Target; 1]> {
    let equal = routes.len() == 1 || routes.iter().all(|(_, weight)| *weight == 0);
    let weighted = routes.iter().map(|(to, weight)| (to, if equal { 1 } else { *weight }));
    let counted = weighted.filter(|(_, weight)| *weight > 0);
    counted
        .map(|(to, weight)| Target {
            cluster: cluster_of(snapshot, caller, to),
            weight,
            headers: snapshot.routing.no_headers.clone(),
        })
        .collect()
}
