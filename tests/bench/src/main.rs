//! Times decisions about inbound connections, or requests, on a configuration, and prints the percentiles as JSON.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_core::Identity;
use weft_core::compile::CompileOptions;
use weft_core::decide::http::Request;
use weft_core::decide::inbound;
use weft_core::decide::request_authentication::Authentication;
use weft_core::decide::{InboundConnection, InboundRequest, Verdict};
use weft_core::resource::NamespacedName;

#[derive(Debug, Parser)]
#[command(about = "Times policy decisions")]
struct Args {
    /// The configuration.
    #[arg(long)]
    config: PathBuf,
    /// `NAMESPACE/NAME` of the pod that is connected to.
    #[arg(long)]
    to: String,
    /// How many decisions.
    #[arg(long, default_value_t = 200_000)]
    decisions: usize,
    /// About requests instead of connections.
    #[arg(long)]
    requests: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let options = CompileOptions { node: None, adopt_istio_labels: true, endpoints_from_pods: true };
    let snapshot = weft_control::directory::load(&[args.config], options)?.snapshot;
    let (namespace, name) = args.to.split_once('/').context("--to is NAMESPACE/NAME")?;
    let workload =
        snapshot.local_workload(&NamespacedName::new(namespace, name)).context("there is no such pod")?;
    let ip = *workload.workload.ips.first().context("the pod has no address")?;
    // Every identity of the configuration in turn: what one decision leaves in the caches helps the next
    // one no more than in a busy node.
    let sources: Vec<(Arc<Identity>, _)> =
        snapshot.workloads().filter_map(|w| Some((w.identity.clone(), *w.ips.first()?))).collect();
    let destination = SocketAddr::new(ip, 8080);
    let headers = headers();
    let request = Request {
        method: "GET",
        scheme: "http",
        authority: "server.mesh:8080",
        target: "/items/7?colour=red",
        headers: &headers,
    };
    let authentication = Authentication::default();
    let (mut allowed, mut all) = (Vec::new(), Vec::with_capacity(args.decisions));
    for (identity, source_ip) in sources.iter().cycle().take(args.decisions) {
        let connection = InboundConnection {
            identity: Some(identity.as_ref()),
            source_ip: *source_ip,
            destination,
            sni: None,
        };
        let asked = InboundRequest { connection, request, authentication: &authentication };
        let started = Instant::now();
        let decision = match args.requests {
            true => inbound::request(workload, black_box(&asked)),
            false => inbound::inbound(workload, black_box(&connection)),
        };
        let time = started.elapsed();
        all.push(time);
        if black_box(decision).verdict == Verdict::Allow {
            allowed.push(time);
        }
    }
    println!(
        "{}",
        serde_json::json!({
            "p50_us": percentile(&mut all, 50), "p99_us": percentile(&mut all, 99),
            "allowed_p50_us": percentile(&mut allowed, 50), "decisions": all.len(), "allowed": allowed.len(),
        })
    );
    Ok(())
}

/// What a browser sends, more or less.
fn headers() -> HeaderMap {
    let fields = [
        ("host", "server.mesh:8080"),
        ("user-agent", "bench/1.0"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("x-request-id", "00000000-0000-4000-8000-000000000000"),
        ("x-forwarded-proto", "http"),
    ];
    let parsed = fields.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    parsed.into_iter().collect()
}

/// In microseconds.
fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}
