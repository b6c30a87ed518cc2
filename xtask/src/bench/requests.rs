//! The rows of the table "L7" that callgrind counts: what one HTTP/1.1 request costs in user space.

use std::path::Path;

use anyhow::{Context, Result};
use weft_lab::{Cost, cost_of};

use super::Plan;
use super::report::{Collected, Contender, Family};
use crate::build::cargo;
use crate::setup;

pub(crate) const ROWS: [&str; 2] = ["l7.allocations", "l7.instructions"];
/// Requests of the two runs whose difference is looked at.
const FEW: u32 = 200;
const MANY: u32 = 1200;

/// Counts are exact: one round is enough.
pub(crate) fn measure(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    setup::profiler()?;
    cargo(&[
        "build",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "weft-decision-bench",
        "--bin",
        "request-bench",
    ])?;
    eprintln!("l7: requests under callgrind");
    let program = binaries.join("request-bench");
    let direct = per_request(&program, &["--between", "nothing"])?;
    let meshed = per_request(&program, &[])?;
    let own = meshed.of_each(direct, 1.0);
    for (row, value) in ROWS.into_iter().zip([own.allocations, own.instructions]) {
        if plan.wants(row) {
            collected.add(row, Family::V4, Contender::Weft, value);
        }
    }
    let text = "on one node: both sides of a request, less what client and application cost".to_owned();
    collected.note(ROWS[1], text);
    Ok(())
}

fn per_request(program: &Path, more: &[&str]) -> Result<Cost> {
    let run = |count: u32| {
        let count = count.to_string();
        let args = [&["--requests", &count], more].concat();
        cost_of(program, &args)?.context("valgrind is not installed")
    };
    Ok(run(MANY)?.of_each(run(FEW)?, f64::from(MANY - FEW)))
}
