//! The tables of the node, and the order in which they change.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use weft_ebpf_common::{
    Addr, EndpointInfo, EndpointKey, LocalPod, PodConfig, PolicyKey, PortRuleKey, RULE_CAPTURE, ServiceInfo,
    ServiceKey, Tuple, TupleInfo, capacity, pod_flags,
};

use crate::datapath::MapUse;
use crate::error::{Doing, KernelError};
use crate::maps::{Changes, RangeKeyWithLength, Table, entries};
use crate::pins::Pins;
use crate::sys;
use crate::view::Desired;

/// Everything that the agent writes and the programs only read.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) pods: Table<u64, PodConfig>,
    pub(crate) policy: Table<PolicyKey, u8>,
    local: Table<Addr, LocalPod>,
    ports: Table<PortRuleKey, u8>,
    ranges: Table<RangeKeyWithLength, u8>,
    services: Table<ServiceKey, ServiceInfo>,
    endpoints: Table<EndpointKey, EndpointInfo>,
}

impl Tables {
    pub(crate) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            pods: Table::open(pins, "PODS")?,
            policy: Table::open(pins, "POLICY")?,
            local: Table::open(pins, "LOCAL")?,
            ports: Table::open(pins, "PORT_RULES")?,
            ranges: Table::open(pins, "RANGE_RULES")?,
            services: Table::open(pins, "SERVICES")?,
            endpoints: Table::open(pins, "ENDPOINTS")?,
        })
    }

    /// The highest number that an earlier agent gave to something that may still be around.
    pub(crate) fn highest_id(&self, pins: &Pins) -> Result<u32, KernelError> {
        let direct = sys::obj_get(&pins.map("DIRECT")).doing(|| "open map DIRECT")?;
        let direct = entries::<Tuple, TupleInfo>(direct.as_fd()).doing(|| "read map DIRECT")?;
        let pods = self.pods.iter().map(|(_, pod)| pod.identity);
        let local = self.local.iter().map(|(_, pod)| pod.set);
        let services = self.services.iter().map(|(_, service)| service.id);
        let tuples = direct.map(|(_, info)| info.identity);
        Ok(pods.chain(local).chain(services).chain(tuples).max().unwrap_or_default())
    }

    /// Everything but permissions. Rules come before the pods to which they belong; a Service is there only
    /// with all its endpoints. Pods whose rules do not fit are captured without exception: see
    /// [`Desired::close`].
    pub(crate) fn set(&mut self, desired: &mut Desired) -> Result<Changes, KernelError> {
        let mut changes = self.services.retain(|key| desired.services.contains_key(key))?;
        changes += self.local.retain(|key| desired.local.contains_key(key))?;
        changes += self.ports.set(&desired.ports)?;
        changes += self.ranges.set(&desired.ranges)?;
        for cookie in self.overflowed(desired) {
            desired.close(cookie);
        }
        changes += self.pods.set(&desired.pods)?;
        changes += self.local.write(&desired.local)?;
        changes += self.endpoints.write(&desired.endpoints)?;
        changes += self.services.write(&desired.services)?;
        changes += self.endpoints.retain(|key| desired.endpoints.contains_key(key))?;
        Ok(changes)
    }

    /// Pods of which a rule to capture is not in the tables. One to skip is safe to miss.
    fn overflowed(&self, desired: &Desired) -> BTreeSet<u64> {
        let captures = |rule: &u8| *rule == RULE_CAPTURE;
        let ports = desired.ports.iter().filter(|(key, rule)| captures(rule) && !self.ports.contains(key));
        let ranges = desired.ranges.iter().filter(|(key, rule)| captures(rule) && !self.ranges.contains(key));
        let ranges = ranges.map(|(key, _)| u64::from_be_bytes(key.data.cookie));
        ports.map(|(key, _)| key.cookie).chain(ranges).collect()
    }

    /// Leaves pods as they are: captured, and by the same rules, but never direct.
    ///
    /// Without it the pods of an earlier agent would be uncaptured, and their exceptions for a missing agent
    /// forgotten, from the first change of the maps until they are taken over.
    pub(crate) fn keep(&self, is_kept: impl Fn(u64) -> bool, desired: &mut Desired) {
        let pods = self.pods.iter().filter(|(cookie, _)| is_kept(**cookie));
        desired
            .pods
            .extend(pods.map(|(k, pod)| (*k, PodConfig { flags: pod.flags & !pod_flags::DIRECT, ..*pod })));
        let ports = self.ports.iter().filter(|(key, _)| is_kept(key.cookie));
        desired.ports.extend(ports.map(|(key, rule)| (*key, *rule)));
        let ranges = self.ranges.iter().filter(|(key, _)| is_kept(u64::from_be_bytes(key.data.cookie)));
        desired.ranges.extend(ranges.map(|(key, rule)| (*key, *rule)));
        // As destinations of probes only: no policy names their former sets any more.
        for (addr, pod) in self.local.iter().filter(|(_, pod)| is_kept(pod.cookie)) {
            desired.local.entry(*addr).or_insert(*pod);
        }
    }

    /// Removes one pod: as a destination, as a source, and its rules.
    pub(crate) fn forget_pod(&mut self, cookie: u64) -> Result<(), KernelError> {
        let sets: Vec<u32> =
            self.local.iter().filter(|(_, pod)| pod.cookie == cookie).map(|(_, pod)| pod.set).collect();
        self.policy.retain(|key| !sets.contains(&key.set))?;
        self.local.retain_entries(|_, pod| pod.cookie != cookie)?;
        self.pods.retain(|key| *key != cookie)?;
        self.ports.retain(|key| key.cookie != cookie)?;
        self.ranges.retain(|key| key.data.cookie != cookie.to_be_bytes())?;
        Ok(())
    }

    /// How full the tables are.
    pub(crate) fn usage(&self, flows: usize) -> Vec<MapUse> {
        fn of<K: aya::Pod + Eq + std::hash::Hash, V: aya::Pod + PartialEq>(table: &Table<K, V>) -> MapUse {
            MapUse { name: table.name().to_owned(), entries: table.len(), max_entries: table.max_entries() }
        }
        vec![
            of(&self.pods),
            of(&self.local),
            of(&self.policy),
            of(&self.ports),
            of(&self.ranges),
            of(&self.services),
            of(&self.endpoints),
            MapUse { name: "FLOWS".to_owned(), entries: flows, max_entries: capacity::FLOWS as usize },
        ]
    }
}
