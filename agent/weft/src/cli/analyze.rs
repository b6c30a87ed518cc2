//! `weft analyze`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use weft_core::Severity;

use super::{Ended, OutputOption};
use crate::view::{Analysis, Finding, Objects, worst};
use crate::{config, output};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Files or directories with the configuration, or `-` for standard input. May be repeated.
    #[arg(long, value_name = "PATH", required = true)]
    config: Vec<PathBuf>,
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
    let loaded = config::analyze(&options.config)?;
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
