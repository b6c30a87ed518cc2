//! `deploy/crds/`: definitions of Istio's kinds for clusters that have no Istio.
//!
//! Names, versions and columns are those of Istio, so that the objects that users have work unchanged, and a
//! later installation of Istio's own definitions finds nothing to migrate. The schema is permissive: what
//! belongs in an object is judged by `weft analyze` and the controller, with a text that explains it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::build::root;

#[derive(Debug, Args)]
pub(crate) struct CrdArgs {
    /// Only compare; a file that is missing, different or too many is bad news.
    #[arg(long)]
    check: bool,
}

/// A kind of Istio, as a cluster has to know it.
struct Definition {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    /// The first one is stored.
    versions: &'static [&'static str],
    /// Name, type and JSON path of what `kubectl get` shows beside name and age.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const THREE: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const TWO: &[&str] = &["v1", "v1beta1"];

const DEFINITIONS: &[Definition] = &[
    Definition {
        group: NETWORKING,
        kind: "VirtualService",
        plural: "virtualservices",
        short_names: &["vs"],
        versions: THREE,
        columns: &[("Gateways", "string", ".spec.gateways"), ("Hosts", "string", ".spec.hosts")],
    },
    Definition {
        group: NETWORKING,
        kind: "DestinationRule",
        plural: "destinationrules",
        short_names: &["dr"],
        versions: THREE,
        columns: &[("Host", "string", ".spec.host")],
    },
    Definition {
        group: NETWORKING,
        kind: "Gateway",
        plural: "gateways",
        short_names: &["gw"],
        versions: THREE,
        columns: &[],
    },
    Definition {
        group: NETWORKING,
        kind: "ServiceEntry",
        plural: "serviceentries",
        short_names: &["se"],
        versions: THREE,
        columns: &[
            ("Hosts", "string", ".spec.hosts"),
            ("Location", "string", ".spec.location"),
            ("Resolution", "string", ".spec.resolution"),
        ],
    },
    Definition {
        group: NETWORKING,
        kind: "Sidecar",
        plural: "sidecars",
        short_names: &[],
        versions: THREE,
        columns: &[],
    },
    Definition {
        group: NETWORKING,
        kind: "WorkloadEntry",
        plural: "workloadentries",
        short_names: &["we"],
        versions: THREE,
        columns: &[("Address", "string", ".spec.address")],
    },
    Definition {
        group: NETWORKING,
        kind: "WorkloadGroup",
        plural: "workloadgroups",
        short_names: &["wg"],
        versions: THREE,
        columns: &[],
    },
    Definition {
        group: NETWORKING,
        kind: "EnvoyFilter",
        plural: "envoyfilters",
        short_names: &[],
        versions: &["v1alpha3"],
        columns: &[],
    },
    Definition {
        group: NETWORKING,
        kind: "ProxyConfig",
        plural: "proxyconfigs",
        short_names: &[],
        versions: &["v1beta1"],
        columns: &[],
    },
    Definition {
        group: SECURITY,
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short_names: &["ap"],
        versions: TWO,
        columns: &[("Action", "string", ".spec.action")],
    },
    Definition {
        group: SECURITY,
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        short_names: &["pa"],
        versions: TWO,
        columns: &[("Mode", "string", ".spec.mtls.mode")],
    },
    Definition {
        group: SECURITY,
        kind: "RequestAuthentication",
        plural: "requestauthentications",
        short_names: &["ra"],
        versions: TWO,
        columns: &[],
    },
    Definition {
        group: "telemetry.istio.io",
        kind: "Telemetry",
        plural: "telemetries",
        short_names: &["telemetry"],
        versions: &["v1", "v1alpha1"],
        columns: &[],
    },
    Definition {
        group: "extensions.istio.io",
        kind: "TrafficExtension",
        plural: "trafficextensions",
        short_names: &[],
        versions: &["v1alpha1"],
        columns: &[],
    },
    Definition {
        group: "extensions.istio.io",
        kind: "WasmPlugin",
        plural: "wasmplugins",
        short_names: &[],
        versions: &["v1alpha1"],
        columns: &[],
    },
];

/// Writes or compares the files; false when a comparison found a difference.
///
/// # Errors
/// The folder cannot be read or written.
pub(crate) fn run(args: &CrdArgs) -> Result<bool> {
    let folder = root()?.join("deploy/crds");
    if !args.check {
        return write(&folder).map(|()| true);
    }
    let different = differences(&folder)?;
    for path in &different {
        eprintln!("{} is not what `cargo xtask crd` writes", path.display());
    }
    Ok(different.is_empty())
}

fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for definition in DEFINITIONS {
        let path = folder.join(definition.file_name());
        fs::write(&path, definition.yaml()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Files that are missing, that differ, or that no definition belongs to.
fn differences(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let present = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut wrong =
        present.map(|entry| entry.map(|entry| entry.path())).collect::<Result<BTreeSet<_>, _>>()?;
    for definition in DEFINITIONS {
        let path = folder.join(definition.file_name());
        if fs::read_to_string(&path).is_ok_and(|text| text == definition.yaml()) {
            wrong.remove(&path);
        } else {
            wrong.insert(path);
        }
    }
    Ok(wrong)
}

impl Definition {
    fn file_name(&self) -> String {
        format!("{}.{}.yaml", self.plural, self.group)
    }

    fn yaml(&self) -> String {
        let Self { group, kind, plural, .. } = self;
        let singular = kind.to_ascii_lowercase();
        let (category, _) = group.split_once('.').unwrap_or((group, ""));
        let mut text = format!(
            "# Written by `cargo xtask crd`. For clusters without Istio; its own definitions are never replaced.\n\
             apiVersion: apiextensions.k8s.io/v1\n\
             kind: CustomResourceDefinition\n\
             metadata:\n  name: {plural}.{group}\n  labels:\n    app.kubernetes.io/part-of: weft\n\
             spec:\n  group: {group}\n  scope: Namespaced\n\
             \x20 names:\n    kind: {kind}\n    listKind: {kind}List\n    plural: {plural}\n    singular: {singular}\n\
             \x20   categories: [istio-io, {category}-istio-io]\n"
        );
        if !self.short_names.is_empty() {
            text += &format!("    shortNames: [{}]\n", self.short_names.join(", "));
        }
        text += "  versions:\n";
        for (index, version) in self.versions.iter().enumerate() {
            self.version(&mut text, version, index == 0);
        }
        text
    }

    fn version(&self, text: &mut String, version: &str, stored: bool) {
        *text += &format!(
            "  - name: {version}\n    served: true\n    storage: {stored}\n    subresources:\n      status: {{}}\n"
        );
        *text += "    additionalPrinterColumns:\n";
        for (name, kind, path) in self.columns.iter().chain(&[("Age", "date", ".metadata.creationTimestamp")])
        {
            // A `String` takes all that is written to it.
            let _ = writeln!(text, "    - {{name: {name}, type: {kind}, jsonPath: {path}}}");
        }
        *text += "    schema:\n      openAPIV3Schema:\n        type: object\n        properties:\n";
        for field in ["spec", "status"] {
            let _ = writeln!(
                text,
                "          {field}:\n            type: object\n            x-kubernetes-preserve-unknown-fields: true"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_this_module_writes() {
        let folder = root().unwrap().join("deploy/crds");
        assert_eq!(differences(&folder).unwrap(), BTreeSet::new(), "run `cargo xtask crd`");
    }
}
