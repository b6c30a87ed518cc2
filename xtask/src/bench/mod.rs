//! The performance table: what it costs to be in the mesh, measured beside not being in it.
//!
//! Rules: round is the outer loop and contender the inner one; every contender's every value is reported;
//! cubic everywhere and read back from the sockets; processor time of agents with kernel time; foreign load is
//! noted, and a measurement with too much of it is repeated.

mod bed;
mod change;
mod envoy;
mod kube;
mod l4;
mod l7;
mod load;
mod meter;
mod report;
mod requests;
mod rows;
mod scale;
mod standing;
mod succession;

use std::path::Path;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{Output, build, setup};
use report::Collected;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Which tables; all when not given.
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Only rows with these names, as they stand in the table.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Pods of the table `kube`, with a tenth as many Services.
    #[arg(long, value_name = "NUMBER")]
    pods: Option<usize>,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// A table of the performance goals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// TCP on one node and between two.
    L4,
    /// HTTP, beside real Envoys.
    L7,
    /// State and policy at scale.
    Scale,
    /// Change, start, restart.
    Change,
    /// An agent in a large cluster, with a real API server.
    Kube,
}

/// What is to be measured.
#[derive(Debug)]
pub(crate) struct Plan {
    only: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) pods: Option<usize>,
}

impl Plan {
    /// Whether a row is asked for.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == row)
    }

    /// Whether one of the rows is asked for.
    pub(crate) fn wants_any(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.wants(row))
    }
}

/// Measures and prints; true when every row reaches its gate.
pub(crate) fn run(args: &BenchArgs) -> Result<bool> {
    for name in &args.only {
        if !rows::ROWS.iter().any(|row| row.name == name) {
            let known: Vec<&str> = rows::ROWS.iter().map(|row| row.name).collect();
            bail!("there is no row {name:?}; there are {}", known.join(", "));
        }
    }
    if args.rounds == 0 {
        bail!("--rounds must be at least 1");
    }
    setup::machine()?;
    let binaries = build::release()?;
    let plan = Plan { only: args.only.clone(), rounds: args.rounds, pods: args.pods };
    let mut collected = Collected::default();
    for suite in [Suite::L4, Suite::L7, Suite::Scale, Suite::Change, Suite::Kube] {
        let chosen = args.suites.is_empty() || args.suites.contains(&suite);
        if !chosen || !plan.wants_any(&rows::names(suite)) {
            continue;
        }
        let measured = match suite {
            Suite::L4 => l4::measure(&plan, &binaries, &mut collected),
            Suite::L7 => l7(&plan, &binaries, &mut collected),
            Suite::Scale => scale::measure(&plan, &binaries, &mut collected),
            Suite::Change => change::measure(&plan, &binaries, &mut collected),
            Suite::Kube => kube::measure(&plan, &binaries, &mut collected),
        };
        if let Err(e) = measured {
            eprintln!("{suite:?}: {e:#}");
            collected.suite_failed(suite, &plan, &e);
        }
    }
    report::print(&collected, args.rounds, args.output)
}

/// Counts need no mesh, so that they can be had alone.
fn l7(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    if plan.wants_any(&requests::ROWS)
        && let Err(e) = requests::measure(plan, binaries, collected)
    {
        for row in requests::ROWS.into_iter().filter(|row| plan.wants(row)) {
            collected.fail(row, report::Family::V4, &e);
        }
    }
    let timed: Vec<&str> =
        rows::names(Suite::L7).into_iter().filter(|row| !requests::ROWS.contains(row)).collect();
    if plan.wants_any(&timed) {
        l7::measure(plan, binaries, collected)?;
    }
    Ok(())
}
