//! From resources to a [`Snapshot`], incrementally.

pub mod policy;
pub mod sharded;

use std::sync::Arc;

use crate::Snapshot;
use crate::resource::Change;

/// What the compiler needs to know beside the objects.
#[derive(Debug, Clone)]
pub struct CompileOptions {
    /// This node's name; `None` compiles every pod as if it were local (`explain`, `analyze`).
    pub node: Option<Arc<str>>,
    /// Whether Istio's opt-in labels count as well (ruling 15).
    pub adopt_istio_labels: bool,
}

/// Holds the objects and compiles what changed.
#[derive(Debug)]
pub struct Compiler {
    #[allow(dead_code, reason = "skeleton")]
    options: CompileOptions,
}

impl Compiler {
    /// A compiler without any object.
    pub fn new(options: CompileOptions) -> Self {
        Self { options }
    }

    /// Takes changes in; nothing is compiled yet.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(drop);
    }

    /// Compiles what changed since the last call and returns the new snapshot (or the last one, if nothing did).
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        unimplemented!()
    }
}
