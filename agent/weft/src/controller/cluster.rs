//! The controller on a cluster: certificates over TLS, and the duties for users' objects.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::StatusCode;
use tokio::sync::watch;
use weft_control::Handle;
use weft_control::kubernetes::{self, ClientOptions};
use weft_telemetry::Metrics;

use super::SnapshotAuthority;
use super::ca::{CaOptions, Serving, Surroundings};
use super::counters::Counters;
use super::duties::{self, Duties, DutyOptions};
use crate::agent::exposition::Exposition;
use crate::agent::http::{self as server, Handler, text, words};
use crate::config;
use crate::memory;
use crate::shutdown::Signals;

/// What a scrape gets.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Settings of a controller on a cluster.
#[derive(Debug, Clone, Args)]
pub(super) struct ClusterOptions {
    #[command(flatten)]
    ca: CaOptions,
    #[command(flatten)]
    duties: DutyOptions,
    /// Namespace of the controller's own objects [default: that of the environment variable POD_NAMESPACE, else
    /// weft-system].
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Name of the Service through which agents and the API server reach the controller.
    #[arg(long, value_name = "NAME", default_value = "weft-controller")]
    service: String,
    /// Further DNS name of the controller's own certificates. May be repeated.
    #[arg(long, value_name = "NAME")]
    server_name: Vec<String>,
    /// Address of the metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15020")]
    metrics_addr: SocketAddr,
    /// Address of the readiness check.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15021")]
    readiness_addr: SocketAddr,
}

impl ClusterOptions {
    fn namespace(&self) -> String {
        let of_pod = || std::env::var("POD_NAMESPACE").ok().filter(|name| !name.is_empty());
        self.namespace.clone().or_else(of_pod).unwrap_or_else(|| "weft-system".to_owned())
    }

    /// Every name that a client in the cluster may use.
    fn names(&self, namespace: &str) -> Vec<String> {
        let service = &self.service;
        let mut names = vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            format!("{service}.{namespace}"),
            service.clone(),
        ];
        names.extend(self.server_name.iter().cloned());
        names
    }
}

/// Why the controller is not ready; empty when it is.
type Readiness = watch::Sender<&'static str>;

/// Runs until a signal asks for the end.
pub(super) async fn run(
    options: ClusterOptions,
    client: ClientOptions,
    source: Handle,
    max_lifetime: Duration,
) -> anyhow::Result<()> {
    let metrics = Metrics::new();
    let readiness = Readiness::new("the configuration has not been read yet");
    serve_machines(&options, &metrics, &readiness).await?;
    if !config::first(&source).await? {
        return Ok(());
    }
    readiness.send_replace("the CA's Secret has not been read yet");
    let mut signals = Signals::new()?;
    let starting = start(&options, &client, &source, max_lifetime, &metrics);
    let (mut ca, duties) = tokio::select! {
        started = starting => started?,
        () = signals.next() => return Ok(()),
    };
    readiness.send_replace("");
    tracing::info!("the controller runs");
    memory::give_back_start();
    let ended = tokio::select! {
        () = signals.next() => Ok(()),
        error = ca.ended() => Err(error),
    };
    readiness.send_replace("the controller is stopping");
    tracing::info!("stopping");
    tokio::select! {
        () = async { duties.stop().await; ca.stop().await } => {}
        () = signals.next() => {}
    }
    ended
}

async fn start(
    options: &ClusterOptions,
    client: &ClientOptions,
    source: &Handle,
    max_lifetime: Duration,
    metrics: &Metrics,
) -> anyhow::Result<(Serving, Duties)> {
    let client = kubernetes::client(client).await?;
    let (namespace, published) = (options.namespace(), source.published().clone());
    let names = options.names(&namespace);
    let around = Surroundings {
        client: client.clone(),
        namespace: namespace.clone(),
        trust_domain: source.snapshot().mesh().trust_domain.to_string(),
        max_lifetime,
        names: names.clone(),
        authority: Arc::new(SnapshotAuthority::new(published.clone())),
    };
    let ca = Serving::start(&options.ca, around).await?;
    let readings = ca.readings();
    metrics.on_scrape(Box::new(move |sink| readings.collect(sink)));
    let counters = Arc::<Counters>::default();
    let around = duties::Surroundings {
        client,
        namespace,
        published,
        ca: ca.ca(),
        names,
        counters: Arc::clone(&counters),
    };
    let duties = Duties::start(options.duties.clone(), around).await?;
    let leadership = duties.leadership();
    metrics.on_scrape(Box::new(move |sink| counters.collect(leadership.holds(), sink)));
    Ok((ca, duties))
}

/// Metrics and readiness, the only ports that are open to everybody.
async fn serve_machines(
    options: &ClusterOptions,
    metrics: &Metrics,
    readiness: &Readiness,
) -> anyhow::Result<()> {
    let listener = server::bind("metrics", options.metrics_addr).await?;
    tokio::spawn(server::serve_tcp(listener, metrics_handler(metrics.clone())));
    let listener = server::bind("readiness", options.readiness_addr).await?;
    tokio::spawn(server::serve_tcp(listener, readiness_handler(readiness.subscribe())));
    Ok(())
}

fn metrics_handler(metrics: Metrics) -> Handler {
    let exposition = Exposition::new(metrics);
    Arc::new(move |asked| {
        let exposition = exposition.clone();
        Box::pin(async move {
            if asked.path != "/metrics" {
                return words(StatusCode::NOT_FOUND, "There is /metrics.");
            }
            text(StatusCode::OK, PROMETHEUS, exposition.scrape().await)
        })
    })
}

fn readiness_handler(readiness: watch::Receiver<&'static str>) -> Handler {
    Arc::new(move |asked| {
        let why = *readiness.borrow();
        let answer = match asked.path.as_str() {
            "/healthz/ready" if why.is_empty() => words(StatusCode::OK, "ready"),
            "/healthz/ready" => words(StatusCode::SERVICE_UNAVAILABLE, why),
            _ => words(StatusCode::NOT_FOUND, "There is /healthz/ready."),
        };
        Box::pin(std::future::ready(answer))
    })
}
