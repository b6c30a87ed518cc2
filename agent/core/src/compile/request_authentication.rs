//! RequestAuthentications become the rules of each workload (RA-1).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compiler;
use crate::resource::{Kind, Labels, NamespacedName, ObjectRef, RequestAuthentication};
use crate::snapshot::JwtPolicy;

/// One object and its rules, ready to be shared by the workloads that it selects.
#[derive(Debug)]
pub(super) struct Record {
    object: RequestAuthentication,
    rules: Vec<Arc<JwtPolicy>>,
}

/// All of them, by name.
pub(super) type RequestAuthentications = BTreeMap<NamespacedName, Record>;

impl Compiler {
    pub(super) fn upsert_request_authentication(&mut self, object: RequestAuthentication) {
        let key = object.meta.key.clone();
        if self.request_authentications.get(&key).is_some_and(|old| old.object == object) {
            return;
        }
        let name = ObjectRef::new(Kind::RequestAuthentication, key.namespace.clone(), key.name.clone());
        let rules = object.rules.iter();
        let rules =
            rules.map(|rule| Arc::new(JwtPolicy { object: name.clone(), rule: rule.clone() })).collect();
        let new = self.request_authentications.insert(key.clone(), Record { object, rules }).is_none();
        self.objects += usize::from(new);
        self.mark_request_authentications(key.namespace);
    }

    pub(super) fn delete_request_authentication(&mut self, name: &NamespacedName) {
        if self.request_authentications.remove(name).is_some() {
            self.objects -= 1;
            self.mark_request_authentications(name.namespace.clone());
        }
    }

    fn mark_request_authentications(&mut self, namespace: Arc<str>) {
        self.dirty.any = true;
        if namespace == self.mesh.root_namespace {
            self.dirty.local.all = true;
        } else {
            self.dirty.local.namespaces.insert(namespace);
        }
    }

    /// The rules for the workloads with these labels: those of every object that selects them, sorted by issuer.
    pub(super) fn jwt_rules_of(&self, namespace: &Arc<str>, labels: &Labels) -> Arc<[Arc<JwtPolicy>]> {
        let root = &self.mesh.root_namespace;
        let scopes = [Some(root), Some(namespace).filter(|own| *own != root)];
        let mut records: Vec<&Record> = scopes
            .into_iter()
            .flatten()
            .flat_map(|scope| {
                let from = NamespacedName::new(scope.clone(), "");
                let records = self.request_authentications.range(from..);
                records.take_while(move |(key, _)| key.namespace == *scope).map(|(_, record)| record)
            })
            .filter(|record| selects(&record.object, labels))
            .collect();
        records.sort_by(|a, b| a.object.meta.precedence().cmp(&b.object.meta.precedence()));
        let mut rules: Vec<Arc<JwtPolicy>> =
            records.iter().flat_map(|record| record.rules.iter().cloned()).collect();
        rules.sort_by(|a, b| a.rule.issuer.cmp(&b.rule.issuer));
        rules.into()
    }
}

/// Objects that name a gateway are none of a workload's business (AP-3).
fn selects(object: &RequestAuthentication, labels: &Labels) -> bool {
    !object.targets_gateway && object.selector.as_ref().is_none_or(|selector| selector.is_subset_of(labels))
}
