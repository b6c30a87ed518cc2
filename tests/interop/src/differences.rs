//! The list of intended differences.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::answer::Difference;

/// Intended differences, one a line: `CASE | FIELD | THEY | WE | reason`. CASE and FIELD may end in `*`; a value may be `-`, which
/// is none, or `*`, which is any. After `? ` is what is there at times. Empty lines and those that begin with `#` say nothing.
#[derive(Debug)]
pub struct Differences(Vec<Line>);

#[derive(Debug)]
struct Line {
    case: String,
    field: String,
    theirs: String,
    own: String,
    /// Whether it may be missing.
    sometimes: bool,
}

impl Line {
    fn read(text: &str) -> Self {
        let parts: Vec<String> = text.splitn(5, '|').map(|part| part.trim().to_owned()).collect();
        let parts: Result<[String; 5], _> = parts.try_into();
        let [case, field, theirs, own, reason] = parts.expect("a line has five parts");
        assert!(!reason.is_empty(), "the reason is missing: {text}");
        let (case, sometimes) = match case.strip_prefix("? ") {
            Some(case) => (case.to_owned(), true),
            None => (case, false),
        };
        Self { case, field, theirs, own, sometimes }
    }

    fn covers(&self, difference: &Difference) -> bool {
        let named = is_named(&self.case, &difference.case) && is_named(&self.field, &difference.field);
        let values =
            is(&self.theirs, difference.theirs.as_deref()) && is(&self.own, difference.own.as_deref());
        named && values
    }
}

fn is_named(listed: &str, name: &str) -> bool {
    match listed.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == listed,
    }
}

fn is(listed: &str, value: Option<&str>) -> bool {
    listed == "*" || listed == value.unwrap_or("-")
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
                    let Difference { case, field, theirs, own } = difference;
                    let _ = writeln!(wrong, "{case} {field}: they {theirs:?}, we {own:?}");
                }
            }
        }
        for (number, line) in self.0.iter().enumerate() {
            if !used.contains(&number) && !line.sometimes {
                let Line { case, field, .. } = line;
                let _ = writeln!(
                    wrong,
                    "{case} {field}: is listed, but there is no difference with these values"
                );
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(case: &str, field: &str) -> Difference {
        Difference { case: case.into(), field: field.into(), theirs: Some("1".into()), own: None }
    }

    #[test]
    fn intended_ones_pass_and_others_do_not() {
        let list =
            Differences::read("# of headers\n\n* | response.server | 1 | - | ours is named otherwise\n");
        assert_eq!(list.judge(&[difference("a", "response.server"), difference("b", "response.server")]), "");
        let wrong = list.judge(&[difference("a", "response.server"), difference("a", "status")]);
        assert_eq!(wrong, "a status: they Some(\"1\"), we None\n");
    }

    #[test]
    fn one_with_another_value_is_not_intended() {
        let list = Differences::read("a | status | 1 | 2 | so it is");
        let wrong = list.judge(&[difference("a", "status")]);
        assert!(wrong.contains("a status: they Some(\"1\"), we None"), "{wrong}");
        assert!(wrong.contains("a status: is listed"), "{wrong}");
        assert_eq!(Differences::read("a | status | * | * | any").judge(&[difference("a", "status")]), "");
    }

    #[test]
    fn a_listed_one_that_is_gone_fails() {
        let list =
            Differences::read("cors-* | status | 1 | - | for a reason\nold | body | 1 | - | for another");
        let wrong = list.judge(&[difference("cors-1", "status"), difference("older", "body")]);
        assert!(wrong.contains("older body: they"), "{wrong}");
        assert!(wrong.contains("old body: is listed"), "{wrong}");
        assert!(!wrong.contains("cors"), "{wrong}");
    }

    #[test]
    fn one_that_comes_and_goes_may_be_missing() {
        let list = Differences::read("? a | response.* | * | * | a race");
        assert_eq!(list.judge(&[]), "");
        assert_eq!(list.judge(&[difference("a", "response.x")]), "");
        assert!(!list.judge(&[difference("a", "status")]).is_empty());
    }

    #[test]
    #[should_panic(expected = "reason")]
    fn a_reason_must_be_there() {
        Differences::read("* | status | 1 | 2 |");
    }
}
