//! Reading of Prometheus text 0.0.4.

use std::collections::BTreeMap;

/// One line of a metrics page.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A metrics page.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

impl Metrics {
    /// Reads a page; comments and lines that are no sample are left out.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect() }
    }

    /// The samples of `name` that carry all of `labels`.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|have| have == v))
        })
    }

    /// The sum of [`Self::select`]; 0 when there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// All samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

fn sample(line: &str) -> Option<Sample> {
    let Some((name, rest)) = line.split_once('{') else {
        let mut words = line.split_ascii_whitespace();
        let (name, value) = (words.next()?, words.next()?);
        return Some(Sample { name: name.to_owned(), labels: BTreeMap::new(), value: value.parse().ok()? });
    };
    let (labels, rest) = labels(rest)?;
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Reads up to and with the closing brace; gives what follows.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.to_owned(), value);
        rest = after;
    }
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_selected_by_name_and_labels() {
        let page = Metrics::parse(
            "# TYPE a counter\na{x=\"1\",y=\"q\\\"{,}\"} 2\na{x=\"2\",y=\"z\"} 3 1700000000\nb 4.5\nnonsense\n",
        );
        assert_eq!(page.value("a", &[]), 5.0);
        assert_eq!(page.value("a", &[("y", "q\"{,}")]), 2.0);
        assert_eq!(page.value("b", &[]), 4.5);
        assert_eq!(page.value("a", &[("x", "3")]), 0.0);
        assert_eq!(page.samples().len(), 3);
    }
}
