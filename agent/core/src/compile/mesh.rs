//! Mesh-wide settings from MeshConfigs (ruling 14, C-1).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compiler;
use super::findings::{Text, Topic};
use super::policy::TrustDomains;
use crate::names;
use crate::problem::Severity;
use crate::resource::{Kind, MeshConfig, NamespacedName};
use crate::snapshot::MeshSettings;

/// The MeshConfig that counts: Weft's own before Istio's.
fn chosen(configs: &BTreeMap<NamespacedName, MeshConfig>) -> Option<&MeshConfig> {
    let places =
        [(names::WEFT_NAMESPACE, names::WEFT_CONFIG_MAP), (names::ISTIO_NAMESPACE, names::ISTIO_CONFIG_MAP)];
    places.into_iter().find_map(|(namespace, name)| configs.get(&NamespacedName::new(namespace, name)))
}

/// The settings with their defaults filled in.
pub(super) fn settings(config: Option<&MeshConfig>, istio_namespace_exists: bool) -> MeshSettings {
    let default_root = match istio_namespace_exists {
        true => names::ISTIO_NAMESPACE,
        false => names::WEFT_NAMESPACE,
    };
    MeshSettings {
        trust_domain: config
            .and_then(|config| config.trust_domain.clone())
            .unwrap_or_else(|| names::DEFAULT_TRUST_DOMAIN.into()),
        trust_domain_aliases: config.map(|config| config.trust_domain_aliases.clone()).unwrap_or_default(),
        root_namespace: config
            .and_then(|config| config.root_namespace.clone())
            .unwrap_or_else(|| default_root.into()),
        access_log: config.is_some_and(|config| config.access_log),
        access_log_json: config.is_some_and(|config| config.access_log_json),
        access_log_format: config.and_then(|config| config.access_log_format.clone()),
        registry_only: config.is_some_and(|config| config.registry_only),
        encrypt_same_node: config.is_some_and(|config| config.encrypt_same_node),
        exports: config.map(|config| config.exports.clone()).unwrap_or_default(),
        discovery_selectors: config.map(|config| config.discovery_selectors.clone()).unwrap_or_default(),
        http: config.map(|config| Arc::new(config.http.clone())).unwrap_or_default(),
    }
}

impl Compiler {
    pub(super) fn upsert_mesh_config(&mut self, config: MeshConfig) {
        let old = self.mesh_configs.insert(config.key.clone(), config.clone());
        self.objects += usize::from(old.is_none());
        if old.as_ref() != Some(&config) {
            self.dirty.mesh = true;
            self.dirty.any = true;
        }
    }

    pub(super) fn delete_mesh_config(&mut self, key: &NamespacedName) {
        if self.mesh_configs.remove(key).is_some() {
            self.objects -= 1;
            self.dirty.mesh = true;
            self.dirty.any = true;
        }
    }

    /// Brings the settings up to date and marks what depends on those that changed.
    pub(super) fn settle_mesh(&mut self) {
        let configs = &self.mesh_configs;
        // An object in a namespace shows that the namespace exists, also where nobody wrote a Namespace.
        let istio = self.namespaces.contains_key(names::ISTIO_NAMESPACE)
            || configs.keys().any(|key| &*key.namespace == names::ISTIO_NAMESPACE);
        let config = chosen(configs);
        let new = settings(config, istio);
        if std::mem::take(&mut self.dirty.mesh) {
            let used = config.map(|config| &config.key);
            let unused = configs.keys().filter(|key| Some(*key) != used);
            let problems = unused.map(|key| (key.clone(), unused_config(key))).collect::<Vec<_>>();
            self.findings.set_all(Kind::MeshConfig, Topic::Scope, problems);
        }
        let old = std::mem::replace(&mut self.mesh, Arc::new(new));
        let new = &self.mesh;
        if old.trust_domain != new.trust_domain {
            self.dirty.namespaces.extend(self.namespaces.keys().cloned());
        }
        let trusted = |mesh: &MeshSettings| TrustDomains::new(&mesh.trust_domain, &mesh.trust_domain_aliases);
        if trusted(&old) != trusted(new) {
            self.policies.set_trust_domains(trusted(new));
            self.dirty.local.all = true;
        }
        if old.http != new.http {
            self.dirty.local.all = true;
        }
        if old.exports.services != new.exports.services {
            self.dirty.services.extend(self.services.values().map(|service| service.key.clone()));
        }
        if old.root_namespace != new.root_namespace {
            self.dirty.local.all = true;
            self.dirty.peer_authentications.extend(self.namespaces.keys().cloned());
        }
        if old.root_namespace != new.root_namespace || old.discovery_selectors != new.discovery_selectors {
            self.settle_discovery();
        }
    }
}

fn unused_config(key: &NamespacedName) -> crate::Problem {
    let text = Text {
        code: "WEFT0103",
        name: "MeshConfigNotUsed",
        field: String::new(),
        message:
            "mesh-wide settings are taken from ConfigMap weft of weft-system, else from ConfigMap istio of \
                  istio-system; this one has no effect"
                .into(),
        fix: "merge it into the one that is used, or delete it",
    };
    text.about(Severity::Warning, Kind::MeshConfig, key, None)
}
