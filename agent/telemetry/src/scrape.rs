//! What one scrape collects, and its text form.

use std::collections::BTreeMap;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// Whether a family only ever counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Counts up while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size; its samples are given with [`ScrapeSink::histogram`].
    Histogram,
}

/// A metric family: its name, its help text and the names of its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Name, with its unit.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Names of the labels, in the order in which values are given.
    pub labels: &'static [&'static str],
}

/// Takes the samples of one scrape.
#[derive(Debug, Default)]
pub struct ScrapeSink {
    families: BTreeMap<&'static str, MetricFamily>,
}

impl ScrapeSink {
    /// Adds one sample. `values` are the labels' values in the order of `family.labels`; missing ones are
    /// left out, surplus ones ignored. A histogram takes the value as its only observation.
    pub fn set(&mut self, family: &Family, values: &[&str], value: f64) {
        let mut metric = labelled(family, values);
        match family.kind {
            Kind::Counter => metric.set_counter(counter(value)),
            Kind::Gauge => metric.set_gauge(gauge(value)),
            Kind::Histogram => return self.histogram(family, values, vec![(f64::INFINITY, 1)], value),
        }
        self.family(family).mut_metric().push(metric);
    }

    /// Adds one histogram: upper bounds with the counts up to them, the last one `+Inf`, and the sum of all values.
    pub(crate) fn histogram(&mut self, family: &Family, values: &[&str], buckets: Vec<(f64, u64)>, sum: f64) {
        let mut made = Histogram::default();
        made.set_sample_count(buckets.last().map_or(0, |(_, count)| *count));
        made.set_sample_sum(sum);
        made.set_bucket(buckets.into_iter().map(bucket).collect());
        let mut metric = labelled(family, values);
        metric.set_histogram(made);
        self.family(family).mut_metric().push(metric);
    }

    fn family(&mut self, family: &Family) -> &mut MetricFamily {
        self.families.entry(family.name).or_insert_with(|| {
            let mut made = MetricFamily::default();
            made.set_name(family.name.to_owned());
            made.set_help(family.help.to_owned());
            made.set_field_type(match family.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            made
        })
    }

    /// Text 0.0.4: families by name, samples by their labels.
    pub(crate) fn encode(mut self) -> String {
        for family in self.families.values_mut() {
            family.mut_metric().sort_by(|a, b| values(a).cmp(values(b)));
        }
        let families: Vec<MetricFamily> = self.families.into_values().collect();
        // The encoder refuses only families without a name or a sample, and this sink makes neither.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

fn values(metric: &Metric) -> impl Iterator<Item = &str> {
    metric.get_label().iter().map(LabelPair::value)
}

fn labelled(family: &Family, values: &[&str]) -> Metric {
    let pairs = family.labels.iter().zip(values).map(|(name, value)| label(name, value)).collect();
    Metric::from_label(pairs)
}

fn bucket((bound, count): (f64, u64)) -> Bucket {
    let mut made = Bucket::default();
    made.set_upper_bound(bound);
    made.set_cumulative_count(count);
    made
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn counter(value: f64) -> Counter {
    let mut made = Counter::default();
    made.set_value(value);
    made
}

fn gauge(value: f64) -> Gauge {
    let mut made = Gauge::default();
    made.set_value(value);
    made
}
