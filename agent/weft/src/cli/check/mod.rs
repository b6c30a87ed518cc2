//! `weft check`: whether a cluster, or a node, is fit for Weft, and whether Weft is well.
//!
//! Each check is a small function from what was found to a [`report::Check`]; the groups gather what they need.

mod agents;
mod api;
mod install;
mod node;
mod report;
mod webhook;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::cluster::{Cluster, ClusterOptions};
use super::{ADMIN_SOCKET, Ended, OutputOption};
use crate::output;
use report::{Check, Group, Outcome, Report};

/// Pause between two attempts of `--wait`.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Before an installation: whether the cluster is fit for it, and whether you may install.
    #[arg(long)]
    pre: bool,
    /// This machine alone, without a cluster (also the default where there is no kubeconfig).
    #[arg(long, conflicts_with_all = ["pre", "kubeconfig", "context"])]
    node: bool,
    /// Try again until nothing fails.
    #[arg(long)]
    wait: bool,
    /// How long --wait tries.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// The least outcome that ends the command with status 1.
    #[arg(long, value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    here: node::NodeOptions,
    #[command(flatten)]
    output: OutputOption,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Error,
    Warning,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let until = Instant::now() + Duration::from_secs(options.timeout);
    let report = loop {
        let attempt = once(options);
        let left = until.saturating_duration_since(Instant::now());
        let again = options.wait && !left.is_zero();
        match attempt {
            Ok(report) if report.errors == 0 || !again => break report,
            Ok(report) => say(&first_error(&report)),
            Err(error) if again => say(&format!("{error:#}")),
            Err(error) => return Err(error),
        }
        std::thread::sleep(PAUSE.min(left));
    };
    if options.wait && std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    output::print(options.output.output, &report, |report| report::render(report, report::colours()))?;
    let limit = match options.fail_on {
        FailOn::Error => Outcome::Error,
        FailOn::Warning => Outcome::Warning,
    };
    Ok(if report.worst() >= limit { Ended::BadNews } else { Ended::Fine })
}

fn once(options: &Options) -> anyhow::Result<Report> {
    let wants_cluster = options.pre || options.cluster.is_there();
    if options.node || !wants_cluster {
        return Ok(here(&options.here));
    }
    of_cluster(&options.cluster.connect()?, options.pre)
}

/// Everything that can be asked of a cluster.
pub(super) fn of_cluster(cluster: &Cluster, pre: bool) -> anyhow::Result<Report> {
    cluster.block_on(async {
        let mut groups = vec![api::group(cluster, pre).await];
        if pre {
            return Ok(Report::of(groups));
        }
        match cluster.daemon_set().await {
            Ok(set) => {
                groups.push(install::group(cluster, set.as_ref()).await);
                if let Some(set) = &set {
                    groups.extend(agents::groups(cluster, set).await);
                }
            }
            Err(error) => groups.push(unknown(&error)),
        }
        Ok(Report::of(groups))
    })
}

/// What this machine looks like, for a report about it.
pub(super) fn of_node() -> Report {
    here(&node::NodeOptions::default())
}

fn here(options: &node::NodeOptions) -> Report {
    let agent = agents::here(Path::new(ADMIN_SOCKET));
    Report::of(std::iter::once(node::group(options)).chain(agent).collect())
}

/// For people who look at [`Report`] elsewhere.
pub(super) fn text(report: &Report) -> String {
    report::render(report, false)
}

fn unknown(error: &anyhow::Error) -> Group {
    let check = Check::error(
        "daemonset",
        format!("Whether Weft is installed could not be found out: {error:#}."),
        "Ask the cluster's administrator for the permission to get daemonsets, or use another --context.",
    );
    Group::new("Installation", vec![check])
}

fn first_error(report: &Report) -> String {
    let checks = report.groups.iter().flat_map(|group| &group.checks);
    let errors = checks.filter(|check| check.outcome == Outcome::Error);
    errors.map(|check| check.message.clone()).next().unwrap_or_default()
}

/// What is being waited for: one line that is overwritten on a terminal, one line each elsewhere.
fn say(waiting_for: &str) {
    let line = waiting_for.lines().next().unwrap_or_default();
    let mut err = std::io::stderr().lock();
    // Nobody misses progress that cannot be shown.
    let _ = if err.is_terminal() {
        let short: String = line.chars().take(100).collect();
        write!(err, "\rwaiting: {short}\x1b[K").and_then(|()| err.flush())
    } else {
        writeln!(err, "waiting: {line}")
    };
}
