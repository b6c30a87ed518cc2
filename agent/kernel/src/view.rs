//! Turns a [`KernelView`] into the content of the maps.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_core::kernel_view::{DirectPair, KernelPod, KernelService, KernelView};
use weft_core::resource::NamespacedName;
use weft_core::snapshot::CaptureRules;
use weft_ebpf_common::{
    Addr, EndpointInfo, EndpointKey, LocalPod, PodConfig, PolicyKey, PortRuleKey, RULE_CAPTURE, RULE_SKIP,
    RangeKey, ServiceInfo, ServiceKey, pod_flags, port_rule, steer_flags,
};

use crate::maps::{RangeKeyWithLength, addr};

/// Port of HBONE: inbound rules of a pod cannot take it out of the mesh, since peers reach it by nothing else.
const HBONE_PORT: u16 = 15008;

/// Numbers for identities, policy sets and services. Never used twice in the life of an agent, so that a tuple
/// or a flow of the past cannot be taken for someone else's.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    last: u32,
    identities: HashMap<Arc<str>, u32>,
    sets: HashMap<u64, u32>,
    services: HashMap<ServiceKey, u32>,
}

impl Ids {
    /// Numbers from `last + 1` on: an earlier agent's are in the maps and in tuples on their way.
    pub(crate) fn after(last: u32) -> Self {
        Self { last, ..Self::default() }
    }

    /// The number of an identity, if it has one.
    pub(crate) fn known_identity(&self, principal: &str) -> Option<u32> {
        self.identities.get(principal).copied()
    }

    /// The number of a pod's policy set, if it has one.
    pub(crate) fn known_set(&self, cookie: u64) -> Option<u32> {
        self.sets.get(&cookie).copied()
    }

    fn identity(&mut self, principal: &Arc<str>) -> u32 {
        let last = &mut self.last;
        *self.identities.entry(Arc::clone(principal)).or_insert_with(|| next(last))
    }

    fn set(&mut self, cookie: u64) -> u32 {
        let last = &mut self.last;
        *self.sets.entry(cookie).or_insert_with(|| next(last))
    }

    fn service(&mut self, key: ServiceKey) -> u32 {
        let last = &mut self.last;
        *self.services.entry(key).or_insert_with(|| next(last))
    }

    /// Forgets numbers that nothing refers to any more.
    fn retain(&mut self, wanted: &Desired) {
        let identities: BTreeSet<u32> = wanted.pods.values().map(|pod| pod.identity).collect();
        self.identities.retain(|_, id| identities.contains(id));
        self.sets.retain(|cookie, _| wanted.pods.contains_key(cookie));
        self.services.retain(|key, _| wanted.services.contains_key(key));
    }
}

fn next(last: &mut u32) -> u32 {
    *last += 1;
    *last
}

/// What is known about an enrolled pod.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) cookie: u64,
    pub(crate) ips: Vec<IpAddr>,
}

/// What `STEER` of a pod must say, besides its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steering {
    pub(crate) set: u32,
    pub(crate) flags: u32,
}

impl Steering {
    /// Enrolled, and not (or not any more) told what to do.
    pub(crate) const IDLE: Self = Self { set: 0, flags: steer_flags::BYPASS };
}

/// Wanted content of all maps.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    pub(crate) pods: HashMap<u64, PodConfig>,
    pub(crate) local: HashMap<Addr, LocalPod>,
    pub(crate) policy: HashMap<PolicyKey, u8>,
    pub(crate) ports: HashMap<PortRuleKey, u8>,
    pub(crate) ranges: HashMap<RangeKeyWithLength, u8>,
    pub(crate) services: HashMap<ServiceKey, ServiceInfo>,
    pub(crate) endpoints: HashMap<EndpointKey, EndpointInfo>,
    pub(crate) steering: HashMap<u64, Steering>,
}

impl Desired {
    /// `direct` says whether direct flows are possible at all.
    pub(crate) fn new(
        view: &KernelView,
        places: &HashMap<NamespacedName, Place>,
        ids: &mut Ids,
        direct: bool,
    ) -> Self {
        let mut desired = Self::default();
        let sources: BTreeSet<&str> = view.direct.iter().map(|pair| &*pair.source).collect();
        for pod in &view.pods {
            if let Some(place) = places.get(&pod.workload.key) {
                let principal: Arc<str> = pod.workload.identity.principal().into();
                let goes_direct = direct && sources.contains(&*principal);
                desired.add_pod(pod, place, ids, &principal, goes_direct);
            }
        }
        if direct {
            desired.add_policy(&view.direct, places, ids);
            view.services.iter().for_each(|service| desired.add_service(service, ids));
        }
        ids.retain(&desired);
        desired
    }

    fn add_pod(&mut self, pod: &KernelPod, place: &Place, ids: &mut Ids, principal: &Arc<str>, direct: bool) {
        let (cookie, set) = (place.cookie, ids.set(place.cookie));
        let rules = Rules { cookie, rules: &pod.capture, desired: self };
        let (outbound, inbound) = rules.add();
        let gone = self.add_gone_ports(cookie, &pod.gone_ports);

        let mut flags = outbound | if direct { pod_flags::DIRECT } else { 0 };
        let mut steering = inbound | gone | if pod.gone_pass { steer_flags::GONE_PASS } else { 0 };
        if pod.bypass {
            flags |= pod_flags::BYPASS;
            steering |= steer_flags::BYPASS;
        }
        let first =
            |wanted: fn(&&IpAddr) -> bool| place.ips.iter().find(wanted).map_or([0; 4], |ip| addr(*ip));
        let config = PodConfig {
            ip4: first(|ip| ip.is_ipv4()),
            ip6: first(|ip| ip.is_ipv6()),
            identity: ids.identity(principal),
            flags,
        };
        self.pods.insert(cookie, config);
        self.steering.insert(cookie, Steering { set, flags: steering });
        for ip in &place.ips {
            self.local.insert(addr(*ip), LocalPod { cookie, set, reserved: 0 });
        }
    }

    /// For a pod whose rules to capture do not all fit: takes the flags away by which a rule that is missing
    /// would mean "past the proxy".
    pub(crate) fn close(&mut self, cookie: u64) {
        if let Some(pod) = self.pods.get_mut(&cookie) {
            pod.flags &= !(pod_flags::OUTBOUND_DEFAULT_SKIP | pod_flags::OUTBOUND_RULES);
        }
        if let Some(steering) = self.steering.get_mut(&cookie) {
            let gone = steer_flags::GONE_PASS | steer_flags::GONE_EXCEPTIONS;
            steering.flags &= !(steer_flags::INBOUND_DEFAULT_SKIP | gone);
        }
    }

    fn add_gone_ports(&mut self, cookie: u64, ports: &[u16]) -> u32 {
        for port in ports {
            self.ports.insert(key(cookie, *port, port_rule::GONE_EXCEPTION), RULE_CAPTURE);
        }
        if ports.is_empty() { 0 } else { steer_flags::GONE_EXCEPTIONS }
    }

    fn add_policy(
        &mut self,
        pairs: &BTreeSet<DirectPair>,
        places: &HashMap<NamespacedName, Place>,
        ids: &Ids,
    ) {
        for pair in pairs {
            let set = places.get(&pair.destination).and_then(|place| ids.known_set(place.cookie));
            // A source that no pod of this node has opens no direct flow.
            if let (Some(set), Some(identity)) = (set, ids.known_identity(&pair.source)) {
                self.policy.insert(PolicyKey { set, identity, port: pair.port, reserved: [0; 3] }, 1);
            }
        }
    }

    fn add_service(&mut self, service: &KernelService, ids: &mut Ids) {
        let key = ServiceKey { vip: addr(service.vip.ip()), port: service.vip.port(), reserved: 0 };
        let Ok(count @ 1..) = u32::try_from(service.endpoints.len()) else { return };
        let id = ids.service(key);
        self.services.insert(key, ServiceInfo { id, count });
        for (index, endpoint) in (0..).zip(&service.endpoints) {
            let info = EndpointInfo { addr: addr(endpoint.ip()), port: endpoint.port(), reserved: 0 };
            self.endpoints.insert(EndpointKey { service: id, index }, info);
        }
    }
}

fn key(cookie: u64, port: u16, kind: u16) -> PortRuleKey {
    PortRuleKey { cookie, port, kind, reserved: 0 }
}

/// Capture rules of one pod on their way into the maps.
struct Rules<'a> {
    cookie: u64,
    rules: &'a CaptureRules,
    desired: &'a mut Desired,
}

impl Rules<'_> {
    /// Adds the entries; returns flags for `PODS` and `STEER`.
    fn add(mut self) -> (u32, u32) {
        (self.add_outbound(), self.add_inbound())
    }

    /// An excluded port wins over an included one, a port over ranges, an excluded range over included ones.
    fn add_outbound(&mut self) -> u32 {
        let rules = self.rules;
        self.ports(port_rule::OUTBOUND, &rules.include_outbound_ports, RULE_CAPTURE);
        self.ports(port_rule::OUTBOUND, &rules.exclude_outbound_ports, RULE_SKIP);
        let excluded = &rules.exclude_outbound_ranges;
        for range in rules.include_outbound_ranges.iter().flatten() {
            // The trie finds the longest prefix; an include inside an exclude must not win by that.
            if !excluded.iter().any(|outer| outer.contains(range)) {
                self.range(*range, RULE_CAPTURE);
            }
        }
        excluded.iter().for_each(|range| self.range(*range, RULE_SKIP));

        let mut flags = 0;
        if rules.include_outbound_ranges.is_some() {
            flags |= pod_flags::OUTBOUND_DEFAULT_SKIP | pod_flags::OUTBOUND_RULES;
        }
        let has_ports = !rules.include_outbound_ports.is_empty() || !rules.exclude_outbound_ports.is_empty();
        if has_ports || !excluded.is_empty() {
            flags |= pod_flags::OUTBOUND_RULES;
        }
        flags
    }

    fn add_inbound(&mut self) -> u32 {
        let rules = self.rules;
        let mut flags = 0;
        if let Some(ports) = &rules.include_inbound_ports {
            self.ports(port_rule::INBOUND, ports, RULE_CAPTURE);
            flags |= steer_flags::INBOUND_DEFAULT_SKIP | steer_flags::INBOUND_RULES;
        }
        if !rules.exclude_inbound_ports.is_empty() {
            self.ports(port_rule::INBOUND, &rules.exclude_inbound_ports, RULE_SKIP);
            flags |= steer_flags::INBOUND_RULES;
        }
        if flags != 0 {
            self.ports(port_rule::INBOUND, &[HBONE_PORT], RULE_CAPTURE);
        }
        flags
    }

    fn ports(&mut self, kind: u16, ports: &[u16], rule: u8) {
        for port in ports {
            self.desired.ports.insert(key(self.cookie, *port, kind), rule);
        }
    }

    fn range(&mut self, range: IpNet, rule: u8) {
        /// Bits of the cookie, and of the prefix of a v4-mapped address.
        const COOKIE_BITS: u32 = 64;
        const MAPPED_BITS: u32 = 96;
        let mapped = if range.addr().is_ipv4() { MAPPED_BITS } else { 0 };
        let length = COOKIE_BITS + mapped + u32::from(range.prefix_len());
        let data = RangeKey { cookie: self.cookie.to_be_bytes(), addr: addr(range.network()) };
        self.desired.ranges.insert(RangeKeyWithLength { length, data }, rule);
    }
}
