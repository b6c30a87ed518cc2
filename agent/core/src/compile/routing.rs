//! VirtualServices and DestinationRules, indexed by host.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compiler;
use crate::resource::{DestinationRule, NamespacedName, VirtualService};

/// The objects as the compiler keeps them, and what was compiled of them last.
#[derive(Debug, Default)]
pub(super) struct RoutingState {
    virtual_services: BTreeMap<NamespacedName, Arc<VirtualService>>,
    destination_rules: BTreeMap<NamespacedName, Arc<DestinationRule>>,
    published: Arc<Routing>,
}

/// What decisions on requests read beside Services and workloads.
#[derive(Debug, Default)]
pub struct Routing {}

impl RoutingState {
    /// The compiled form.
    pub(super) fn published(&self) -> Arc<Routing> {
        self.published.clone()
    }
}

impl Compiler {
    pub(super) fn upsert_virtual_service(&mut self, service: VirtualService) {
        let key = service.meta.key.clone();
        let new = self.routing.virtual_services.insert(key, Arc::new(service)).is_none();
        self.objects += usize::from(new);
        self.dirty.any = true;
    }

    pub(super) fn delete_virtual_service(&mut self, name: &NamespacedName) {
        let known = self.routing.virtual_services.remove(name).is_some();
        self.count(known, -1);
    }

    pub(super) fn upsert_destination_rule(&mut self, rule: DestinationRule) {
        let key = rule.meta.key.clone();
        let new = self.routing.destination_rules.insert(key, Arc::new(rule)).is_none();
        self.objects += usize::from(new);
        self.dirty.any = true;
    }

    pub(super) fn delete_destination_rule(&mut self, name: &NamespacedName) {
        let known = self.routing.destination_rules.remove(name).is_some();
        self.count(known, -1);
    }
}
