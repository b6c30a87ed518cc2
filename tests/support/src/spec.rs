//! What a lab is to consist of.

use std::path::PathBuf;

/// A pod that is to be made.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) annotations: Vec<(String, String)>,
}

impl PodSpec {
    /// A pod with label `app: NAME` and service account `default`.
    pub fn new(node: &str, namespace: &str, name: &str) -> Self {
        Self {
            node: node.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: "default".to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            annotations: Vec::new(),
        }
    }

    /// Runs it under another service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        self.service_account = name.to_owned();
        self
    }

    /// Adds a label, or replaces one.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.retain(|(have, _)| have != key);
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A lab that is to be made.
#[derive(Debug, Clone, Default)]
pub struct LabSpec {
    pub(crate) nodes: Vec<String>,
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) for_bench: bool,
    pub(crate) binaries: Option<PathBuf>,
}

impl LabSpec {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push(name.to_owned());
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Cubic on the whole machine for the time of the lab, and the port ranges and backlogs of a benchmark.
    #[must_use]
    pub fn for_bench(mut self) -> Self {
        self.for_bench = true;
        self
    }

    /// Directory of `weft` and `lab-peer`; otherwise that of the running program (Cargo's target directory).
    #[must_use]
    pub fn binaries(mut self, dir: PathBuf) -> Self {
        self.binaries = Some(dir);
        self
    }
}
