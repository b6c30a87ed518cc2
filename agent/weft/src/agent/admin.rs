//! What the running agent tells: status, dump, explain, readiness, metrics.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use http::{Method, StatusCode};
use serde::Serialize;
use weft_control::writer::Published;
use weft_core::snapshot::{Membership, Workload};
use weft_identity::CertStore;
use weft_kernel::{Datapath, EarlierProgram};
use weft_telemetry::Metrics;

use super::exposition::Exposition;
use super::http::{Answer, Asked, Handler, text, words};
use super::node::{NodeState, PodState, SharedDatapath, SharedProxy, lock};
use super::plan;
use super::standing::Standing;
use crate::dump::Dump;
use crate::explain::{Question, explain};
use crate::logging::LogLevel;
use crate::view::{CertificateStatus, KernelStatus, MapStatus, Status, WorkloadStatus};

/// A pod that waits longer than this to be enrolled makes the node not ready.
const PENDING_LIMIT: Duration = Duration::from_secs(30);
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Everything that can be asked about.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) node: Arc<str>,
    pub(super) config: Published,
    pub(super) state: Arc<ArcSwap<NodeState>>,
    pub(super) certs: CertStore,
    pub(super) metrics: Metrics,
    /// `None` in break-glass: nothing is captured.
    pub(super) datapath: Option<SharedDatapath>,
    pub(super) proxy: SharedProxy,
    pub(super) log: LogLevel,
    pub(super) standing: Standing,
}

impl Facts {
    /// Why the node is not ready; `None` when it is.
    pub(super) fn not_ready(&self, now: Instant) -> Option<String> {
        // In break-glass nothing is going to be captured: whoever waits for that waits in vain.
        self.datapath.as_ref()?;
        not_ready(&self.state.load(), now)
    }

    fn status(&self) -> Status {
        let not_ready = self.not_ready(Instant::now());
        let config = self.config.status();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.node.to_string(),
            ready: not_ready.is_none(),
            not_ready,
            break_glass: self.datapath.is_none(),
            took_over_from: self.standing.predecessor(),
            handed_over_to: self.standing.successor(),
            config: config.as_ref().into(),
            workloads: self.workloads(),
            certificates: self.certificates(),
            kernel: self.datapath.as_ref().map(kernel).unwrap_or_default(),
        }
    }

    fn workloads(&self) -> Vec<WorkloadStatus> {
        let snapshot = self.config.snapshot();
        let state = self.state.load();
        let connections = lock(&self.proxy).as_ref().map(|proxy| proxy.connections()).unwrap_or_default();
        let open = |key| connections.iter().find(|(pod, _)| pod == key).map_or(0, |(_, open)| *open);
        let local = snapshot.local().iter().map(|local| &local.workload);
        let is_opted_out = |workload: &Workload| plan::is_opted_out(workload, &snapshot);
        let shown =
            local.filter(|workload| workload.membership != Membership::OutOfMesh || is_opted_out(workload));
        shown
            .map(|workload| {
                let pod = state.pods.get(&workload.key);
                let outside = is_opted_out(workload).then_some(("excluded", plan::OPTED_OUT));
                WorkloadStatus {
                    pod: workload.key.to_string(),
                    ip: workload.ips.iter().map(ToString::to_string).collect(),
                    principal: workload.identity.principal(),
                    state: outside.map_or_else(|| self.state_of(pod), |(state, _)| state).into(),
                    reason: outside.map_or_else(|| self.reason_of(pod), |(_, why)| Some(why.to_owned())),
                    connections: open(&workload.key),
                }
            })
            .collect()
    }

    fn state_of(&self, pod: Option<&PodState>) -> &'static str {
        match (&self.datapath, pod) {
            (None, _) => "excluded",
            (Some(_), Some(pod)) => pod.state,
            (Some(_), None) => "enrolling",
        }
    }

    fn reason_of(&self, pod: Option<&PodState>) -> Option<String> {
        match &self.datapath {
            None => Some("capture is switched off for the whole node (--break-glass)".into()),
            Some(_) => pod.and_then(|pod| pod.reason.clone()),
        }
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        let infos = self.certs.infos();
        infos
            .into_iter()
            .map(|info| CertificateStatus {
                principal: info.identity.principal(),
                not_after: info.not_after.and_then(timestamp),
                error: info.error,
            })
            .collect()
    }
}

fn not_ready(state: &NodeState, now: Instant) -> Option<String> {
    if state.revision.is_none() {
        return Some("the configuration is not in force yet".into());
    }
    if let Some(failure) = &state.failure {
        return Some(format!("the kernel maps could not be written: {failure}"));
    }
    state.pods.iter().find_map(|(key, pod)| {
        let waited = now.saturating_duration_since(pod.pending_since?);
        (waited > PENDING_LIMIT).then(|| format!("Pod {key} has been enrolling for {} s", waited.as_secs()))
    })
}

fn kernel(datapath: &SharedDatapath) -> KernelStatus {
    let datapath = lock(datapath);
    let maps = [datapath.maps(), datapath.tuple_maps()].concat();
    KernelStatus {
        programs: datapath.programs(),
        earlier: earlier_programs(&datapath),
        maps: maps
            .into_iter()
            .map(|map| MapStatus { name: map.name, entries: map.entries, max: map.max_entries })
            .collect(),
    }
}

/// Programs of others that see connections first, as people look them up.
pub(super) fn earlier_programs(datapath: &Datapath) -> Vec<String> {
    let found = datapath.earlier_programs().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the programs of others at the pods' cgroup");
        Vec::new()
    });
    let name = |name: String| if name.is_empty() { "a program without a name".to_owned() } else { name };
    let described = found.into_iter().map(|EarlierProgram { hook, id, name: of }| {
        format!("{} at {hook} (bpftool prog show id {id})", name(of))
    });
    described.collect()
}

/// RFC 3339 in UTC, to the second.
fn timestamp(time: SystemTime) -> Option<String> {
    let time = jiff::Timestamp::try_from(time).ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `/metrics` and `/stats/prometheus`.
pub(super) fn metrics_handler(facts: Facts) -> Handler {
    let exposition = Exposition::new(facts.metrics);
    Arc::new(move |asked| {
        let exposition = exposition.clone();
        Box::pin(async move {
            if !matches!(asked.path.as_str(), "/metrics" | "/stats/prometheus") {
                return words(StatusCode::NOT_FOUND, "There are /metrics and /stats/prometheus.");
            }
            text(StatusCode::OK, PROMETHEUS, exposition.scrape().await)
        })
    })
}

/// `/healthz/ready`.
pub(super) fn readiness_handler(facts: Facts) -> Handler {
    Arc::new(move |asked| {
        let answer = match (asked.path.as_str(), facts.not_ready(Instant::now())) {
            ("/healthz/ready", None) => words(StatusCode::OK, "ready"),
            ("/healthz/ready", Some(why)) => words(StatusCode::SERVICE_UNAVAILABLE, &why),
            (_, _) => words(StatusCode::NOT_FOUND, "There is /healthz/ready."),
        };
        Box::pin(std::future::ready(answer))
    })
}

/// The admin socket.
pub(super) fn admin_handler(facts: Facts) -> Handler {
    Arc::new(move |asked| {
        let facts = facts.clone();
        Box::pin(async move {
            // A dump of a large mesh takes longer than readiness checks like to wait.
            let answer = tokio::task::spawn_blocking(move || admin(&facts, &asked)).await;
            answer.unwrap_or_else(|error| words(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
        })
    })
}

fn admin(facts: &Facts, asked: &Asked) -> Answer {
    match (&asked.method, asked.path.as_str()) {
        (&Method::GET, "/status") => json(&facts.status()),
        (&Method::GET, "/dump") => json(&Dump::of(&facts.config.snapshot())),
        (&Method::GET, "/explain") => explanation(facts, asked),
        (&Method::POST, "/log-level") => log_level(facts, asked),
        (_, "/status" | "/dump" | "/explain" | "/log-level") => words(
            StatusCode::METHOD_NOT_ALLOWED,
            "status, dump and explain are read with GET, log-level is set with POST.",
        ),
        (_, _) => words(StatusCode::NOT_FOUND, "There are /status, /dump, /explain and /log-level."),
    }
}

fn explanation(facts: &Facts, asked: &Asked) -> Answer {
    let (Some(from), Some(to)) = (asked.parameter("from"), asked.parameter("to")) else {
        return words(StatusCode::BAD_REQUEST, "The parameters `from` and `to` are missing.");
    };
    let text = |name: &str| asked.parameter(name).map(Into::into);
    let number = |name: &str| asked.parameter(name).and_then(|value| value.parse().ok());
    let question = Question {
        from: from.into(),
        to: to.into(),
        plaintext: asked.parameter("plaintext").is_some_and(|value| value != "false"),
        sni: text("sni"),
        alpn: text("alpn"),
        method: text("method"),
        headers: asked.parameters("header").map(Into::into).collect(),
        body_size: number("body-size"),
        token: text("jwt"),
        at: text("at"),
        seed: number("seed"),
    };
    let learned = &facts.state.load().learned;
    match explain(&facts.config.snapshot(), learned, &question) {
        Ok(answer) => json(&answer),
        Err(error) => words(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn log_level(facts: &Facts, asked: &Asked) -> Answer {
    let Some(level) = asked.parameter("level") else {
        return words(StatusCode::BAD_REQUEST, "The parameter `level` is missing.");
    };
    match facts.log.set(level) {
        Ok(()) => words(StatusCode::OK, &format!("The level is {level}.")),
        Err(error) => words(StatusCode::BAD_REQUEST, &format!("{error:#}")),
    }
}

pub(super) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => text(StatusCode::OK, JSON, body),
        Err(error) => words(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
