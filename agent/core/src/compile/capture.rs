//! What capture leaves alone, from the annotations of a pod (C-2, C-3).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::names;
use crate::resource::Labels;
use crate::snapshot::CaptureRules;

/// An item of an annotation that is not understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadItem {
    pub(super) annotation: &'static str,
    pub(super) item: String,
    pub(super) expected: &'static str,
}

/// Reads the annotations. An item that is not understood is left out: what it would have excluded is captured.
pub(super) fn rules(annotations: &Labels) -> (CaptureRules, Vec<BadItem>) {
    let mut reader = Reader { annotations, bad: Vec::new() };
    let rules = CaptureRules {
        include_outbound_ranges: reader.only(names::INCLUDE_OUTBOUND_RANGES, RANGE, range),
        exclude_outbound_ranges: reader.list(names::EXCLUDE_OUTBOUND_RANGES, RANGE, range),
        include_outbound_ports: reader.list(names::INCLUDE_OUTBOUND_PORTS, PORT, port),
        exclude_outbound_ports: reader.list(names::EXCLUDE_OUTBOUND_PORTS, PORT, port),
        include_inbound_ports: reader.only(names::INCLUDE_INBOUND_PORTS, PORT, port),
        exclude_inbound_ports: reader.list(names::EXCLUDE_INBOUND_PORTS, PORT, port),
    };
    (rules, reader.bad)
}

const RANGE: &str = "an address range such as 10.0.0.0/8";
const PORT: &str = "a port from 1 to 65535";
/// Items of one annotation. The kernel's rules have room for all pods of a node together: one of them must not
/// take it from the others.
const MAX_ITEMS: usize = 256;

struct Reader<'a> {
    annotations: &'a Labels,
    bad: Vec<BadItem>,
}

impl Reader<'_> {
    /// A list that restricts: absent or `*` is no restriction, empty restricts to nothing.
    fn only<T: Ord>(
        &mut self,
        annotation: &'static str,
        expected: &'static str,
        parse: fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let text = self.annotations.get(annotation)?;
        if text.split(',').any(|item| item.trim() == "*") {
            return None;
        }
        Some(self.list(annotation, expected, parse))
    }

    fn list<T: Ord>(
        &mut self,
        annotation: &'static str,
        expected: &'static str,
        parse: fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let text = self.annotations.get(annotation).unwrap_or_default();
        let mut values = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match parse(item) {
                Some(value) => values.push(value),
                None => self.bad.push(BadItem { annotation, item: item.to_owned(), expected }),
            }
        }
        values.sort();
        values.dedup();
        if values.len() > MAX_ITEMS {
            self.bad.push(BadItem {
                annotation,
                item: format!("{} items", values.len()),
                expected: "at most 256 items; the rest is left out",
            });
            values.truncate(MAX_ITEMS);
        }
        values
    }
}

fn range(item: &str) -> Option<IpNet> {
    let single = || item.parse::<IpAddr>().ok().map(IpNet::from);
    item.parse::<IpNet>().ok().or_else(single).map(|range| range.trunc())
}

fn port(item: &str) -> Option<u16> {
    item.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)]) -> (CaptureRules, Vec<BadItem>) {
        rules(&annotations.iter().map(|(key, value)| (*key, *value)).collect())
    }

    #[test]
    fn nothing_said_captures_everything() {
        assert_eq!(read(&[]), (CaptureRules::default(), Vec::new()));
        let (all, _) = read(&[(names::INCLUDE_OUTBOUND_RANGES, "*"), (names::INCLUDE_INBOUND_PORTS, " * ")]);
        assert_eq!(all, CaptureRules::default());
    }

    #[test]
    fn empty_restrictions_capture_nothing() {
        let (none, bad) = read(&[(names::INCLUDE_OUTBOUND_RANGES, ""), (names::INCLUDE_INBOUND_PORTS, "")]);
        assert_eq!(none.include_outbound_ranges, Some(Vec::new()));
        assert_eq!(none.include_inbound_ports, Some(Vec::new()));
        assert!(bad.is_empty());
    }

    #[test]
    fn a_list_has_an_end() {
        let ports: Vec<String> = (1..=300).map(|port: u16| port.to_string()).collect();
        let (rules, bad) = read(&[(names::EXCLUDE_INBOUND_PORTS, &ports.join(","))]);
        assert_eq!(rules.exclude_inbound_ports, (1..=256).collect::<Vec<u16>>());
        assert_eq!(bad.iter().map(|bad| bad.item.as_str()).collect::<Vec<_>>(), ["300 items"]);
    }

    #[test]
    fn lists_are_sorted_and_bad_items_reported() {
        let (rules, bad) = read(&[
            (names::EXCLUDE_OUTBOUND_RANGES, "10.1.2.3/8, fd00::1, 10.0.0.0/8,nonsense"),
            (names::EXCLUDE_OUTBOUND_PORTS, "443,80,443,0,70000"),
            (names::EXCLUDE_INBOUND_PORTS, "9090"),
            (names::INCLUDE_OUTBOUND_PORTS, "5432"),
        ]);
        let ranges: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::1/128".parse().unwrap()];
        assert_eq!(rules.exclude_outbound_ranges, ranges);
        assert_eq!(rules.exclude_outbound_ports, [80, 443]);
        assert_eq!(rules.exclude_inbound_ports, [9090]);
        assert_eq!(rules.include_outbound_ports, [5432]);
        let items: Vec<_> = bad.iter().map(|bad| (bad.annotation, bad.item.as_str())).collect();
        assert_eq!(
            items,
            [
                (names::EXCLUDE_OUTBOUND_RANGES, "nonsense"),
                (names::EXCLUDE_OUTBOUND_PORTS, "0"),
                (names::EXCLUDE_OUTBOUND_PORTS, "70000"),
            ]
        );
    }
}
