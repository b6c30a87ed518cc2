//! Reason counters of the programs.

use std::fmt;
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray};
use weft_ebpf_common::Counter;

use crate::error::{Doing, KernelError};

/// A reason counter of the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterValue {
    /// Program (`out`, `tuple`, `probe`, `steer`), or `agent` for what the agent did about them.
    pub program: &'static str,
    /// Reason, in words separated by `_`.
    pub reason: &'static str,
    /// Sum over all CPUs.
    pub value: u64,
}

/// Program and reason of every counter.
fn name(counter: Counter) -> (&'static str, &'static str) {
    match counter {
        Counter::OutCaptured => ("out", "captured"),
        Counter::OutDirect => ("out", "direct"),
        Counter::OutSelf => ("out", "self"),
        Counter::OutExcluded => ("out", "excluded"),
        Counter::OutAgent => ("out", "agent"),
        Counter::OutBypass => ("out", "bypass"),
        Counter::OutMarkFailed => ("out", "mark_failed"),
        Counter::OutStale => ("out", "agent_stale"),
        Counter::TuplePublished => ("tuple", "published"),
        Counter::TupleForged => ("tuple", "forged"),
        Counter::FlowsFull => ("tuple", "flows_full"),
        Counter::AggregatesFull => ("tuple", "aggregates_full"),
        Counter::EventsLost => ("tuple", "events_lost"),
        Counter::ProbePublished => ("probe", "published"),
        Counter::SteerOutbound => ("steer", "outbound"),
        Counter::SteerInbound => ("steer", "inbound"),
        Counter::SteerOnward => ("steer", "onward"),
        Counter::SteerDirect => ("steer", "direct"),
        Counter::SteerDirectRefused => ("steer", "direct_refused"),
        Counter::SteerProbe => ("steer", "probe"),
        Counter::SteerSelf => ("steer", "self"),
        Counter::SteerExcluded => ("steer", "excluded"),
        Counter::SteerGonePassed => ("steer", "gone_passed"),
        Counter::SteerGoneDropped => ("steer", "gone_dropped"),
        Counter::SteerBypass => ("steer", "bypass"),
        Counter::OutGone => ("out", "agent_gone"),
        Counter::Count => ("", ""),
    }
}

const ALL: [Counter; Counter::Count as usize] = [
    Counter::OutCaptured,
    Counter::OutDirect,
    Counter::OutSelf,
    Counter::OutExcluded,
    Counter::OutAgent,
    Counter::OutBypass,
    Counter::OutMarkFailed,
    Counter::OutStale,
    Counter::TuplePublished,
    Counter::TupleForged,
    Counter::FlowsFull,
    Counter::AggregatesFull,
    Counter::EventsLost,
    Counter::ProbePublished,
    Counter::SteerOutbound,
    Counter::SteerInbound,
    Counter::SteerOnward,
    Counter::SteerDirect,
    Counter::SteerDirectRefused,
    Counter::SteerProbe,
    Counter::SteerSelf,
    Counter::SteerExcluded,
    Counter::SteerGonePassed,
    Counter::SteerGoneDropped,
    Counter::SteerBypass,
    Counter::OutGone,
];

/// The map, and what the agent counts itself.
pub(crate) struct Counters {
    map: PerCpuArray<MapData, u64>,
    /// Pods whose rules had to be put back.
    pub(crate) reasserted: u64,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    pub(crate) fn open(pin: &Path) -> Result<Self, KernelError> {
        let describe = || "open map COUNTERS";
        let map = Map::PerCpuArray(MapData::from_pin(pin).doing(describe)?);
        Ok(Self { map: PerCpuArray::try_from(map).doing(describe)?, reasserted: 0 })
    }

    pub(crate) fn read(&self) -> Vec<CounterValue> {
        let reasserted =
            CounterValue { program: "agent", reason: "rules_reasserted", value: self.reasserted };
        let of_programs = ALL.iter().map(|counter| {
            let (program, reason) = name(*counter);
            let values = self.map.get(&(*counter as u32), 0);
            CounterValue { program, reason, value: values.map_or(0, |values| values.iter().sum()) }
        });
        of_programs.chain([reasserted]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_place_and_its_own_name() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|counter| name(*counter)).collect();
        assert_eq!(names.len(), ALL.len());
        for (index, counter) in ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
