//! The rows of the table: names, units and gates.

use super::Suite;

/// How the figure that the gate speaks of follows from the medians.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Weft's median divided by that of the direct path.
    OfDirect,
    /// Weft's median minus that of the direct path.
    AddedToDirect,
    /// Weft's median divided by that of the Envoys.
    OfEnvoy,
    /// What Weft adds to the direct path, divided by what the Envoys add.
    AddedOfEnvoy,
    /// Weft's median.
    Absolute,
}

/// A row.
#[derive(Debug)]
pub(crate) struct RowSpec {
    pub(crate) suite: Suite,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) higher_is_better: bool,
    pub(crate) figure: Figure,
    /// The figure must be at least (higher is better) or at most this.
    pub(crate) gate: f64,
    /// Measured for IPv6 too.
    pub(crate) both_families: bool,
}

const fn row(suite: Suite, name: &'static str, unit: &'static str, figure: Figure, gate: f64) -> RowSpec {
    RowSpec { suite, name, unit, higher_is_better: false, figure, gate, both_families: false }
}

impl RowSpec {
    const fn more(mut self) -> Self {
        self.higher_is_better = true;
        self
    }

    const fn both(mut self) -> Self {
        self.both_families = true;
        self
    }
}

use Figure::{Absolute, AddedOfEnvoy, AddedToDirect, OfDirect, OfEnvoy};
use Suite::{Change, Kube, L4, L7, Scale};

/// All rows, in the order in which they are printed.
pub(crate) const ROWS: &[RowSpec] = &[
    row(L4, "same-node.bulk.1", "Gb/s", OfDirect, 0.95).more().both(),
    row(L4, "same-node.bulk.4", "Gb/s", OfDirect, 0.95).more(),
    row(L4, "same-node.cpu-per-gb", "s/GB", OfDirect, 1.05),
    row(L4, "same-node.rtt", "µs", AddedToDirect, 1.0).both(),
    row(L4, "same-node.conn", "1/s", OfDirect, 0.75).more().both(),
    row(L4, "same-node.memory-per-conn", "bytes", Absolute, 512.0),
    row(L4, "cross-node.bulk.1", "Gb/s", OfDirect, 0.25).more().both(),
    row(L4, "cross-node.bulk.4", "Gb/s", OfDirect, 0.34).more(),
    row(L4, "cross-node.cpu-per-gb", "s/GB", Absolute, 0.60),
    // The same beside Envoy: a machine whose cores are shared with others is slow for everybody. The gates are those
    // above by what Envoy took where they were set: 0.79 s/GB, 32 µs, 736 µs.
    row(L4, "cross-node.cpu-per-gb.envoy", "s/GB", OfEnvoy, 0.76),
    row(L4, "cross-node.rtt", "µs", AddedToDirect, 30.0).both(),
    row(L4, "cross-node.rtt.envoy", "µs", AddedOfEnvoy, 0.94),
    row(L4, "cross-node.conn", "1/s", OfDirect, 0.30).more().both(),
    row(L4, "cross-node.conn-sustained", "last 10 s / first 10 s", Absolute, 0.9).more(),
    row(L4, "cross-node.cpu-per-conn", "µs", Absolute, 100.0),
    row(L4, "cross-node.cpu-per-conn.envoy", "µs", OfEnvoy, 0.136),
    row(L4, "cross-node.cold-tunnel", "ms", Absolute, 1.0),
    row(L4, "cross-node.http", "1/s", OfDirect, 0.30).more(),
    row(L4, "cross-node.memory-per-conn", "bytes", Absolute, 3584.0),
    row(L4, "agent.rss-empty", "MB", Absolute, 16.0),
    row(L7, "l7.cross.rps", "1/s", OfEnvoy, 2.2).more(),
    row(L7, "l7.cross.cpu", "µs", OfEnvoy, 0.42),
    row(L7, "l7.same.cpu", "µs", OfEnvoy, 0.20),
    row(L7, "l7.same.cpu-hop", "µs", OfEnvoy, 0.42),
    row(L7, "l7.cross.p50-1", "µs", AddedOfEnvoy, 0.33),
    row(L7, "l7.cross.p99-1", "µs", AddedOfEnvoy, 0.35),
    row(L7, "l7.cross.p50-5000", "µs", AddedOfEnvoy, 0.20),
    row(L7, "l7.cross.p99-5000", "µs", AddedOfEnvoy, 0.20),
    row(L7, "l7.rules-overhead", "of own CPU", Absolute, 0.10),
    row(L7, "l7.grpc.cpu", "µs", OfEnvoy, 0.45),
    row(L7, "l7.allocations", "each", Absolute, 12.0),
    row(L7, "l7.instructions", "each", Absolute, 40_000.0),
    row(Scale, "scale.l4-decision", "µs", Absolute, 5.0),
    row(Scale, "scale.l7-decision", "µs", Absolute, 10.0),
    row(Scale, "scale.decision-growth", "ratio", Absolute, 1.5),
    row(Scale, "scale.rss", "MB", Absolute, 80.0),
    row(Scale, "scale.full-sync", "s", Absolute, 1.0),
    row(Scale, "scale.endpoint-update", "ms", Absolute, 10.0),
    row(Scale, "scale.idle-cpu", "of a core", Absolute, 0.001),
    row(Scale, "scale.churn-100", "ms", Absolute, 50.0),
    row(Change, "change.enforced-p50", "ms", Absolute, 2.0),
    row(Change, "change.enforced-p99", "ms", Absolute, 10.0),
    row(Change, "change.deny-cuts", "ms", Absolute, 1000.0),
    row(Change, "change.start-empty", "ms", Absolute, 150.0),
    row(Change, "change.start-100k", "ms", Absolute, 800.0),
    row(Change, "change.enrol-250", "ms", Absolute, 1000.0),
    row(Change, "change.upgrade-failed", "count", Absolute, 0.0),
    row(Change, "change.upgrade-refused", "count", Absolute, 0.0),
    row(Change, "change.upgrade-reset", "count", Absolute, 0.0),
    row(Change, "change.upgrade-wait", "ms", Absolute, 200.0),
    row(Change, "change.kill-direct-lost", "count", Absolute, 0.0),
    row(Change, "change.kill-lost", "count", Absolute, 0.0),
    row(Change, "change.kill-wait", "ms", Absolute, 200.0),
    row(Change, "change.unpoliced", "count", Absolute, 0.0),
    row(Kube, "kube.enforced-p50", "ms", Absolute, 100.0),
    row(Kube, "kube.enforced-p99", "ms", Absolute, 250.0),
    row(Kube, "kube.enforced-busy-p99", "ms", Absolute, 250.0),
    row(Kube, "kube.enrol", "ms", Absolute, 200.0),
    row(Kube, "kube.cni-add", "ms", Absolute, 50.0),
    row(Kube, "kube.rss", "MB", Absolute, 100.0),
    row(Kube, "kube.cpu-churn", "of a core", Absolute, 0.05),
    row(Kube, "kube.requests", "requests", Absolute, 50.0),
    row(Kube, "kube.controller-rss", "MB", Absolute, 100.0),
    row(Kube, "kube.controller-cpu-churn", "of a core", Absolute, 0.05),
];

/// Names of a suite's rows.
pub(crate) fn names(suite: Suite) -> Vec<&'static str> {
    ROWS.iter().filter(|row| row.suite == suite).map(|row| row.name).collect()
}
