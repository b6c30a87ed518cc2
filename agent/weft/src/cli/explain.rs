//! `weft explain`.

use std::fmt::Write;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use weft_core::kernel_view::LearnedPorts;

use super::cluster::Cluster;
use super::{Ended, OutputOption, Target, TargetOptions, client};
use crate::explain::{DestinationView, Explanation, Question, RequestView, ResponseView, explain};
use crate::{config, output};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Files or directories with the configuration, or `-` for standard input. May be repeated.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket", "kubeconfig", "context"])]
    config: Vec<PathBuf>,
    /// Read the objects of the cluster instead of asking the agent of the node where the connection begins: works
    /// without a running agent, and knows nothing of what agents learn from traffic.
    #[arg(long, conflicts_with_all = ["config", "socket"])]
    from_cluster: bool,
    #[command(flatten)]
    target: TargetOptions,
    /// Who connects: NAMESPACE/POD, an IP address, spiffe://… or `outside`.
    #[arg(long, value_name = "FROM", required_unless_present = "question", default_value = "")]
    from: String,
    /// What it dials: a URL, HOST:PORT or IP:PORT.
    #[arg(long, value_name = "TO", required_unless_present = "question", default_value = "")]
    to: String,
    /// The question as one line of JSON on standard input: how this command asks the one in the agent's container.
    /// What stands in a command line is written to the API server's audit log; tokens and headers must not be.
    #[arg(long, hide = true, conflicts_with_all = ["from", "to"])]
    question: bool,
    #[command(flatten)]
    request: RequestOptions,
    /// The client does not use mTLS.
    #[arg(long)]
    plaintext: bool,
    /// Server name of the client's own TLS.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Protocols that the client's own TLS offers, separated by commas.
    #[arg(long, value_name = "LIST")]
    alpn: Option<String>,
    /// The request arrives at this Gateway.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    at: Option<String>,
    /// Pick one where the mesh chooses at random, the same one for the same number.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End with status 1 when the connection or the request is denied.
    #[arg(long)]
    fail_on_deny: bool,
    #[command(flatten)]
    output: OutputOption,
}

/// What the client asks for.
#[derive(Debug, Args)]
struct RequestOptions {
    /// Method of the request; GET when absent.
    #[arg(short = 'X', long = "method", value_name = "METHOD")]
    method: Option<String>,
    /// A header of the request, `name: value`; `Host` sets the authority. May be repeated.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Bytes of the request's body.
    #[arg(long, value_name = "N")]
    body_size: Option<u64>,
    /// A file with a token, which is sent as `Authorization: Bearer`.
    #[arg(long, value_name = "FILE")]
    jwt: Option<PathBuf>,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let question = question(options)?;
    let answer = answer(options, &question)?;
    let denied = answer.verdict == "deny";
    output::print(options.output.output, &answer, render)?;
    Ok(if options.fail_on_deny && denied { Ended::BadNews } else { Ended::Fine })
}

fn answer(options: &Options, question: &Question) -> anyhow::Result<Explanation> {
    if !options.config.is_empty() {
        return offline(&config::load(&options.config)?, question);
    }
    if options.from_cluster {
        let cluster = options.target.cluster.connect()?;
        let client = options.target.cluster.client_options();
        return offline(&cluster.block_on(config::load_cluster(&client))?, question);
    }
    match options.target.target()? {
        Target::Socket(socket) => ask(&socket, question),
        Target::Cluster(cluster) => ask_cluster(&cluster, question),
    }
}

fn question(options: &Options) -> anyhow::Result<Question> {
    if options.question {
        // One line: whoever asks through an API server cannot always close our standard input.
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        return serde_json::from_str(&line).context("the question is not of this version");
    }
    let request = &options.request;
    let token = match &request.jwt {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("the token in {} (--jwt) cannot be read", path.display()))?,
        ),
        None => None,
    };
    Ok(Question {
        from: options.from.clone(),
        to: options.to.clone(),
        plaintext: options.plaintext,
        sni: options.sni.clone(),
        alpn: options.alpn.clone(),
        method: request.method.clone(),
        headers: request.headers.clone(),
        body_size: request.body_size,
        token,
        at: options.at.clone(),
        seed: options.seed,
    })
}

fn offline(loaded: &config::Loaded, question: &Question) -> anyhow::Result<Explanation> {
    Ok(explain(&loaded.snapshot, &LearnedPorts::default(), question)?)
}

fn ask(socket: &Path, question: &Question) -> anyhow::Result<Explanation> {
    let path = format!("/explain?{}", query(question));
    serde_json::from_str(&client::get(socket, &path)?).context("the agent's answer is not of this version")
}

/// Asks the agent that knows most about the connection.
fn ask_cluster(cluster: &Cluster, question: &Question) -> anyhow::Result<Explanation> {
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    cluster.block_on(async {
        let agent = cluster.nearest(&question.from, &question.to).await?;
        let ran = cluster.exec(&agent, &["weft", "explain", "--question", "-o", "json"], Some(&line)).await;
        ran.and_then(|ran| ran.json()).with_context(|| format!("the agent of the node {}", agent.node))
    })
}

/// The question as the agent's admin socket reads it.
fn query(question: &Question) -> String {
    let Question { from, to, plaintext, sni, alpn, method, headers, body_size, token, at, seed } = question;
    let text = |name: &'static str, value: &Option<String>| value.clone().map(|value| (name, value));
    let number = |name: &'static str, value: &Option<u64>| value.map(|value| (name, value.to_string()));
    let mut pairs = vec![("from", from.clone()), ("to", to.clone())];
    pairs.extend(plaintext.then(|| ("plaintext", "true".to_owned())));
    pairs.extend([text("sni", sni), text("alpn", alpn), text("method", method)].into_iter().flatten());
    pairs.extend(headers.iter().map(|header| ("header", header.clone())));
    pairs.extend([number("body-size", body_size), text("jwt", token)].into_iter().flatten());
    pairs.extend([text("at", at), number("seed", seed)].into_iter().flatten());
    let pairs: Vec<_> =
        pairs.iter().map(|(name, value)| format!("{name}={}", client::encode(value))).collect();
    pairs.join("&")
}

/// The answer for people.
fn render(answer: &Explanation) -> String {
    let mut out = String::new();
    let path = answer.path.as_deref().map(|path| format!(", {path}")).unwrap_or_default();
    let _ = writeln!(out, "{} ({}{path})", answer.verdict.to_uppercase(), answer.protocol);
    for (at, step) in answer.steps.iter().enumerate() {
        let _ = writeln!(out, "{:>3}. {step}", at + 1);
    }
    if let Some(request) = &answer.request {
        render_request(request, &mut out);
    }
    if let Some(response) = &answer.response {
        render_response(response, &mut out);
    }
    if !answer.response_headers.is_empty() {
        out.push_str("\nANSWER OF THE APPLICATION\n");
        for (name, value) in &answer.response_headers {
            let _ = match value {
                Some(value) => writeln!(out, "  + {name}: {value}"),
                None => writeln!(out, "  - {name}"),
            };
        }
    }
    render_destinations(&answer.destinations, &mut out);
    out
}

fn render_request(request: &RequestView, out: &mut String) {
    let differs = |value: &Option<String>| value.clone().unwrap_or_else(|| "(by destination)".into());
    let _ = writeln!(out, "\nREQUEST AS IT LEAVES\n  {} {}", request.method, differs(&request.path));
    let _ = writeln!(out, "  host: {}", differs(&request.authority));
    for (name, value) in &request.headers {
        let _ = writeln!(out, "  {name}: {value}");
    }
}

fn render_response(response: &ResponseView, out: &mut String) {
    let _ = writeln!(out, "\nANSWER OF THE MESH ({})\n  {}", response.by, response.status);
    for (name, value) in &response.headers {
        let _ = writeln!(out, "  {name}: {value}");
    }
    if !response.body.is_empty() {
        let _ = writeln!(out, "  {}", response.body);
    }
}

fn render_destinations(destinations: &[DestinationView], out: &mut String) {
    if let [_, _, ..] = destinations {
        let rows = destinations.iter().map(|destination| {
            [
                format!("{}:{}", destination.host, destination.port),
                output::or_dash(destination.subset.as_deref()),
                destination.weight.to_string(),
                destination.load_balancer.clone(),
                destination.tls.clone(),
                output::or_dash(destination.verdict.as_deref()),
            ]
        });
        let header = ["DESTINATION", "SUBSET", "WEIGHT", "LOAD BALANCER", "TLS", "VERDICT"];
        let _ = write!(out, "\n{}", output::table(header, rows));
    }
    let endpoints = destinations.iter().flat_map(|destination| &destination.endpoints);
    let rows: Vec<[String; 5]> = endpoints
        .map(|endpoint| {
            [
                endpoint.address.clone(),
                output::or_dash(endpoint.pod.as_deref()),
                output::or_dash(endpoint.node.as_deref()),
                if endpoint.ready { "yes" } else { "no" }.into(),
                output::or_dash(endpoint.path.as_deref()),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let _ = write!(out, "\n{}", output::table(["ENDPOINT", "POD", "NODE", "READY", "PATH"], rows));
    }
}
