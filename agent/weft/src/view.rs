//! What `status` and `analyze` say (spec: machine-readable contract of the commands).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_control::kubernetes::Freshness;
use weft_core::{Problem, Severity};

use crate::explain::ObjectView;

/// `weft status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
    /// Why not.
    pub(crate) not_ready: Option<String>,
    /// Capture is switched off for the whole node (ruling 12).
    pub(crate) break_glass: bool,
    /// The agent that this one has replaced while it ran.
    #[serde(default)]
    pub(crate) took_over_from: Option<String>,
    /// The agent that has replaced this one; connections that are open end here.
    #[serde(default)]
    pub(crate) handed_over_to: Option<String>,
    pub(crate) config: ConfigStatus,
    pub(crate) workloads: Vec<WorkloadStatus>,
    pub(crate) certificates: Vec<CertificateStatus>,
    pub(crate) kernel: KernelStatus,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConfigStatus {
    pub(crate) source: String,
    pub(crate) revision: String,
    pub(crate) age_ms: u64,
    pub(crate) objects: BTreeMap<String, usize>,
    pub(crate) problems: usize,
    /// Whether changes are heard of; `null` where the source is no server.
    #[serde(default)]
    pub(crate) connected: Option<bool>,
    /// What is known of each kind that is watched; empty where the source is no server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) freshness: Vec<KindFreshness>,
}

impl Status {
    /// Nothing is wrong on this node.
    pub(crate) fn is_fine(&self) -> bool {
        self.ready && !self.break_glass && self.workloads.iter().all(|pod| pod.state != "failed")
    }
}

impl WorkloadStatus {
    pub(crate) fn is_in(&self, namespace: &str) -> bool {
        self.pod.split_once('/').is_some_and(|(of_pod, _)| of_pod == namespace)
    }
}

/// The watch of one kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KindFreshness {
    pub(crate) kind: String,
    pub(crate) connected: bool,
    /// Everything was read once.
    pub(crate) synced: bool,
    /// Since when nothing was heard of it.
    pub(crate) age_ms: Option<u64>,
    /// Why it is not watched.
    pub(crate) failure: Option<String>,
    pub(crate) watch_restarts: u64,
}

impl From<&weft_control::Status> for ConfigStatus {
    fn from(status: &weft_control::Status) -> Self {
        let freshness = status.freshness.as_ref().map(Freshness::kinds).unwrap_or_default();
        Self {
            source: status.source.into(),
            revision: status.revision.to_string(),
            age_ms: milliseconds(status.age()),
            objects: status.kinds.iter().map(|(kind, count)| (kind.as_str().to_owned(), *count)).collect(),
            problems: status.problems.len(),
            connected: status.is_connected(),
            freshness: freshness.into_iter().map(KindFreshness::from).collect(),
        }
    }
}

impl From<weft_control::kubernetes::KindFreshness> for KindFreshness {
    fn from(kind: weft_control::kubernetes::KindFreshness) -> Self {
        let weft_control::kubernetes::KindFreshness {
            kind, connected, synced, age, failure, restarts, ..
        } = kind;
        Self { kind, connected, synced, age_ms: age.map(milliseconds), failure, watch_restarts: restarts }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WorkloadStatus {
    pub(crate) pod: String,
    pub(crate) ip: Vec<String>,
    pub(crate) principal: String,
    /// `enrolled`, `enrolling`, `excluded` or `failed`.
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) connections: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CertificateStatus {
    pub(crate) principal: String,
    pub(crate) not_after: Option<String>,
    pub(crate) error: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct KernelStatus {
    pub(crate) programs: Vec<String>,
    /// Programs of others that see the connections of pods before ours do: hook, name, number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) earlier: Vec<String>,
    pub(crate) maps: Vec<MapStatus>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MapStatus {
    pub(crate) name: String,
    pub(crate) entries: usize,
    pub(crate) max: usize,
}

/// `weft analyze`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Analysis {
    pub(crate) findings: Vec<Finding>,
    pub(crate) objects: Objects,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Objects {
    pub(crate) read: usize,
    pub(crate) accepted: usize,
    pub(crate) rejected: usize,
    pub(crate) ignored: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) code: &'static str,
    pub(crate) name: &'static str,
    pub(crate) severity: String,
    pub(crate) object: Option<ObjectView>,
    pub(crate) field: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) document: Option<u32>,
    pub(crate) line: Option<u32>,
    pub(crate) message: String,
    pub(crate) fix: Option<String>,
}

impl From<&Problem> for Finding {
    fn from(problem: &Problem) -> Self {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let origin = problem.origin.as_ref();
        Self {
            code: problem.code,
            name: problem.name,
            severity: problem.severity.to_string(),
            object: problem.object.as_ref().map(ObjectView::from),
            field: text(&problem.field),
            file: origin.map(|origin| origin.file.to_string()),
            document: origin.map(|origin| origin.document),
            line: origin.map(|origin| origin.line),
            message: problem.message.clone(),
            fix: text(&problem.fix),
        }
    }
}

/// Whether any problem is as bad as `limit`.
pub(crate) fn worst(problems: &[Problem]) -> Option<Severity> {
    problems.iter().map(|problem| problem.severity).max()
}
