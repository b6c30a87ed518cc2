//! The decision table of `steer`, run by the kernel on synthetic lookups (`BPF_PROG_TEST_RUN`).

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::programs::{Program, SkLookup};
use aya::{Ebpf, Pod};
use rustix::net::sockopt::socket_cookie;
use weft_ebpf_common::{
    HEARTBEAT_LIFETIME_NS, Meta, PolicyKey, PortRuleKey, RULE_CAPTURE, RULE_SKIP, SteerConfig,
    TUPLE_LIFETIME_NS, Tuple, TupleInfo, listener_slot, port_rule, steer_flags,
};

use crate::load::STEER_OBJECT;
use crate::maps::{addr, tuple};
use crate::sys::{self, Attr, Command, monotonic_ns};

const COOKIE: u64 = 4711;
const SET: u32 = 3;
const IDENTITY: u32 = 9;

/// Addresses of one family.
struct Family {
    own: IpAddr,
    second: IpAddr,
    peer: IpAddr,
    elsewhere: IpAddr,
    loopback: IpAddr,
}

fn families() -> [Family; 2] {
    let family = |texts: [&str; 5]| {
        let [own, second, peer, elsewhere, loopback] = texts.map(|text| text.parse().unwrap());
        Family { own, second, peer, elsewhere, loopback }
    };
    [
        family(["10.244.0.12", "10.96.0.10", "10.244.0.13", "192.0.2.7", "127.0.0.1"]),
        family(["fd00::12", "fd00:96::10", "fd00::13", "2001:db8::7", "::1"]),
    ]
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Application,
    Reset,
    Inbound,
    Outbound,
}

/// The time so many nanoseconds ago. On a machine that is younger than that it is zero, which stands for never.
fn at(ago: u64) -> u64 {
    monotonic_ns().saturating_sub(ago)
}

/// A loaded `steer` with maps of its own and four listeners.
struct Pod1 {
    ebpf: Ebpf,
    program: OwnedFd,
    listeners: Vec<(TcpListener, u32)>,
    config: SteerConfig,
}

impl Pod1 {
    fn new() -> Self {
        let mut ebpf = Ebpf::load(STEER_OBJECT).unwrap();
        let steer: &mut SkLookup = ebpf.program_mut("steer").unwrap().try_into().unwrap();
        steer.load().unwrap();
        let program = steer.fd().unwrap().as_fd().try_clone_to_owned().unwrap();
        let mut addrs = [[0; 4]; 16];
        for (place, family) in addrs.chunks_mut(2).zip(families()) {
            place.copy_from_slice(&[addr(family.own), addr(family.second)]);
        }
        let config =
            SteerConfig { cookie: COOKIE, set: SET, flags: 0, addr_count: 4, saved_sysctls: 0, addrs };
        let mut pod = Self { ebpf, program, listeners: Vec::new(), config };
        pod.flags(0);
        pod.agent_seen(0);
        pod
    }

    fn with_agent() -> Self {
        let mut pod = Self::new();
        for (slot, at) in [
            (listener_slot::INBOUND4, "127.0.0.1:0"),
            (listener_slot::INBOUND6, "[::1]:0"),
            (listener_slot::OUTBOUND4, "127.0.0.1:0"),
            (listener_slot::OUTBOUND6, "[::1]:0"),
        ] {
            let listener = TcpListener::bind(at).unwrap();
            pod.put("LISTENERS", &slot, &(listener.as_raw_fd() as u32));
            pod.listeners.push((listener, slot));
        }
        pod
    }

    fn put<K: Pod, V: Pod>(&self, map: &str, key: &K, value: &V) {
        sys::map_update(self.map(map).as_fd(), key, value).unwrap();
    }

    fn map(&self, name: &str) -> OwnedFd {
        use aya::maps::Map;
        let data = match self.ebpf.map(name).unwrap() {
            Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::SockMap(data) => data,
            other => panic!("{other:?}"),
        };
        data.fd().as_fd().try_clone_to_owned().unwrap()
    }

    fn flags(&mut self, flags: u32) {
        self.config.flags = flags;
        self.put("STEER", &0_u32, &self.config);
    }

    /// The agent's last sign of life, so many nanoseconds ago.
    fn agent_seen(&self, ago: u64) {
        let meta = Meta { heartbeat_ns: at(ago), ..Meta::default() };
        self.put("META", &0_u32, &meta);
    }

    fn rule(&self, kind: u16, port: u16, rule: u8) {
        self.put("PORT_RULES", &PortRuleKey { cookie: COOKIE, port, kind, reserved: 0 }, &rule);
    }

    fn permit(&self, port: u16) {
        let key = PolicyKey { set: SET, identity: IDENTITY, port, reserved: [0; 3] };
        self.put("POLICY", &key, &1_u8);
    }

    fn publish(&self, map: &str, tuple: Tuple, ago: u64) {
        let published_ns = at(ago);
        if map == "DIRECT" {
            let info = TupleInfo { published_ns, cookie: 1, identity: IDENTITY, reserved: 0 };
            self.put(map, &tuple, &info);
        } else {
            self.put(map, &tuple, &published_ns);
        }
    }

    fn run(&self, remote: IpAddr, local: IpAddr, port: u16) -> Verdict {
        self.run_protocol(6, remote, local, port)
    }

    fn run_protocol(&self, protocol: u32, remote: IpAddr, local: IpAddr, port: u16) -> Verdict {
        let remote = SocketAddr::new(remote, 40_000);
        let (passes, chosen) = test_run(&self.program, &context(protocol, remote, local, port));
        let slot = self.listeners.iter().find(|(listener, _)| socket_cookie(listener).unwrap() == chosen);
        match (passes, slot.map(|(_, slot)| *slot)) {
            (false, None) => Verdict::Reset,
            (true, None) => Verdict::Application,
            (true, Some(listener_slot::INBOUND4)) if local.is_ipv4() => Verdict::Inbound,
            (true, Some(listener_slot::INBOUND6)) if local.is_ipv6() => Verdict::Inbound,
            (true, Some(listener_slot::OUTBOUND4)) if local.is_ipv4() => Verdict::Outbound,
            (true, Some(listener_slot::OUTBOUND6)) if local.is_ipv6() => Verdict::Outbound,
            other => panic!("{other:?}"),
        }
    }
}

fn connection(family: &Family, port: u16) -> Tuple {
    tuple(SocketAddr::new(family.peer, 40_000), SocketAddr::new(family.own, port))
}

/// `struct bpf_sk_lookup`.
fn context(protocol: u32, remote: SocketAddr, local: IpAddr, port: u16) -> [u8; 72] {
    let mut context = [0; 72];
    let mut put = |at: usize, bytes: &[u8]| context[at..at + bytes.len()].copy_from_slice(bytes);
    put(12, &protocol.to_ne_bytes());
    match (remote.ip(), local) {
        (IpAddr::V4(remote), IpAddr::V4(local)) => {
            put(8, &2_u32.to_ne_bytes());
            put(16, &remote.octets());
            put(40, &local.octets());
        }
        (IpAddr::V6(remote), IpAddr::V6(local)) => {
            put(8, &10_u32.to_ne_bytes());
            put(20, &remote.octets());
            put(44, &local.octets());
        }
        other => panic!("{other:?}"),
    }
    put(36, &remote.port().to_be_bytes());
    put(60, &u32::from(port).to_ne_bytes());
    context
}

/// Arguments of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestAttr {
    program: u32,
    result: u32,
    data_sizes: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_sizes: [u32; 2],
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
}

// SAFETY: laid out like the anonymous struct of BPF_PROG_TEST_RUN; `test_run` points at live contexts.
unsafe impl Attr for TestAttr {}

/// Whether the lookup passes, and the cookie of the socket that was chosen.
fn test_run(program: &OwnedFd, context: &[u8; 72]) -> (bool, u64) {
    let mut out = [0_u8; 72];
    let mut attr = TestAttr {
        program: program.as_raw_fd() as u32,
        context_sizes: [72; 2],
        context_in: context.as_ptr() as u64,
        context_out: out.as_mut_ptr() as u64,
        ..TestAttr::default()
    };
    sys::bpf(Command::ProgTestRun, &mut attr).unwrap();
    (attr.result == 1, u64::from_ne_bytes(out[..8].try_into().unwrap()))
}

#[test]
fn connections_from_outside_reach_the_inbound_listener_at_any_port() {
    let pod = Pod1::with_agent();
    for family in families() {
        for port in [1, 80, 8080, 15008, 65535] {
            assert_eq!(pod.run(family.peer, family.own, port), Verdict::Inbound);
            assert_eq!(pod.run(family.peer, family.second, port), Verdict::Inbound);
        }
    }
}

#[test]
fn connections_to_foreign_addresses_reach_the_outbound_listener() {
    let pod = Pod1::with_agent();
    for family in families() {
        assert_eq!(pod.run(family.own, family.elsewhere, 443), Verdict::Outbound);
        assert_eq!(pod.run(family.own, family.peer, 443), Verdict::Outbound);
    }
}

#[test]
fn the_pod_talks_to_itself_undisturbed() {
    let pod = Pod1::with_agent();
    for family in families() {
        assert_eq!(pod.run(family.own, family.own, 80), Verdict::Application);
        assert_eq!(pod.run(family.second, family.second, 80), Verdict::Application);
        assert_eq!(pod.run(family.loopback, family.loopback, 80), Verdict::Application);
        assert_eq!(pod.run(family.loopback, family.own, 80), Verdict::Application);
        assert_eq!(pod.run(family.own, family.loopback, 80), Verdict::Application);
    }
}

#[test]
fn other_protocols_are_left_alone() {
    let pod = Pod1::with_agent();
    for family in families() {
        assert_eq!(pod.run_protocol(17, family.peer, family.own, 53), Verdict::Application);
    }
}

#[test]
fn break_glass_passes_everything() {
    let mut pod = Pod1::with_agent();
    pod.flags(steer_flags::BYPASS);
    for family in families() {
        assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Application);
        assert_eq!(pod.run(family.own, family.elsewhere, 80), Verdict::Application);
    }
}

#[test]
fn inbound_rules() {
    let mut pod = Pod1::with_agent();
    pod.rule(port_rule::INBOUND, 81, RULE_SKIP);
    pod.rule(port_rule::INBOUND, 82, RULE_CAPTURE);
    pod.rule(port_rule::OUTBOUND, 83, RULE_SKIP);
    let [family, _] = families();
    assert_eq!(pod.run(family.peer, family.own, 81), Verdict::Inbound, "rules without the flag do not count");
    pod.flags(steer_flags::INBOUND_RULES);
    assert_eq!(pod.run(family.peer, family.own, 81), Verdict::Application);
    assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Inbound);
    assert_eq!(pod.run(family.peer, family.own, 83), Verdict::Inbound, "an outbound rule");
    assert_eq!(pod.run(family.own, family.elsewhere, 81), Verdict::Outbound);
    pod.flags(steer_flags::INBOUND_RULES | steer_flags::INBOUND_DEFAULT_SKIP);
    assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Application);
    assert_eq!(pod.run(family.peer, family.own, 82), Verdict::Inbound);
}

#[test]
fn onward_connections_and_probes_pass_while_they_are_fresh() {
    let pod = Pod1::with_agent();
    for (map, port) in [("ONWARD", 80), ("PROBES", 81)] {
        for family in families() {
            pod.publish(map, connection(&family, port), 0);
            assert_eq!(pod.run(family.peer, family.own, port), Verdict::Application, "{map}");
            assert_eq!(
                pod.run(family.elsewhere, family.own, port),
                Verdict::Inbound,
                "{map}: another client"
            );
            pod.publish(map, connection(&family, port), TUPLE_LIFETIME_NS + 1);
            assert_eq!(pod.run(family.peer, family.own, port), Verdict::Inbound, "{map}: stale");
        }
    }
}

#[test]
fn a_published_tuple_needs_permission() {
    let pod = Pod1::with_agent();
    for family in families() {
        pod.publish("DIRECT", connection(&family, 80), 0);
        assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Inbound);
    }
    pod.permit(80);
    for family in families() {
        assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Application);
        assert_eq!(pod.run(family.elsewhere, family.own, 80), Verdict::Inbound, "no tuple");
        pod.publish("DIRECT", connection(&family, 81), 0);
        assert_eq!(pod.run(family.peer, family.own, 81), Verdict::Inbound, "another port");
        pod.publish("DIRECT", connection(&family, 80), TUPLE_LIFETIME_NS + 1);
        assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Inbound, "stale");
    }
}

#[test]
fn without_signs_of_life_nothing_goes_direct() {
    let pod = Pod1::with_agent();
    pod.permit(80);
    for family in families() {
        // A second: virtual machines are asked when they are a few seconds old.
        pod.agent_seen(HEARTBEAT_LIFETIME_NS / 30);
        pod.publish("DIRECT", connection(&family, 80), 0);
        assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Application);
        pod.agent_seen(HEARTBEAT_LIFETIME_NS + 1);
        assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Inbound);
    }
}

#[test]
fn without_listeners_the_gone_rule_decides() {
    let mut pod = Pod1::new();
    pod.rule(port_rule::GONE_EXCEPTION, 81, RULE_CAPTURE);
    let [family, _] = families();
    let ports = |pod: &Pod1| [80, 81].map(|port| pod.run(family.peer, family.own, port));
    assert_eq!(ports(&pod), [Verdict::Reset, Verdict::Reset]);
    pod.flags(steer_flags::GONE_EXCEPTIONS);
    assert_eq!(ports(&pod), [Verdict::Reset, Verdict::Application]);
    pod.flags(steer_flags::GONE_PASS | steer_flags::GONE_EXCEPTIONS);
    assert_eq!(ports(&pod), [Verdict::Application, Verdict::Reset]);
    pod.flags(steer_flags::GONE_PASS);
    assert_eq!(ports(&pod), [Verdict::Application, Verdict::Application]);
    assert_eq!(pod.run(family.own, family.elsewhere, 80), Verdict::Reset, "captured outbound is refused");
    assert_eq!(pod.run(family.own, family.own, 80), Verdict::Application);
}

#[test]
fn probes_pass_with_the_agent_gone() {
    let pod = Pod1::new();
    for family in families() {
        pod.publish("PROBES", connection(&family, 80), 0);
        assert_eq!(pod.run(family.peer, family.own, 80), Verdict::Application);
    }
}

#[test]
fn the_verifier_accepts_all_programs_of_the_node() {
    let mut ebpf = Ebpf::load(crate::load::NODE_OBJECT).unwrap();
    let mut names: Vec<String> = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(program) => program.load().unwrap(),
            Program::SockOps(program) => program.load().unwrap(),
            other => panic!("{name}: {:?}", other.prog_type()),
        }
        names.push(name.to_owned());
    }
    names.sort();
    assert_eq!(names, ["name4", "name6", "out4", "out6", "probe", "tuple"]);
}
