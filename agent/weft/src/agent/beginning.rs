//! What the agent answers before it has a configuration: that it waits for one, and why.

use std::sync::{Arc, OnceLock};

use http::StatusCode;
use weft_control::writer::{Published, Status};
use weft_core::Severity;

use super::admin::{self, Facts};
use super::http::{Asked, Handler, words};
use crate::shutdown::Signals;
use crate::view;

/// What the servers answer, from the first moment on.
pub(super) struct Beginning {
    metrics: Staged,
    readiness: Staged,
    admin: Staged,
    waiting: Handler,
}

/// A handler that is replaced once.
#[derive(Clone, Default)]
struct Staged(Arc<OnceLock<Handler>>);

impl Staged {
    fn handler(&self, first: Handler) -> Handler {
        let later = self.0.clone();
        Arc::new(move |asked| match later.get() {
            Some(later) => later(asked),
            None => first(asked),
        })
    }

    fn replace(&self, later: Handler) {
        // There is one beginning.
        let _ = self.0.set(later);
    }
}

impl Beginning {
    /// Answers that there is no configuration yet.
    pub(super) fn new(node: &str, config: &Published) -> Self {
        Self {
            metrics: Staged::default(),
            readiness: Staged::default(),
            admin: Staged::default(),
            waiting: handler(node, config),
        }
    }

    /// What answers about metrics.
    pub(super) fn metrics(&self) -> Handler {
        self.metrics.handler(self.waiting.clone())
    }

    /// What answers about readiness.
    pub(super) fn readiness(&self) -> Handler {
        self.readiness.handler(self.waiting.clone())
    }

    /// What answers at the admin socket.
    pub(super) fn admin(&self) -> Handler {
        self.admin.handler(self.waiting.clone())
    }

    /// From now on everything is answered.
    pub(super) fn goes_on(&self, facts: &Facts) {
        self.metrics.replace(admin::metrics_handler(facts.clone()));
        self.readiness.replace(admin::readiness_handler(facts.clone()));
        self.admin.replace(admin::admin_handler(facts.clone()));
    }
}

/// Waits for everything to be read; false if a signal asks for the end.
pub(super) async fn configuration(config: &Published, signals: &mut Signals) -> anyhow::Result<bool> {
    if config.status().complete {
        return Ok(true);
    }
    tracing::info!("waiting for the configuration: until then nothing is changed on this node");
    tokio::select! {
        complete = config.completed() => {
            anyhow::ensure!(complete, "the configuration is not followed any more");
            Ok(true)
        }
        () = signals.next() => Ok(false),
    }
}

fn handler(node: &str, config: &Published) -> Handler {
    let (node, config): (Arc<str>, Published) = (node.into(), config.clone());
    Arc::new(move |asked: Asked| {
        let status = config.status();
        let answer = match asked.path.as_str() {
            "/status" => admin::json(&waiting(&node, &status)),
            _ => words(StatusCode::SERVICE_UNAVAILABLE, &why(&status)),
        };
        Box::pin(std::future::ready(answer))
    })
}

fn why(status: &Status) -> String {
    let error = status.problems.iter().find(|problem| problem.severity == Severity::Error);
    let error = error.map(|problem| format!(": {}", problem.message)).unwrap_or_default();
    format!("the configuration has not been read to its end yet{error}")
}

fn waiting(node: &str, config: &Status) -> view::Status {
    view::Status {
        version: env!("CARGO_PKG_VERSION").into(),
        node: node.into(),
        ready: false,
        not_ready: Some(why(config)),
        break_glass: false,
        took_over_from: None,
        handed_over_to: None,
        config: config.into(),
        workloads: Vec::new(),
        certificates: Vec::new(),
        kernel: view::KernelStatus::default(),
    }
}
