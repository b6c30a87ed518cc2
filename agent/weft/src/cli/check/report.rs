//! What a check found, and how it looks.

use std::fmt::Write;
use std::io::IsTerminal;

use serde::{Deserialize, Serialize};

/// How one check came out. The order is that of badness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It could not be tried here, or has no meaning here.
    Skipped,
    Ok,
    /// It works, but not as it should, or not for long.
    Warning,
    Error,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// Stable name, for scripts.
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// What was found; for a failure its cause.
    pub(crate) message: String,
    /// The next command.
    pub(crate) fix: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Ok, message: message.into(), fix: None }
    }

    pub(super) fn skipped(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Skipped, message: message.into(), fix: None }
    }

    pub(super) fn warning(name: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        let (message, fix) = (message.into(), Some(fix.into()));
        Self { name: name.into(), outcome: Outcome::Warning, message, fix }
    }

    pub(super) fn error(name: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { outcome: Outcome::Error, ..Self::warning(name, message, fix) }
    }
}

/// Checks of one subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// The node that they are about, where they are about one.
    pub(crate) node: Option<String>,
    pub(crate) checks: Vec<Check>,
}

impl Group {
    pub(super) fn new(name: &str, checks: Vec<Check>) -> Self {
        Self { name: name.into(), node: None, checks }
    }
}

/// `weft check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// When it was written, by the clock of the machine that did: RFC 3339.
    pub(crate) time: String,
    pub(crate) groups: Vec<Group>,
    pub(crate) errors: usize,
    pub(crate) warnings: usize,
}

impl Report {
    pub(super) fn of(groups: Vec<Group>) -> Self {
        let count = |outcome| {
            let checks = groups.iter().flat_map(|group| &group.checks);
            checks.filter(|check| check.outcome == outcome).count()
        };
        let (errors, warnings) = (count(Outcome::Error), count(Outcome::Warning));
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        Self { time, groups, errors, warnings }
    }

    /// The worst of all.
    pub(super) fn worst(&self) -> Outcome {
        let checks = self.groups.iter().flat_map(|group| &group.checks);
        checks.map(|check| check.outcome).max().unwrap_or(Outcome::Ok)
    }
}

/// For people: a mark and a sentence for each check; causes are followed by the next command.
pub(super) fn render(report: &Report, colours: bool) -> String {
    let mut out = String::new();
    for group in &report.groups {
        let title = match &group.node {
            Some(node) => format!("{} ({node})", group.name),
            None => group.name.clone(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{title}\n{}", "-".repeat(title.chars().count()));
        for check in &group.checks {
            let _ = writeln!(out, "{} {}", mark(check.outcome, colours), check.message);
            if let Some(fix) = &check.fix {
                let _ = writeln!(out, "    {fix}");
            }
        }
        out.push('\n');
    }
    let _ = match (report.errors, report.warnings) {
        (0, 0) => writeln!(out, "Everything is as it should be."),
        (errors, warnings) => {
            writeln!(out, "{}, {}", counted(errors, "error"), counted(warnings, "warning"))
        }
    };
    out
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn mark(outcome: Outcome, colours: bool) -> String {
    let (mark, colour) = match outcome {
        Outcome::Ok => ("√", "32"),
        Outcome::Warning => ("‼", "33"),
        Outcome::Error => ("×", "31"),
        Outcome::Skipped => ("-", "2"),
    };
    if colours { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_owned() }
}

/// Colours are for terminals, and not for people who set `NO_COLOR` (no-color.org).
pub(super) fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && std::io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        let mut node = Group::new("Node", vec![Check::skipped("bpffs", "bpffs was not looked for.")]);
        node.node = Some("a".into());
        let report = Report::of(vec![
            Group::new(
                "Kubernetes",
                vec![
                    Check::ok("version", "The API server is v1.36.0."),
                    Check::warning("clock", "The clock is 12 s ahead.", "Run `chronyc tracking`."),
                    Check::error("daemonset", "There is no DaemonSet.", "Run `weft install`."),
                ],
            ),
            node,
        ]);
        insta::assert_snapshot!(render(&report, false));
        assert_eq!((report.worst(), report.errors, report.warnings), (Outcome::Error, 1, 1));
        assert!(render(&report, true).contains("\u{1b}[31m×\u{1b}[0m There is no DaemonSet."));
        assert_eq!(Report::of(Vec::new()).worst(), Outcome::Ok);
    }
}
