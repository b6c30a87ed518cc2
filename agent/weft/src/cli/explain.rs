//! `weft explain`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use weft_core::kernel_view::LearnedPorts;

use super::{ADMIN_SOCKET, Ended, OutputOption, client};
use crate::explain::{Explanation, Question, explain};
use crate::{config, output};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Files or directories with the configuration, or `-` for standard input. May be repeated.
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Ask the running agent at this admin socket instead (the default without `--config`).
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// Who connects: NAMESPACE/POD, an IP address, spiffe://… or `outside`.
    #[arg(long, value_name = "FROM")]
    from: String,
    /// What it dials: a URL, HOST:PORT or IP:PORT.
    #[arg(long, value_name = "TO")]
    to: String,
    /// The client does not use mTLS.
    #[arg(long)]
    plaintext: bool,
    /// Server name of the client's own TLS.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// End with status 1 when the connection is denied.
    #[arg(long)]
    fail_on_deny: bool,
    #[command(flatten)]
    output: OutputOption,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let answer = if options.config.is_empty() { ask(options)? } else { offline(options)? };
    let denied = answer.verdict == "deny";
    output::print(options.output.output, &answer, render)?;
    Ok(if options.fail_on_deny && denied { Ended::BadNews } else { Ended::Fine })
}

fn offline(options: &Options) -> anyhow::Result<Explanation> {
    let loaded = config::load(&options.config)?;
    let question = Question {
        from: options.from.clone(),
        to: options.to.clone(),
        plaintext: options.plaintext,
        sni: options.sni.clone(),
    };
    Ok(explain(&loaded.snapshot, &LearnedPorts::default(), &question)?)
}

fn ask(options: &Options) -> anyhow::Result<Explanation> {
    let socket = options.socket.clone().unwrap_or_else(|| ADMIN_SOCKET.into());
    let mut path =
        format!("/explain?from={}&to={}", client::encode(&options.from), client::encode(&options.to));
    if options.plaintext {
        path.push_str("&plaintext=true");
    }
    if let Some(sni) = &options.sni {
        let _ = write!(path, "&sni={}", client::encode(sni));
    }
    serde_json::from_str(&client::get(&socket, &path)?).context("the agent's answer is not of this version")
}

/// The answer for people.
fn render(answer: &Explanation) -> String {
    let mut out = String::new();
    let path = answer.path.as_deref().map(|path| format!(", {path}")).unwrap_or_default();
    let _ = writeln!(out, "{} ({}{path})", answer.verdict.to_uppercase(), answer.protocol);
    for (at, step) in answer.steps.iter().enumerate() {
        let _ = writeln!(out, "{:>3}. {step}", at + 1);
    }
    let endpoints = answer.destinations.iter().flat_map(|destination| &destination.endpoints);
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
    out
}
