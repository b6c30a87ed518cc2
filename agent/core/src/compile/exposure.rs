//! Where policies meet connections that they were not written for: clients without identity, ports without HTTP,
//! authorisers that nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Compiler;
use super::findings::Topic;
use super::policy::{PolicyIndex, report};
use crate::resource::{Kind, MeshHttp, MtlsMode, PortProtocol};
use crate::snapshot::{LocalWorkload, TrafficHint};

/// What the pods of this node expose a layer of policies to.
#[derive(Debug, Clone)]
struct Exposed {
    layer: Arc<PolicyIndex>,
    /// A pod accepts clients without identity.
    plaintext: bool,
    /// Ports of some pod on which no request is ever seen.
    opaque_ports: BTreeSet<u16>,
}

/// All layers by address (each entry keeps its layer alive), and the mesh's authorisers.
#[derive(Debug, Default)]
pub(super) struct Exposure {
    layers: BTreeMap<usize, Exposed>,
    mesh: Arc<MeshHttp>,
}

impl Exposure {
    fn of<'l>(locals: impl Iterator<Item = &'l Arc<LocalWorkload>>, mesh: Arc<MeshHttp>) -> Self {
        let mut layers: BTreeMap<usize, Exposed> = BTreeMap::new();
        for local in locals.filter(|local| local.workload.in_mesh()) {
            let plaintext = accepts_plaintext(local);
            for layer in local.policies.layers() {
                let exposed = layers.entry(Arc::as_ptr(layer).addr()).or_insert_with(|| Exposed {
                    layer: layer.clone(),
                    plaintext: false,
                    opaque_ports: BTreeSet::new(),
                });
                exposed.plaintext |= plaintext;
                exposed.opaque_ports.extend(opaque_ports(local));
            }
        }
        Self { layers, mesh }
    }

    fn same_as(&self, other: &Self) -> bool {
        let same = |(a, b): (&Exposed, &Exposed)| {
            a.plaintext == b.plaintext && a.opaque_ports == b.opaque_ports && Arc::ptr_eq(&a.layer, &b.layer)
        };
        self.layers.len() == other.layers.len()
            && self.layers.values().zip(other.layers.values()).all(same)
            && self.mesh.ext_authz == other.mesh.ext_authz
    }
}

impl Compiler {
    /// Reports DENY policies on identities where clients may come without one (ruling 11), rules that need HTTP
    /// where there is none (AP-13), and CUSTOM policies whose provider nobody knows (AP-17).
    pub(super) fn report_exposure(&mut self) {
        let locals = self.local.values().map(|record| &record.workload);
        let new = Exposure::of(locals, self.mesh.http.clone());
        if new.same_as(&self.exposure) {
            return;
        }
        let mut problems = BTreeSet::new();
        for Exposed { layer, plaintext, opaque_ports } in new.layers.values() {
            if *plaintext {
                let policies = layer.identity_denies().iter();
                problems.extend(
                    policies.map(|policy| (policy.meta.key.clone(), report::plaintext_finding(policy))),
                );
            }
            for policy in layer.http_policies() {
                let found = report::port_finding(policy, opaque_ports).into_iter();
                let found = found.chain(report::provider_finding(policy, &new.mesh));
                problems.extend(found.map(|problem| (policy.meta.key.clone(), problem)));
            }
        }
        self.findings.set_all(Kind::AuthorizationPolicy, Topic::Scope, problems);
        self.exposure = new;
    }
}

fn accepts_plaintext(local: &LocalWorkload) -> bool {
    let modes = &local.peer_authentication;
    let mut modes = modes.ports.iter().map(|(_, mode)| mode).chain([&modes.default]);
    modes.any(|mode| mode.mode != MtlsMode::Strict)
}

/// The ports that a Service declares as something but HTTP. What is not declared is found out when somebody speaks.
fn opaque_ports(local: &LocalWorkload) -> impl Iterator<Item = u16> {
    let opaque = |protocol: PortProtocol| match local.traffic {
        Some(TrafficHint::L4) => true,
        Some(TrafficHint::L7) => false,
        None => matches!(protocol, PortProtocol::Tcp | PortProtocol::Tls),
    };
    local.declared_ports.iter().filter(move |(_, protocol)| opaque(*protocol)).map(|(port, _)| *port)
}

#[cfg(test)]
mod tests {
    use crate::resource::*;
    use crate::testing::{any, compile, namespace, pattern, pod, policy, port, service, to_ports};

    /// Codes and fields of the findings about one policy for `shop/web`, which has an HTTP and a TCP port.
    fn findings(policy: AuthorizationPolicy, annotated: &str) -> Vec<String> {
        let ports = [port("http", 80, 8080, PortProtocol::Http), port("db", 5432, 5432, PortProtocol::Tcp)];
        let snapshot = compile([
            Resource::Namespace(namespace("shop", "weft.dev/mesh=enabled", annotated)),
            Resource::Pod(pod("shop/web", &["10.0.0.1"], "app=web")),
            Resource::Service(service("shop/web", &["10.96.0.1"], "app=web", &ports)),
            Resource::AuthorizationPolicy(policy),
        ]);
        let problems = snapshot.problems().iter();
        problems.map(|problem| format!("{} {}", problem.code, problem.field)).collect()
    }

    fn get(ports: &[u16]) -> Rule {
        let methods = any([pattern("GET")]);
        Rule {
            to: vec![Operation { methods, ports: any(ports.iter().copied()), ..Operation::default() }],
            ..Rule::default()
        }
    }

    #[test]
    fn rules_that_need_http_are_reported_where_there_is_none() {
        let of = |rule: Rule, selector: &str, annotated: &str| {
            findings(policy("shop/p", PolicyAction::Allow, selector, vec![Rule::default(), rule]), annotated)
        };
        let warned = ["WEFT0101 spec.rules[1].to[0].operation.methods"];
        assert_eq!(of(get(&[]), "", ""), warned);
        assert_eq!(of(get(&[8080, 5432]), "", ""), warned);
        assert!(of(get(&[8080]), "", "").is_empty());
        assert!(of(get(&[]), "app=other", "").is_empty());
        assert!(of(get(&[]), "", "weft.dev/traffic=l7").is_empty());
        assert_eq!(of(get(&[8080]), "", "weft.dev/traffic=l4"), warned);
    }

    #[test]
    fn authorisers_need_http_and_a_provider() {
        let of = |ports: &[u16]| {
            let custom = policy("shop/p", PolicyAction::Custom, "", vec![to_ports(ports)]);
            findings(AuthorizationPolicy { provider: Some("nobody".into()), ..custom }, "")
        };
        assert_eq!(of(&[8080]), ["WEFT0113 spec.provider.name"]);
        assert_eq!(of(&[5432]), ["WEFT0102 spec.action", "WEFT0113 spec.provider.name"]);
    }
}
