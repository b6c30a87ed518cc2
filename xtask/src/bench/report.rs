//! From samples to the table.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::rows::{Figure, ROWS, RowSpec};
use super::{Plan, Suite};
use crate::Output;

/// Which family a value was measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Who was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    Direct,
    Weft,
    Envoy,
    /// A relay that only copies in the place of each proxy: what is left where a proxy costs nothing.
    Relays,
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Weft => "weft",
            Self::Envoy => "envoy",
            Self::Relays => "relays",
        }
    }
}

type Key = (&'static str, Family);

/// Every value that was measured.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    samples: BTreeMap<Key, BTreeMap<Contender, Vec<f64>>>,
    cpu: BTreeMap<Key, Vec<f64>>,
    errors: BTreeMap<Key, String>,
    notes: BTreeMap<&'static str, String>,
    foreign: Vec<f64>,
}

impl Collected {
    pub(crate) fn add(&mut self, row: &'static str, family: Family, contender: Contender, value: f64) {
        self.samples.entry((row, family)).or_default().entry(contender).or_default().push(value);
    }

    /// Processor seconds per GB of all agents during a measurement of the row.
    pub(crate) fn add_cpu(&mut self, row: &'static str, family: Family, seconds_per_gb: f64) {
        self.cpu.entry((row, family)).or_default().push(seconds_per_gb);
    }

    /// Share of the machine that others used during a measurement.
    pub(crate) fn add_foreign(&mut self, share: f64) {
        self.foreign.push(share);
    }

    /// What a reader of the row should know.
    pub(crate) fn note(&mut self, row: &'static str, text: String) {
        self.notes.insert(row, text);
    }

    /// The row cannot be measured.
    pub(crate) fn fail(&mut self, row: &'static str, family: Family, error: &anyhow::Error) {
        eprintln!("{row}: {error:#}");
        self.errors.entry((row, family)).or_insert_with(|| format!("{error:#}"));
    }

    /// Every row of the suite that has no value yet has failed.
    pub(crate) fn suite_failed(&mut self, suite: Suite, plan: &Plan, error: &anyhow::Error) {
        for row in ROWS.iter().filter(|row| row.suite == suite && plan.wants(row.name)) {
            if !self.samples.contains_key(&(row.name, Family::V4)) {
                self.errors.entry((row.name, Family::V4)).or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let families =
            |spec: &RowSpec| if spec.both_families { vec![Family::V4, Family::V6] } else { vec![Family::V4] };
        let pairs = ROWS.iter().flat_map(|spec| families(spec).into_iter().map(move |family| (spec, family)));
        pairs.filter_map(|(spec, family)| self.row(spec, family)).collect()
    }

    fn row<'a>(&'a self, spec: &'a RowSpec, family: Family) -> Option<Row<'a>> {
        let key = (spec.name, family);
        let samples = self.samples.get(&key);
        let error = self.errors.get(&key);
        if samples.is_none() && error.is_none() {
            return None;
        }
        let samples: BTreeMap<&str, &Vec<f64>> =
            samples.into_iter().flatten().map(|(contender, values)| (contender.name(), values)).collect();
        let median: BTreeMap<&str, f64> =
            samples.iter().map(|(name, values)| (*name, median(values))).collect();
        let floor = figure(spec.figure, Contender::Relays, &median);
        let figure = figure(spec.figure, Contender::Weft, &median);
        let reached =
            figure.is_some_and(|f| if spec.higher_is_better { f >= spec.gate } else { f <= spec.gate });
        let cpu =
            self.cpu.get(&key).map(|values| json!({ "weft": round(median_of(values)), "unit": "s/GB" }));
        Some(Row {
            name: spec.name,
            family: family.name(),
            unit: spec.unit,
            higher_is_better: spec.higher_is_better,
            samples,
            median,
            figure,
            figure_is: match spec.figure {
                Figure::OfDirect => "of direct",
                Figure::AddedToDirect => "added to direct",
                Figure::OfEnvoy => "of envoy",
                Figure::AddedOfEnvoy => "added, of envoy",
                Figure::Absolute => "value",
            },
            floor,
            gate: spec.gate,
            ok: reached && error.is_none(),
            cpu,
            note: self.notes.get(spec.name).map(String::as_str),
            error: error.map(String::as_str),
        })
    }
}

/// Field names are the contract of `--output json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    family: &'a str,
    unit: &'a str,
    higher_is_better: bool,
    samples: BTreeMap<&'a str, &'a Vec<f64>>,
    median: BTreeMap<&'a str, f64>,
    figure: Option<f64>,
    figure_is: &'a str,
    /// The figure of relays that only copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<f64>,
    gate: f64,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

fn median(values: &[f64]) -> f64 {
    round(median_of(values))
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub(crate) fn median_of(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    if sorted.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 }
}

/// The value below which `percent` of the values lie.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Four significant digits are more than the measurement gives.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a float is small")]
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

fn figure(kind: Figure, of: Contender, median: &BTreeMap<&str, f64>) -> Option<f64> {
    let own = *median.get(of.name())?;
    let direct = median.get(Contender::Direct.name()).copied();
    let envoy = median.get(Contender::Envoy.name()).copied();
    let value = match kind {
        Figure::OfDirect => own / direct.filter(|d| *d > 0.0)?,
        Figure::AddedToDirect => own - direct?,
        Figure::OfEnvoy => own / envoy.filter(|e| *e > 0.0)?,
        Figure::AddedOfEnvoy => (own - direct?) / Some(envoy? - direct?).filter(|added| *added > 0.0)?,
        Figure::Absolute => own,
    };
    Some(round(value))
}

/// Prints the table; true when every row is fine.
pub(crate) fn print(collected: &Collected, rounds: usize, output: Output) -> Result<bool> {
    let rows = collected.rows();
    let foreign = round(median_of(&collected.foreign));
    match output {
        Output::Json => {
            let all = json!({
                "machine": machine()?, "rounds": rounds, "foreign_load": foreign, "results": rows,
            });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Output::Table => {
            println!("{} · {rounds} rounds · foreign load {:.1} %", machine()?, foreign * 100.0);
            println!(
                "{:<28}{:<6}{:>12}{:>12}{:>12}  {:<24}{:>10}  {:>10}",
                "row", "", "direct", "envoy", "weft", "unit", "figure", "gate"
            );
            rows.iter().for_each(print_row);
        }
    }
    Ok(!rows.is_empty() && rows.iter().all(|row| row.ok))
}

fn print_row(row: &Row<'_>) {
    let value = |name: &str| row.median.get(name).map_or_else(|| "-".to_owned(), ToString::to_string);
    let relation = if row.higher_is_better { "≥" } else { "≤" };
    println!(
        "{:<28}{:<6}{:>12}{:>12}{:>12}  {:<24}{:>10}  {relation} {:>8}  {}",
        row.name,
        row.family,
        value("direct"),
        value("envoy"),
        value("weft"),
        row.unit,
        row.figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string()),
        row.gate,
        if row.ok { "ok" } else { "NOT REACHED" },
    );
    let floor = row.floor.map(|floor| format!("relays that only copy: {floor}"));
    for text in [row.note, floor.as_deref(), row.error].into_iter().flatten() {
        println!("{:<34}{text}", "");
    }
}

fn machine() -> Result<Value> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(json!({
        "kernel": kernel.trim(),
        "cpus": std::thread::available_parallelism()?.get(),
        "congestion_control": "cubic",
        "allocator": "jemalloc",
        "build": "release",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_from_medians() {
        let mut collected = Collected::default();
        for (contender, values) in
            [(Contender::Direct, [60.0, 70.0, 10.0]), (Contender::Weft, [30.0, 90.0, 20.0])]
        {
            values.iter().for_each(|v| collected.add("cross-node.bulk.1", Family::V4, contender, *v));
        }
        let rows = collected.rows();
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.figure, row.ok), (Some(0.5), true));
        assert_eq!(row.median.get("direct"), Some(&60.0));
    }

    #[test]
    fn relays_that_only_copy_show_what_is_left_to_gain() {
        let mut collected = Collected::default();
        for (contender, value) in [
            (Contender::Direct, 50.0),
            (Contender::Weft, 150.0),
            (Contender::Envoy, 450.0),
            (Contender::Relays, 90.0),
        ] {
            collected.add("l7.cross.p50-1", Family::V4, contender, value);
        }
        let rows = collected.rows();
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.figure, row.floor), (Some(0.25), Some(0.1)));
    }

    #[test]
    fn a_row_with_an_error_is_not_ok() {
        let mut collected = Collected::default();
        collected.fail("agent.rss-empty", Family::V4, &anyhow::anyhow!("no agent"));
        let rows = collected.rows();
        assert_eq!(rows.len(), 1);
        assert!(!rows[0].ok);
        assert_eq!(rows[0].error, Some("no agent"));
    }

    #[test]
    fn the_p99_of_a_hundred_values_is_the_largest_but_one() {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (50.0, 99.0));
        assert_eq!(median_of(&[1.0, 2.0]), 1.5);
        assert_eq!(round(0.123_456), 0.1235);
    }
}
