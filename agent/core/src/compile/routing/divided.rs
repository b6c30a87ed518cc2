//! Which divided Services have an endpoint at an address?

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::resource::NamespacedName;
use crate::snapshot::CompiledService;

/// The Services that a DestinationRule divides, by the addresses of their endpoints.
#[derive(Debug, Default)]
pub(super) struct Divided {
    /// With a number, which takes less room than a name, and as they were when they were filed.
    services: HashMap<NamespacedName, (u32, Arc<CompiledService>)>,
    names: HashMap<u32, NamespacedName>,
    next: u32,
    endpoints: BTreeSet<(IpAddr, u32)>,
}

impl Divided {
    /// Files a Service in its present form, or removes it.
    pub(super) fn file(&mut self, key: &NamespacedName, service: Option<&Arc<CompiledService>>) {
        let old = self.services.get(key).cloned();
        let number = match (&old, service) {
            (Some((number, _)), _) => *number,
            (None, Some(_)) => self.free_number(key),
            (None, None) => return,
        };
        let old = old.map(|(_, service)| service);
        if let (Some(old), Some(new)) = (&old, service)
            && Arc::ptr_eq(old, new)
        {
            return;
        }
        let before = addresses(old.as_deref());
        let after = addresses(service.map(|service| &**service));
        before.difference(&after).for_each(|ip| _ = self.endpoints.remove(&(*ip, number)));
        self.endpoints.extend(after.difference(&before).map(|ip| (*ip, number)));
        match service {
            Some(service) => _ = self.services.insert(key.clone(), (number, service.clone())),
            None => {
                self.services.remove(key);
                self.names.remove(&number);
            }
        }
    }

    fn free_number(&mut self, key: &NamespacedName) -> u32 {
        while self.names.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.names.insert(self.next, key.clone());
        self.next
    }

    /// Those with an endpoint at this address.
    pub(super) fn at(&self, ip: IpAddr) -> impl Iterator<Item = &NamespacedName> {
        let numbers = self.endpoints.range((ip, 0)..=(ip, u32::MAX));
        numbers.filter_map(|(_, number)| self.names.get(number))
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

fn addresses(service: Option<&CompiledService>) -> BTreeSet<IpAddr> {
    let ports = service.into_iter().flat_map(|service| service.ports.iter());
    ports.flat_map(|port| port.endpoints.iter().map(|endpoint| endpoint.addr().ip())).collect()
}
