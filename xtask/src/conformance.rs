//! The conformance suites beside the workspace, as far as they apply.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::{root, target_dir};
use crate::setup;
use crate::test::Counts;

/// Suites that must pass.
const APPLY: &[&str] = &[];

/// Suites that ask for what does not exist yet, with the reason.
const NOT_YET: &[(&str, &str)] = &[
    ("analyze", "the analyzers of Istio's configuration come with HTTP routing"),
    ("explain", "routes, HTTP policies and request authentication come with HTTP routing"),
];

/// Runs the suites that apply; the others count as skipped.
pub(crate) fn run() -> Result<Counts> {
    let script = root()?.join("../shared/conformance/run.py");
    for (suite, why) in NOT_YET {
        println!("SKIPPED: conformance suite {suite}: {why}");
    }
    let skipped = u64::try_from(NOT_YET.len())?;
    if APPLY.is_empty() || !script.exists() {
        return Ok(Counts { skipped, ..Counts::default() });
    }
    if setup::find("python3").is_none() {
        bail!("the conformance suites need Python 3.11: apt-get install python3");
    }
    let mut command = Command::new("python3");
    command.arg(&script).arg("--weft").arg(target_dir()?.join("debug/weft")).args(["--show-failures", "5"]);
    for suite in APPLY {
        command.args(["--suite", suite]);
    }
    let out = command.stderr(std::process::Stdio::inherit()).output().context("python3 cannot be run")?;
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}");
    let (passed, total) = text.lines().rev().find_map(sums).context("the suites printed no sums")?;
    Ok(Counts { passed, failed: total - passed, skipped })
}

/// `conformance NAME: PASSED/TOTAL`
fn sums(line: &str) -> Option<(u64, u64)> {
    let (passed, total) = line.strip_prefix("conformance ")?.split_once(": ")?.1.split_once('/')?;
    Some((passed.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_the_suites_is_read() {
        assert_eq!(sums("conformance all: 12/34"), Some((12, 34)));
        assert_eq!(sums("explain/x 1/1"), None);
    }
}
