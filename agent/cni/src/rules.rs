//! Which pods must not start while no agent answers: a file that the agent keeps beside the plugin's binary, where it
//! outlives a reboot of the node.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Name of the file, beside the binary.
pub const FILE: &str = "weft-cni.rules";

/// Namespaces that are never held back: the agent itself and what it needs to run.
pub const EXEMPT: [&str; 2] = ["weft-system", "kube-system"];

/// Which pods belong to the mesh, as far as that can be told from their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Namespaces that are opted in.
    #[serde(default)]
    pub namespaces: BTreeSet<String>,
    /// Workloads of other namespaces whose pods are opted in by a label of their own.
    #[serde(default)]
    pub workloads: BTreeSet<Workload>,
}

/// A workload whose pods have been seen in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// What its pods' names begin with, before a dash; or the whole name of one.
    pub name: String,
}

impl Rules {
    /// Reads the file; none, or one that is not readable, holds nobody back.
    pub fn read(path: &Path) -> Self {
        let text = fs::read(path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whether a pod may not start without the agent.
    pub fn holds_back(&self, namespace: &str, pod: &str) -> bool {
        let is_of = |workload: &Workload| {
            workload.namespace == namespace
                && pod
                    .strip_prefix(&workload.name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        self.namespaces.contains(namespace) || self.workloads.iter().any(is_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_and_labelled_workloads_are_held_back() {
        let rules = Rules {
            namespaces: BTreeSet::from(["shop".to_owned()]),
            workloads: BTreeSet::from([Workload { namespace: "mixed".into(), name: "web".into() }]),
        };
        for (namespace, pod, held) in [
            ("shop", "anything", true),
            ("shops", "anything", false),
            ("mixed", "web-7d4b9c-x2x", true),
            ("mixed", "web", true),
            ("mixed", "website-1", false),
            ("mixed", "other", false),
            ("", "", false),
        ] {
            assert_eq!(rules.holds_back(namespace, pod), held, "{namespace}/{pod}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_broken_holds_nobody_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(Rules::read(&path), Rules::default());
        for garbage in [&b"{"[..], b"\xff\xfe", b"[]", b"{\"namespaces\": 7}"] {
            fs::write(&path, garbage).unwrap();
            assert_eq!(Rules::read(&path), Rules::default());
        }
        fs::write(&path, br#"{"namespaces":["shop"],"of a later version":1}"#).unwrap();
        assert!(Rules::read(&path).holds_back("shop", "x"));
    }
}
