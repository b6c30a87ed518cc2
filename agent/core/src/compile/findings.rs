//! Findings by object, so that compiling one object again replaces only its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::problem::{Origin, Problem, Severity};
use crate::resource::{Kind, NamespacedName, ObjectRef};

/// The step that found something: each replaces its own findings and leaves the others' alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// The object by itself.
    Object,
    /// A pod of this node: membership and capture.
    Local,
    /// Several objects of one kind in one scope.
    Scope,
    /// Addresses that several objects claim.
    Address,
}

type Key = (Kind, NamespacedName, Topic);

/// All findings of a compiler.
#[derive(Debug, Default)]
pub(super) struct Findings {
    by_object: BTreeMap<Key, Vec<Problem>>,
    list: Option<Arc<[Problem]>>,
}

impl Findings {
    /// Replaces the findings of one step about one object.
    pub(super) fn set(&mut self, kind: Kind, name: &NamespacedName, topic: Topic, problems: Vec<Problem>) {
        let key = (kind, name.clone(), topic);
        let same = match self.by_object.get(&key) {
            Some(known) => *known == problems,
            None => problems.is_empty(),
        };
        if same {
            return;
        }
        self.list = None;
        if problems.is_empty() {
            self.by_object.remove(&key);
        } else {
            self.by_object.insert(key, problems);
        }
    }

    /// Replaces the findings of one step about all objects of one kind.
    pub(super) fn set_all(
        &mut self,
        kind: Kind,
        topic: Topic,
        problems: impl IntoIterator<Item = (NamespacedName, Problem)>,
    ) {
        self.by_object.retain(|(of, _, about), _| (*of, *about) != (kind, topic));
        for (name, problem) in problems {
            self.by_object.entry((kind, name, topic)).or_default().push(problem);
        }
        self.list = None;
    }

    /// Everything found, by kind, namespace and name.
    pub(super) fn list(&mut self) -> Arc<[Problem]> {
        let by_object = &self.by_object;
        self.list.get_or_insert_with(|| by_object.values().flatten().cloned().collect()).clone()
    }
}

/// The text of a finding.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) code: &'static str,
    pub(super) name: &'static str,
    pub(super) field: String,
    pub(super) message: String,
    pub(super) fix: &'static str,
}

impl Text {
    /// The finding about an object.
    pub(super) fn about(
        self,
        severity: Severity,
        kind: Kind,
        name: &NamespacedName,
        origin: Option<Origin>,
    ) -> Problem {
        let Self { code, name: code_name, field, message, fix } = self;
        let object = Some(ObjectRef::new(kind, name.namespace.clone(), name.name.clone()));
        Problem { severity, code, name: code_name, object, field, origin, message, fix: fix.into() }
    }
}
