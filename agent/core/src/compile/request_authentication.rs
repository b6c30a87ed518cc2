//! RequestAuthentications as the compiler keeps them (RA-1).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compiler;
use crate::resource::{NamespacedName, RequestAuthentication};

/// All of them, by name.
pub(super) type RequestAuthentications = BTreeMap<NamespacedName, Arc<RequestAuthentication>>;

impl Compiler {
    pub(super) fn upsert_request_authentication(&mut self, policy: RequestAuthentication) {
        let key = policy.meta.key.clone();
        let new = self.request_authentications.insert(key, Arc::new(policy)).is_none();
        self.objects += usize::from(new);
        self.dirty.any = true;
    }

    pub(super) fn delete_request_authentication(&mut self, name: &NamespacedName) {
        let known = self.request_authentications.remove(name).is_some();
        self.count(known, -1);
    }
}
