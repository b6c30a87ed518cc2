//! What `status` and `analyze` say (spec: machine-readable contract of the commands).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
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
