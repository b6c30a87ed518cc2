//! All tests, stage by stage.

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::build::{cargo, cargo_command};
use crate::{cluster, conformance, demo, ebpf, k8s, lint, setup};

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Only tests whose name contains one of these; lint and conformance are then left out.
    filters: Vec<String>,
    /// Where the inputs of property tests come from: a number for the same inputs in every run, or `random`.
    #[arg(long, value_name = "N|random", default_value = "1", value_parser = parse_seed)]
    seed: u64,
}

fn parse_seed(text: &str) -> Result<u64> {
    if text == "random" {
        return Ok(RandomState::new().hash_one(text));
    }
    text.parse().with_context(|| format!("`{text}` is neither a number nor `random`"))
}

/// Sums over all test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn of(good: bool) -> Self {
        Self { passed: u64::from(good), failed: u64::from(!good), skipped: 0 }
    }
}

/// What a stage of tests came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    counts: Counts,
    failures: Vec<Failure>,
}

impl From<Counts> for Outcome {
    fn from(counts: Counts) -> Self {
        Self { counts, failures: Vec::new() }
    }
}

/// What the stages have in common: the sums, what failed, and the list of times.
#[derive(Default)]
struct Run {
    counts: Counts,
    failures: Vec<Failure>,
    times: Vec<(&'static str, f64)>,
}

impl Run {
    /// Runs a stage; an error is a failed test, and the next stage runs all the same.
    fn stage<T: Into<Outcome>>(&mut self, name: &'static str, stage: impl FnOnce() -> Result<T>) {
        println!("== {name}");
        let started = Instant::now();
        let outcome = stage().map_or_else(
            |e| {
                println!("{name}: FAILED: {e:#}");
                let failure = Failure { test: name.to_owned(), said: format!("{e:#}") };
                Outcome { counts: Counts::of(false), failures: vec![failure] }
            },
            Into::into,
        );
        self.counts.add(outcome.counts);
        self.failures.extend(outcome.failures);
        self.times.push((name, started.elapsed().as_secs_f64()));
    }
}

pub(crate) fn run(args: &TestArgs) -> Result<bool> {
    setup::machine()?;
    if let Err(e) = setup::profiler() {
        // The tests that need it say so themselves.
        println!("{e:#}");
    }
    let swept = weft_lab::sweep_stale();
    if swept > 0 {
        println!("removed {swept} labs of dead processes");
    }
    let mut run = Run::default();
    run.stage("kernel programs", || ebpf::build().map(|()| Counts::of(true)));
    if args.filters.is_empty() {
        run.stage("lint", || lint::run().map(Counts::of));
    }
    // Tests of the lab run `weft` and `lab-peer`, which `cargo test` alone would not build.
    run.stage("build", || {
        cargo(&["build", "--quiet", "--locked", "--workspace", "--bins"]).map(|()| Counts::of(true))
    });
    // What fails with one seed fails with it again.
    println!("seed of the property tests: {0} (again with --seed {0})", args.seed);
    run.stage("unit, golden and property tests", || cargo_test(&parallel(&args.filters), args.seed));
    run.stage("Kubernetes servers", || k8s::build().map(|_| Counts::of(true)));
    run.stage("tests on real namespaces", || cargo_test(&in_turn(&args.filters), args.seed));
    if args.filters.is_empty() {
        run.stage("demo", demo::stage);
        run.stage("conformance", conformance::run);
        run.stage("real cluster", cluster::stage);
    }
    print_times(&run.times);
    print_failures(&run.failures);
    let Counts { passed, failed, skipped } = run.counts;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}

/// Packages whose tests use processors, namespaces and API servers of their own by the dozen.
const HEAVY: &[&str] = &["weft-netns-tests", "weft-interop-tests", "weft-kubernetes-tests"];

fn parallel(filters: &[String]) -> Vec<String> {
    let mut args = vec!["test".to_owned(), "--workspace".to_owned()];
    for package in HEAVY {
        args.extend(["--exclude".to_owned(), (*package).to_owned()]);
    }
    finish(args, filters, &[])
}

fn in_turn(filters: &[String]) -> Vec<String> {
    let mut args = vec!["test".to_owned()];
    for package in HEAVY {
        args.extend(["-p".to_owned(), (*package).to_owned()]);
    }
    finish(args, filters, &["--test-threads=2"])
}

fn finish(mut args: Vec<String>, filters: &[String], harness: &[&str]) -> Vec<String> {
    args.extend(["--quiet", "--locked", "--no-fail-fast", "--"].map(str::to_owned));
    args.extend(harness.iter().map(|arg| (*arg).to_owned()));
    args.extend(filters.iter().cloned());
    args
}

/// Runs cargo, passes its output on, and sums what the test programs report.
fn cargo_test(args: &[String], seed: u64) -> Result<Outcome> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = cargo_command(&args)?;
    command.env("PROPTEST_RNG_SEED", seed.to_string()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cargo cannot be run")?;
    let output = child.stdout.take().context("the output was asked for")?;
    let (mut counts, mut failures) = (Counts::default(), Failures::default());
    for line in BufReader::new(output).lines() {
        let line = line?;
        failures.read(&line);
        if let Some(found) = parse_result(&line) {
            counts.add(found);
        }
        counts.skipped += u64::from(line.starts_with("SKIPPED"));
        writeln!(std::io::stdout(), "{line}")?;
    }
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        // It did not compile, or a test program died.
        counts.failed = 1;
    }
    Ok(Outcome { counts, failures: failures.found })
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`
pub(crate) fn parse_result(line: &str) -> Option<Counts> {
    let sums = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| {
        let part = sums.split("; ").find(|part| part.ends_with(what))?;
        part.split(' ').next()?.parse().ok()
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

/// A test that failed, and the message of its panic.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    test: String,
    said: String,
}

/// Lines of a message that are repeated at the end.
const REPEATED_LINES: usize = 6;
/// Characters of each.
const REPEATED_WIDTH: usize = 600;

/// Finds in the output of test programs what failed, so that it stands together at the very end: between it and
/// there can be thousands of lines of agents' logs.
#[derive(Debug, Default)]
struct Failures {
    found: Vec<Failure>,
    /// How many lines of the message are still to come.
    wanted: usize,
}

impl Failures {
    fn read(&mut self, line: &str) {
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.found.push(Failure { test: test.to_owned(), said: String::new() });
            self.wanted = 0;
            return;
        }
        let Some(failure) = self.found.last_mut() else { return };
        if failure.said.is_empty() && line.starts_with("thread '") && line.contains(" panicked at ") {
            self.wanted = REPEATED_LINES;
        }
        let at_end = line.is_empty() || line.starts_with("stack backtrace:") || line.starts_with("note: ");
        self.wanted = if at_end { 0 } else { self.wanted };
        if self.wanted > 0 {
            failure.said.extend(line.chars().take(REPEATED_WIDTH).chain(['\n']));
            self.wanted -= 1;
        }
    }
}

fn print_failures(failures: &[Failure]) {
    if failures.is_empty() {
        return;
    }
    println!("== what failed");
    for Failure { test, said } in failures {
        println!("{test}\n{}", said.trim_end());
    }
}

fn print_times(times: &[(&str, f64)]) {
    println!("== time of each stage");
    for (name, seconds) in times {
        println!("{seconds:8.1} s  {name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_numbers_or_random() {
        assert_eq!(parse_seed("7").unwrap(), 7);
        assert_ne!(parse_seed("random").unwrap(), parse_seed("random").unwrap());
        assert!(parse_seed("seven").unwrap_err().to_string().contains("`seven`"));
    }

    #[test]
    fn failures_are_found_among_what_agents_log() {
        let output = "running 2 tests\n\nfailures:\n\n---- a::b stdout ----\n\nthread 'a::b' (7) panicked at src/x.rs:1:\n\
                      left: 1\nstack backtrace:\n   0: core\n\n--- agent-a.err\n  thread 'x' is busy\n\
                      ---- c stdout ----\nnothing\n";
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.read(line));
        let failure = |test: &str, said: &str| Failure { test: test.to_owned(), said: said.to_owned() };
        let first = failure("a::b", "thread 'a::b' (7) panicked at src/x.rs:1:\nleft: 1\n");
        assert_eq!(failures.found, [first, failure("c", "")]);
    }

    #[test]
    fn results_of_test_programs_are_read() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(parse_result(line), Some(Counts { passed: 3, failed: 2, skipped: 1 }));
        assert_eq!(parse_result("running 3 tests"), None);
    }
}
