//! The addresses at which clients of headless Services find them.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::compile::sharded::Sharded;
use crate::snapshot::CompiledService;

/// The Services that one endpoint belongs to, sorted by name.
type Owners = SmallVec<[Arc<CompiledService>; 1]>;

/// Headless Services by their endpoints.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndpointIndex(Sharded<SocketAddr, Owners>);

impl EndpointIndex {
    /// The Services with this endpoint, sorted by name, whoever sees them; of one namespace where `home` says which.
    pub(crate) fn owners(
        &self,
        endpoint: &SocketAddr,
        home: Option<&str>,
    ) -> impl Iterator<Item = &Arc<CompiledService>> {
        let owners = self.0.get(endpoint).into_iter().flatten();
        owners.filter(move |service| home.is_none_or(|home| *service.key.namespace == *home))
    }

    /// A Service is another one than before.
    pub(super) fn replace(&mut self, old: Option<&Arc<CompiledService>>, new: Option<&Arc<CompiledService>>) {
        for (endpoint, service) in old.into_iter().flat_map(dialled) {
            self.change(endpoint, |owners| owners.retain(|owner| owner.key != service.key));
        }
        for (endpoint, service) in new.into_iter().flat_map(dialled) {
            self.change(endpoint, |owners| {
                if let Err(at) = owners.binary_search_by(|owner| owner.key.cmp(&service.key)) {
                    owners.insert(at, service.clone());
                }
            });
        }
    }

    fn change(&mut self, endpoint: SocketAddr, change: impl FnOnce(&mut Owners)) {
        let mut owners = self.0.get(&endpoint).cloned().unwrap_or_default();
        change(&mut owners);
        if owners.is_empty() {
            self.0.remove(&endpoint);
        } else {
            self.0.insert(endpoint, owners);
        }
    }

    /// All of it as text, for tests that compare.
    #[cfg(test)]
    pub(super) fn render(&self) -> Vec<String> {
        let owners = |owners: &Owners| owners.iter().map(|owner| owner.host.to_string()).collect::<Vec<_>>();
        let mut lines: Vec<_> =
            self.0.iter().map(|(endpoint, of)| format!("endpoint {endpoint} of {:?}", owners(of))).collect();
        lines.sort();
        lines
    }
}

/// The endpoints that clients dial themselves: those of a Service without an address of its own.
fn dialled(service: &Arc<CompiledService>) -> impl Iterator<Item = (SocketAddr, &Arc<CompiledService>)> {
    let ports = if service.vips.is_empty() { &service.ports[..] } else { &[] };
    ports.iter().flat_map(|port| port.endpoints.iter()).map(move |endpoint| (endpoint.addr(), service))
}
