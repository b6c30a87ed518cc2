//! The conformance suites beside the workspace, as far as they apply.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::build::{root, target_dir};
use crate::setup;
use crate::test::Counts;

/// Suites that must pass, but for the cases in [`EXCEPTIONS`].
const APPLY: &[&str] = &[
    "validation",
    "analyzers",
    "explain-authz",
    "explain-authz-builder",
    "explain-normalization",
    "explain-peer-authn",
    "explain-services",
    "explain-sidecar-routes",
    "explain-virtualservice",
];

/// Suites that ask for what does not exist yet, with the reason.
const NOT_YET: &[(&str, &str)] = &[
    ("explain-gateway", "Gateways are checked but not executed"),
    ("explain-gateway-api", "routes of the Gateway API are not read"),
];

/// Cases that may fail: `[reason]`, then `GROUP CASE` line by line.
const EXCEPTIONS: &str = "tests/conformance-exceptions.txt";

/// What the runner writes with `--json`.
#[derive(Debug, Deserialize)]
struct Report {
    results: Vec<Outcome>,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    group: String,
    id: String,
    ok: bool,
    detail: String,
}

impl Outcome {
    fn name(&self) -> String {
        format!("{} {}", self.group, self.id)
    }
}

/// Runs the suites that apply; the others, and the exceptions, count as skipped.
pub(crate) fn run() -> Result<Counts> {
    let script = root()?.join("../shared/conformance/run.py");
    if !script.exists() {
        println!("SKIPPED: conformance: the suites are not there");
        return Ok(Counts { skipped: 1, ..Counts::default() });
    }
    if setup::find("python3").is_none() {
        bail!("the conformance suites need Python 3.11: apt-get install python3");
    }
    for (suite, why) in NOT_YET {
        println!("SKIPPED: conformance suite {suite}: {why}");
    }
    let path = root()?.join(EXCEPTIONS);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let exceptions = exceptions(&text)?;
    let mut counts = judge(&report(&script)?, &exceptions);
    counts.skipped += u64::try_from(NOT_YET.len())?;
    Ok(counts)
}

fn report(script: &std::path::Path) -> Result<Report> {
    let out = target_dir()?.join("conformance.json");
    let mut command = Command::new("python3");
    command.arg(script).arg("--weft").arg(target_dir()?.join("debug/weft")).arg("--json").arg(&out);
    for suite in APPLY {
        command.args(["--suite", suite]);
    }
    // Its exit status says what the report says in detail.
    command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("python3 cannot be run")?;
    let text = std::fs::read(&out).context("the suites wrote no report")?;
    serde_json::from_slice(&text).context("the suites' report cannot be read")
}

/// `GROUP CASE` → reason.
fn exceptions(text: &str) -> Result<BTreeMap<String, String>> {
    let mut reason = None;
    let mut found = BTreeMap::new();
    let lines = text.lines().map(str::trim).enumerate();
    for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        if let Some(text) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            reason = Some(text.to_owned());
            continue;
        }
        let Some(reason) = &reason else { bail!("{EXCEPTIONS}:{}: a reason in brackets is missing", at + 1) };
        if found.insert(line.to_owned(), reason.clone()).is_some() {
            bail!("{EXCEPTIONS}:{}: {line} stands there twice", at + 1);
        }
    }
    Ok(found)
}

/// Counts, and prints what fails. An exception that passes, or that no suite has, is out of date: it fails as well.
fn judge(report: &Report, exceptions: &BTreeMap<String, String>) -> Counts {
    let mut counts = Counts::default();
    let mut unused: BTreeMap<&str, &str> =
        exceptions.iter().map(|(name, reason)| (name.as_str(), reason.as_str())).collect();
    for result in &report.results {
        let name = result.name();
        match (result.ok, unused.remove(name.as_str())) {
            (true, None) => counts.passed += 1,
            (false, Some(_)) => counts.skipped += 1,
            (false, None) => {
                counts.failed += 1;
                println!("FAILED: {name}\n    {}", result.detail.replace('\n', "\n    "));
            }
            (true, Some(reason)) => {
                counts.failed += 1;
                println!("FAILED: {name} passes: take it out of {EXCEPTIONS} ({reason})");
            }
        }
    }
    for (name, reason) in unused {
        counts.failed += 1;
        println!("FAILED: no suite has {name}: take it out of {EXCEPTIONS} ({reason})");
    }
    println!("{} cases passed, {} are exceptions by {EXCEPTIONS}", counts.passed, counts.skipped);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(id: &str, ok: bool) -> Outcome {
        Outcome { group: "explain/x".into(), id: id.into(), ok, detail: String::new() }
    }

    #[test]
    fn the_list_of_exceptions_is_read() {
        let found = exceptions("# why\n\n[needs a Gateway]\nexplain/x a/b\n[other]\nexplain/x c\n").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found["explain/x a/b"], "needs a Gateway");
        assert!(exceptions("explain/x a/b\n").is_err());
        assert!(exceptions("[r]\nexplain/x a\nexplain/x a\n").is_err());
    }

    #[test]
    fn exceptions_are_skipped_and_must_be_needed() {
        let report = Report { results: vec![result("a", true), result("b", false), result("c", true)] };
        let list = |names: &[&str]| -> BTreeMap<String, String> {
            names.iter().map(|name| (format!("explain/x {name}"), "why".to_owned())).collect()
        };
        assert_eq!(judge(&report, &list(&[])), Counts { passed: 2, failed: 1, skipped: 0 });
        assert_eq!(judge(&report, &list(&["b"])), Counts { passed: 2, failed: 0, skipped: 1 });
        assert_eq!(judge(&report, &list(&["b", "c", "gone"])), Counts { passed: 1, failed: 2, skipped: 1 });
    }

    #[test]
    fn the_list_of_this_workspace_is_well_formed() {
        let text = std::fs::read_to_string(root().unwrap().join(EXCEPTIONS)).unwrap();
        assert!(!exceptions(&text).unwrap().is_empty());
    }
}
