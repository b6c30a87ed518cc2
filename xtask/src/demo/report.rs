//! The table of what was tried and what happened.

use std::io::IsTerminal;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::Output;

/// Something that was tried on real traffic. Field names are the contract of `--output json`.
#[derive(Debug, Serialize)]
struct Step {
    name: String,
    expect: String,
    observed: String,
    ok: bool,
    ms: f64,
}

/// What a step saw, and whether it is what was expected.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) observed: String,
    pub(crate) ok: bool,
}

impl Seen {
    pub(crate) fn new(ok: bool, observed: impl Into<String>) -> Self {
        Self { observed: observed.into(), ok }
    }
}

/// Prints steps as they are made, or all of them as JSON at the end.
#[derive(Debug)]
pub(crate) struct Report {
    output: Output,
    colour: bool,
    steps: Vec<Step>,
}

impl Report {
    pub(crate) fn new(output: Output) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { output, colour, steps: Vec::new() }
    }

    /// A heading between steps.
    pub(crate) fn chapter(&self, title: &str) {
        if self.output == Output::Table {
            let (on, off) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
            println!("\n{on}{title}{off}");
        }
    }

    /// Makes a step. An error is a step that failed, and the story goes on.
    pub(crate) fn step(&mut self, name: &str, expect: &str, action: impl FnOnce() -> Result<Seen>) {
        let started = Instant::now();
        let seen = action().unwrap_or_else(|e| Seen::new(false, format!("{e:#}")));
        let ms = (started.elapsed().as_secs_f64() * 1e4).round() / 10.0;
        let step = Step {
            name: name.to_owned(),
            expect: expect.to_owned(),
            observed: seen.observed,
            ok: seen.ok,
            ms,
        };
        if self.output == Output::Table {
            self.print(&step);
        }
        self.steps.push(step);
    }

    fn print(&self, step: &Step) {
        let verdict = match (step.ok, self.colour) {
            (true, true) => "\x1b[32mok\x1b[0m  ",
            (true, false) => "ok  ",
            (false, true) => "\x1b[31mFAIL\x1b[0m",
            (false, false) => "FAIL",
        };
        println!("  {verdict} {:<58} {:>8.1} ms", step.name, step.ms);
        println!("       expected  {}", step.expect);
        println!("       observed  {}", step.observed.trim_end().replace('\n', "\n                 "));
    }

    pub(crate) fn all_good(&self) -> bool {
        self.steps.iter().all(|step| step.ok)
    }

    /// Prints the sums, or the whole JSON.
    pub(crate) fn finish(&self) -> Result<()> {
        let passed = self.steps.iter().filter(|step| step.ok).count();
        let failed = self.steps.len() - passed;
        match self.output {
            Output::Table => println!("\n{passed} passed, {failed} failed"),
            Output::Json => {
                let all = serde_json::json!({ "steps": self.steps, "passed": passed, "failed": failed });
                println!("{}", serde_json::to_string_pretty(&all)?);
            }
        }
        Ok(())
    }
}
