//! What one scrape collects, and its text form.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// Samples that are written at a time: as histograms with long labels some 4 MB.
const SAMPLES: usize = 200;

/// Whether a family only ever counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Counts up while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size; its samples are given bucket by bucket.
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

impl Family {
    /// A family of counters.
    pub const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, kind: Kind::Counter, labels }
    }

    /// A family of gauges.
    pub const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, kind: Kind::Gauge, labels }
    }
}

/// What a sink wants to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Wanted {
    /// Every sample.
    #[default]
    All,
    /// Which families there are, without samples.
    Names,
    /// The samples of the family with this name.
    One(&'static str),
}

/// Takes the samples of one scrape.
#[derive(Debug, Default)]
pub struct ScrapeSink {
    wanted: Wanted,
    families: BTreeMap<&'static str, MetricFamily>,
}

impl ScrapeSink {
    /// Asks which families there are.
    pub(crate) fn names() -> Self {
        Self { wanted: Wanted::Names, families: BTreeMap::new() }
    }

    /// Asks for the samples of one family.
    pub(crate) fn one(name: &'static str) -> Self {
        Self { wanted: Wanted::One(name), families: BTreeMap::new() }
    }

    /// Whether samples of the family are wanted, or its name.
    pub(crate) fn wants(&self, family: &Family) -> bool {
        match self.wanted {
            Wanted::All | Wanted::Names => true,
            Wanted::One(name) => name == family.name,
        }
    }

    /// The names of all families, in order.
    pub(crate) fn into_names(self) -> impl Iterator<Item = &'static str> {
        self.families.into_keys()
    }

    /// The same, without taking them.
    pub(crate) fn names_so_far(&self) -> impl Iterator<Item = &'static str> {
        self.families.keys().copied()
    }

    /// Adds samples that another sink got.
    pub(crate) fn append(&mut self, family: Option<MetricFamily>) {
        let Some(mut other) = family else { return };
        let Wanted::One(name) = self.wanted else { return };
        match self.families.entry(name) {
            Entry::Vacant(vacant) => {
                vacant.insert(other);
            }
            Entry::Occupied(mut known) => known.get_mut().mut_metric().extend(other.take_metric()),
        }
    }

    /// Takes a family out, its samples in the order of their labels.
    pub(crate) fn take(&mut self, name: &str) -> Option<MetricFamily> {
        let mut family = self.families.remove(name)?;
        family.mut_metric().sort_by(|a, b| values(a).cmp(values(b)));
        Some(family)
    }

    fn add(&mut self, family: &Family, metric: impl FnOnce() -> Metric) {
        match self.wanted {
            Wanted::Names => {
                self.family(family);
            }
            Wanted::All => self.family(family).mut_metric().push(metric()),
            Wanted::One(name) if name == family.name => self.family(family).mut_metric().push(metric()),
            Wanted::One(_) => {}
        }
    }

    /// Adds one sample. `values` are the labels' values in the order of `family.labels`; missing ones are
    /// left out, surplus ones ignored. A histogram takes the value as its only observation.
    pub fn set(&mut self, family: &Family, values: &[&str], value: f64) {
        let set: fn(&mut Metric, f64) = match family.kind {
            Kind::Counter => |metric, value| metric.set_counter(counter(value)),
            Kind::Gauge => |metric, value| metric.set_gauge(gauge(value)),
            Kind::Histogram => return self.histogram(family, values, [(f64::INFINITY, 1)], value),
        };
        self.add(family, || {
            let mut metric = labelled(family, values);
            set(&mut metric, value);
            metric
        });
    }

    /// Adds one histogram: upper bounds with the counts up to them, the last one `+Inf`, and the sum of all values.
    pub(crate) fn histogram(
        &mut self,
        family: &Family,
        values: &[&str],
        buckets: impl IntoIterator<Item = (f64, u64)>,
        sum: f64,
    ) {
        self.add(family, || {
            let mut count = 0;
            let buckets = buckets.into_iter().inspect(|(_, up_to)| count = *up_to).map(bucket).collect();
            let mut made = Histogram::default();
            made.set_bucket(buckets);
            made.set_sample_count(count);
            made.set_sample_sum(sum);
            let mut metric = labelled(family, values);
            metric.set_histogram(made);
            metric
        });
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
}

/// Text 0.0.4 of a family, some samples at a time: the labels of a histogram's sample are written for each of its
/// buckets, so that the text is many times as large as what it shows.
#[derive(Debug)]
pub(crate) struct Text {
    /// Without samples.
    family: MetricFamily,
    samples: std::vec::IntoIter<Metric>,
    begun: bool,
}

impl Text {
    /// Of a family whose samples are in order.
    pub(crate) fn new(mut family: MetricFamily) -> Self {
        let samples = family.take_metric().into_iter();
        Self { family, samples, begun: false }
    }
}

impl Iterator for Text {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let samples: Vec<Metric> = self.samples.by_ref().take(SAMPLES).collect();
        if samples.is_empty() {
            return None;
        }
        let mut family = self.family.clone();
        family.set_metric(samples);
        // The encoder refuses only families without a name or a sample.
        let mut text = TextEncoder::new().encode_to_string(&[family]).unwrap_or_default();
        if std::mem::replace(&mut self.begun, true) {
            // HELP and TYPE, a line each, stand only before the first samples.
            let head = text.match_indices('\n').nth(1).map_or(0, |(at, _)| at + 1);
            text.drain(..head);
        }
        Some(text)
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
