//! The list of intended differences.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::answer::Difference;

/// Intended differences, one a line: `CASE FIELD: reason`, where CASE may be `*`, or end in `*`. Empty lines and those
/// that begin with `#` say nothing.
#[derive(Debug)]
pub struct Differences(Vec<Line>);

#[derive(Debug)]
struct Line {
    case: String,
    field: String,
}

impl Line {
    fn read(text: &str) -> Self {
        let (what, reason) = text.split_once(": ").expect("a line has a reason after a colon");
        assert!(!reason.trim().is_empty(), "the reason is missing: {text}");
        let (case, field) = what.split_once(' ').expect("a line names case and field");
        Self { case: case.to_owned(), field: field.to_owned() }
    }

    fn covers(&self, difference: &Difference) -> bool {
        let case = match self.case.strip_suffix('*') {
            Some(prefix) => difference.case.starts_with(prefix),
            None => difference.case == self.case,
        };
        case && self.field == difference.field
    }
}

impl Differences {
    /// Reads the list.
    pub fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        Self(lines.map(Line::read).collect())
    }

    /// What is wrong: differences that nobody intends, and intended ones that are not there (any more). Empty when all
    /// is well.
    pub fn judge(&self, found: &[Difference]) -> String {
        let mut used = BTreeSet::new();
        let mut wrong = String::new();
        for difference in found {
            let covering = self.0.iter().position(|line| line.covers(difference));
            match covering {
                Some(line) => {
                    used.insert(line);
                }
                None => {
                    let Difference { case, field, envoy, own } = difference;
                    let _ = writeln!(wrong, "{case} {field}: Envoy {envoy:?}, we {own:?}");
                }
            }
        }
        for (number, line) in self.0.iter().enumerate() {
            if !used.contains(&number) {
                let Line { case, field } = line;
                let _ = writeln!(wrong, "{case} {field}: is listed, but there is no such difference");
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(case: &str, field: &str) -> Difference {
        Difference { case: case.into(), field: field.into(), envoy: Some("1".into()), own: None }
    }

    #[test]
    fn intended_ones_pass_and_others_do_not() {
        let list = Differences::read("# of headers\n\n* response.server: ours is named otherwise\n");
        assert_eq!(list.judge(&[difference("a", "response.server"), difference("b", "response.server")]), "");
        let wrong = list.judge(&[difference("a", "response.server"), difference("a", "status")]);
        assert_eq!(wrong, "a status: Envoy Some(\"1\"), we None\n");
    }

    #[test]
    fn a_listed_one_that_is_gone_fails() {
        let list = Differences::read("cors-* status: for a reason\nold body: for another");
        let wrong = list.judge(&[difference("cors-1", "status"), difference("older", "body")]);
        assert!(wrong.contains("older body: Envoy"), "{wrong}");
        assert!(wrong.contains("old body: is listed"), "{wrong}");
        assert!(!wrong.contains("cors"), "{wrong}");
    }

    #[test]
    #[should_panic(expected = "reason")]
    fn a_reason_must_be_there() {
        Differences::read("* status:");
    }
}
