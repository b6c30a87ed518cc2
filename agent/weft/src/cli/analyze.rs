//! `weft analyze`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use weft_core::{Problem, Severity};

use super::cluster::ClusterOptions;
use super::{Ended, NamespaceOptions, OutputOption};
use crate::config::{self, Loaded};
use crate::output;
use crate::view::{Analysis, Finding, Objects, worst};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Files or directories with the configuration, or `-` for standard input; may be repeated. Without it the
    /// objects of the cluster are analyzed.
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Take the files as if they were applied to the cluster (implied by --kubeconfig and --context).
    #[arg(long, requires = "config")]
    with_cluster: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    namespaces: NamespaceOptions,
    /// The least severity that ends the command with status 1.
    #[arg(long, value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
    #[command(flatten)]
    output: OutputOption,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Error,
    Warning,
    Info,
}

impl From<FailOn> for Severity {
    fn from(fail_on: FailOn) -> Self {
        match fail_on {
            FailOn::Error => Self::Error,
            FailOn::Warning => Self::Warning,
            FailOn::Info => Self::Info,
        }
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let mut loaded = load(options)?;
    if let Some(namespace) = &options.namespaces.namespace {
        // What is about no object, or about one of the whole cluster, is everybody's.
        let of = |problem: &Problem| {
            problem.object.as_ref().map(|object| object.namespace.clone()).unwrap_or_default()
        };
        loaded.problems.retain(|problem| of(problem).is_empty() || *of(problem) == **namespace);
    }
    let bad = worst(&loaded.problems) >= Some(Severity::from(options.fail_on));
    let counts = loaded.counts;
    let analysis = Analysis {
        findings: loaded.problems.iter().map(Finding::from).collect(),
        objects: Objects {
            read: counts.read,
            accepted: counts.accepted,
            rejected: counts.rejected,
            ignored: counts.ignored,
        },
    };
    output::print(options.output.output, &analysis, render)?;
    Ok(if bad { Ended::BadNews } else { Ended::Fine })
}

/// Files, a cluster, or files on top of a cluster.
fn load(options: &Options) -> anyhow::Result<Loaded> {
    let with_cluster = options.config.is_empty() || options.with_cluster || options.cluster.is_given();
    if !with_cluster {
        return config::analyze(&options.config);
    }
    if options.config.is_empty() && !options.cluster.is_there() {
        bail!("nothing to analyze: give files with --config, or a cluster with --kubeconfig");
    }
    // What is wrong with the way to the cluster is told better by who tries it first.
    let cluster = options.cluster.connect()?;
    cluster.block_on(config::analyze_cluster(&options.cluster.client_options(), &options.config))
}

/// The findings for people: one paragraph each.
fn render(analysis: &Analysis) -> String {
    let mut out = String::new();
    for finding in &analysis.findings {
        // Writing to a String cannot fail.
        let _ = write!(out, "{} [{} {}]", finding.severity.to_uppercase(), finding.code, finding.name);
        if let Some(object) = &finding.object {
            let namespace =
                object.namespace.as_deref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
            let _ = write!(out, " {} {namespace}{}", object.kind, object.name);
        }
        if let Some(field) = &finding.field {
            let _ = write!(out, " {field}");
        }
        if let (Some(file), Some(line)) = (&finding.file, finding.line) {
            let _ = write!(out, " ({file}:{line})");
        }
        let _ = writeln!(out, "\n  {}", finding.message);
        if let Some(fix) = &finding.fix {
            let _ = writeln!(out, "  {fix}");
        }
    }
    let Objects { read, accepted, rejected, ignored } = &analysis.objects;
    let _ = writeln!(
        out,
        "{} findings; {read} objects read, {accepted} accepted, {rejected} rejected, {ignored} ignored",
        analysis.findings.len()
    );
    out
}
