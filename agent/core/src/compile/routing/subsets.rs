//! The endpoints of subsets (D-4), compiled with the Service so that a decision only looks them up.

use std::net::IpAddr;
use std::sync::Arc;

use crate::resource::Labels;
use crate::snapshot::{CompiledService, Endpoint};

/// The endpoints of one subset, for each port of the Service.
type ByPort = Box<[Arc<[Endpoint]>]>;

/// The subsets of one Service, by their labels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SubsetTable(Box<[(Arc<Labels>, ByPort)]>);

impl SubsetTable {
    /// Filters the endpoints of each port by the labels of their pods. Lists that equal those of `old` are shared
    /// with it.
    pub(super) fn new<'p>(
        service: &CompiledService,
        selectors: impl IntoIterator<Item = Arc<Labels>>,
        labels_of: impl Fn(&IpAddr) -> Option<&'p Labels>,
        old: Option<&Self>,
    ) -> Self {
        let entry = |selector: Arc<Labels>| {
            let of_port = |(at, endpoints): (usize, &Arc<[Endpoint]>)| {
                let selected = select(endpoints, &selector, &labels_of);
                let known = old.and_then(|old| old.get(&selector, at));
                known.filter(|known| **known == selected).cloned().unwrap_or(selected)
            };
            let ports = service.ports.iter().map(|port| &port.endpoints).enumerate().map(of_port).collect();
            (selector, ports)
        };
        Self(selectors.into_iter().map(entry).collect())
    }

    /// The endpoints of a port (by its index) whose pods have these labels.
    pub(crate) fn get(&self, labels: &Labels, port: usize) -> Option<&Arc<[Endpoint]>> {
        self.0.iter().find(|(selector, _)| **selector == *labels)?.1.get(port)
    }

    /// Whether there is no subset.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn select<'p>(
    endpoints: &Arc<[Endpoint]>,
    selector: &Labels,
    labels_of: &impl Fn(&IpAddr) -> Option<&'p Labels>,
) -> Arc<[Endpoint]> {
    let selects = |endpoint: &&Endpoint| {
        labels_of(&endpoint.addr().ip()).is_some_and(|labels| selector.is_subset_of(labels))
    };
    if selector.is_empty() || endpoints.iter().all(|endpoint| selects(&endpoint)) {
        return endpoints.clone();
    }
    endpoints.iter().filter(selects).cloned().collect()
}
