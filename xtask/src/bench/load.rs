//! One kind of load against one contender, and which rows its figures belong to.

use anyhow::Result;

use super::Plan;
use super::bed::{Bed, HTTP, SINK, SMALL, Where, contenders};
use super::meter::Measured;
use super::report::{Collected, Contender, Family};

/// Kinds of load that run in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    Bulk1,
    Bulk4,
    Rtt,
    Conn,
    Http,
}

/// A load at a place, with the rows that it measures. The first is the main one; the others have another value, all the same one.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) load: Load,
    pub(crate) location: Where,
    pub(crate) rows: &'static [&'static str],
    pub(crate) both_families: bool,
}

const fn test(load: Load, location: Where, rows: &'static [&'static str], both_families: bool) -> Test {
    Test { load, location, rows, both_families }
}

/// What a round consists of.
pub(crate) const TESTS: &[Test] = &[
    test(Load::Bulk1, Where::SameNode, &["same-node.bulk.1", "same-node.cpu-per-gb"], true),
    test(Load::Bulk4, Where::SameNode, &["same-node.bulk.4"], false),
    test(Load::Rtt, Where::SameNode, &["same-node.rtt"], true),
    test(Load::Conn, Where::SameNode, &["same-node.conn"], true),
    test(
        Load::Bulk1,
        Where::CrossNode,
        &["cross-node.bulk.1", "cross-node.cpu-per-gb", "cross-node.cpu-per-gb.envoy"],
        true,
    ),
    test(Load::Bulk4, Where::CrossNode, &["cross-node.bulk.4"], false),
    test(Load::Rtt, Where::CrossNode, &["cross-node.rtt", "cross-node.rtt.envoy"], true),
    test(
        Load::Conn,
        Where::CrossNode,
        &["cross-node.conn", "cross-node.cpu-per-conn", "cross-node.cpu-per-conn.envoy"],
        true,
    ),
    test(Load::Http, Where::CrossNode, &["cross-node.http"], false),
];

impl Test {
    /// Runs it against all contenders and notes what was measured. A failure is noted for its rows.
    pub(crate) fn run(&self, bed: &Bed, plan: &Plan, family: Family, collected: &mut Collected) {
        for contender in contenders(self.location, family).iter().copied() {
            let measured = self.measure(bed, contender, family);
            let noted =
                measured.and_then(|measured| self.note(&measured, plan, (contender, family), collected));
            if let Err(e) = noted {
                for row in self.rows.iter().filter(|row| plan.wants(row)) {
                    collected.fail(row, family, &e);
                }
            }
        }
    }

    fn measure(&self, bed: &Bed, contender: Contender, family: Family) -> Result<Measured> {
        let (mode, port, n) = match self.load {
            Load::Bulk1 => ("bulk", SINK, "1"),
            Load::Bulk4 => ("bulk", SINK, "4"),
            Load::Rtt => ("rtt", SMALL, "1"),
            Load::Conn => ("conn", SMALL, "16"),
            Load::Http => ("http", HTTP, "32"),
        };
        let target = bed.target(contender, self.location, family, port)?;
        // Only here: elsewhere the spinners would take time from the softirqs.
        let _awake = if self.load == Load::Rtt { bed.keep_awake()? } else { Vec::new() };
        bed.measure(contender, &["load", mode, &target, "-n", n, "--seconds", "3"])
    }

    fn note(
        &self,
        measured: &Measured,
        plan: &Plan,
        (contender, family): (Contender, Family),
        collected: &mut Collected,
    ) -> Result<()> {
        collected.add_foreign(measured.foreign);
        let [main, further @ ..] = self.rows else { return Ok(()) };
        let seconds = || measured.number("seconds");
        let value = match self.load {
            Load::Bulk1 | Load::Bulk4 => measured.number("bytes")? * 8.0 / 1e9 / seconds()?,
            Load::Rtt => measured.number("p50_us")?,
            Load::Conn => measured.number("connections")? / seconds()?,
            Load::Http => measured.number("requests")? / seconds()?,
        };
        if plan.wants(main) {
            collected.add(main, family, contender, value);
            if contender == Contender::Weft && matches!(self.load, Load::Bulk1 | Load::Bulk4) {
                collected.add_cpu(main, family, measured.agents_cpu / (measured.number("bytes")? / 1e9));
            }
        }
        for row in further.iter().filter(|row| family == Family::V4 && plan.wants(row)) {
            if let Some(value) = self.further(measured, contender)? {
                collected.add(row, family, contender, value);
            }
        }
        Ok(())
    }

    /// The value of the further rows of a load.
    fn further(&self, measured: &Measured, contender: Contender) -> Result<Option<f64>> {
        let of_agents = |per: f64| (contender != Contender::Direct).then_some(measured.agents_cpu / per);
        Ok(match (self.load, self.location) {
            // The whole path: also the work in interrupts, which is nobody's.
            (Load::Bulk1, Where::SameNode) => Some(measured.machine_busy / (measured.number("bytes")? / 1e9)),
            (Load::Bulk1, Where::CrossNode) => of_agents(measured.number("bytes")? / 1e9),
            (Load::Conn, Where::CrossNode) => of_agents(measured.number("connections")? / 1e6),
            (Load::Rtt, Where::CrossNode) => Some(measured.number("p50_us")?),
            (Load::Bulk4 | Load::Http, _) | (Load::Rtt | Load::Conn, Where::SameNode) => None,
        })
    }
}
