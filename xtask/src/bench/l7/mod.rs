//! The table "L7": the same requests directly, through the mesh, and through a pair of real Envoys.

mod envoy;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use weft_lab::{Agent, Controller, Lab, LabSpec, Pod, PodSpec, Process, poll_until};

use self::envoy::Envoys;
use super::Plan;
use super::meter::{Measured, Meter, keep_awake};
use super::report::{Collected, Contender, Family};

const HTTP: u16 = 1003;
const GRPC: u16 = 1005;
/// Where the relays that only copy listen.
const RELAY: u16 = 1007;

/// Connections (or streams) of the saturating loads, and how long each takes.
const CONNECTIONS: &str = "32";
const STREAMS: &str = "100";
const ONE: &str = "1";
const SECONDS: &str = "3";

/// Routing, one ALLOW and one DENY, as the goals have it.
const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: NAME, namespace: mesh}
spec:
  hosts: [NAME]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: NAME}}]
  - route: [{destination: {host: NAME}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: NAME-allow, namespace: mesh}
spec:
  selector: {matchLabels: {app: NAME}}
  rules: [{from: [{source: {namespaces: [mesh]}}], to: [{operation: {paths: [/1k, /bench*]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: NAME-deny, namespace: mesh}
spec:
  selector: {matchLabels: {app: NAME}}
  action: DENY
  rules: [{to: [{operation: {paths: [/admin*]}}]}]
";

/// Ten rules that look at every request.
const TEN_RULES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ten, namespace: mesh}
spec:
  action: DENY
  rules: [RULES]
";

const ACCESS_LOG: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: weft, namespace: weft-system}
data: {mesh: \"accessLogFile: /dev/stdout\"}
";

/// One kind of requests, and what is read off it.
struct Test {
    load: &'static [&'static str],
    server: &'static str,
    rows: &'static [(&'static str, Read)],
}

/// What of a measurement is a row's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Requests per second.
    Rate,
    /// Processor microseconds of the proxies for one request.
    Cpu,
    /// The same, beside a single Envoy.
    CpuOfHop,
    /// Microseconds.
    P50,
    P99,
}

const TESTS: &[Test] = &[
    Test {
        load: &["http", "-n", CONNECTIONS],
        server: "far",
        rows: &[("l7.cross.rps", Read::Rate), ("l7.cross.cpu", Read::Cpu)],
    },
    Test {
        load: &["http", "-n", CONNECTIONS],
        server: "near",
        rows: &[("l7.same.cpu", Read::Cpu), ("l7.same.cpu-hop", Read::CpuOfHop)],
    },
    Test {
        load: &["latency", "-n", ONE],
        server: "far",
        rows: &[("l7.cross.p50-1", Read::P50), ("l7.cross.p99-1", Read::P99)],
    },
    Test {
        load: &["latency", "-n", "64", "--rate", "5000"],
        server: "far",
        rows: &[("l7.cross.p50-5000", Read::P50), ("l7.cross.p99-5000", Read::P99)],
    },
    Test { load: &["grpc", "-n", STREAMS], server: "far", rows: &[("l7.grpc.cpu", Read::Cpu)] },
];

const OVERHEAD: &str = "l7.rules-overhead";

/// Two nodes. Fields end in the order in which they stand: agents before the lab.
struct Bed {
    agents: Vec<Agent>,
    envoys: Envoys,
    _servers: Vec<Process>,
    _controller: Controller,
    meter: Meter,
    lab: Lab,
}

pub(crate) fn measure(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    let bed = Bed::new(binaries)?;
    for round in 1..=plan.rounds {
        eprintln!("l7: round {round} of {}", plan.rounds);
        for test in TESTS.iter().filter(|test| test.rows.iter().any(|(row, _)| plan.wants(row))) {
            if let Err(e) = test.run(&bed, plan, binaries, collected) {
                for (row, _) in test.rows.iter().filter(|(row, _)| plan.wants(row)) {
                    collected.fail(row, Family::V4, &e);
                }
            }
        }
        if plan.wants(OVERHEAD)
            && let Err(e) = rules_overhead(&bed, collected)
        {
            collected.fail(OVERHEAD, Family::V4, &e);
        }
    }
    Ok(())
}

impl Test {
    /// Relays only where there is nothing to do but wait for each other: elsewhere they are no floor.
    fn contenders(&self) -> impl Iterator<Item = Contender> {
        let relays = self.load.contains(&ONE).then_some(Contender::Relays);
        [Contender::Direct, Contender::Weft, Contender::Envoy].into_iter().chain(relays)
    }

    fn run(&self, bed: &Bed, plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
        let wanted = |read: &Read| self.rows.iter().any(|(row, of)| of == read && plan.wants(row));
        // One connection at a time measures wake-ups unless the cores stay awake.
        let awake = if wanted(&Read::P50) && self.load.contains(&ONE) {
            keep_awake(&bed.lab, binaries)?
        } else {
            Vec::new()
        };
        for contender in self.contenders() {
            let measured = bed.measure(contender, self.load, self.server, false)?;
            collected.add_foreign(measured.foreign);
            for (row, read) in
                self.rows.iter().filter(|(row, read)| plan.wants(row) && *read != Read::CpuOfHop)
            {
                if let Some(value) = read.value(&measured, contender)? {
                    collected.add(row, Family::V4, contender, value);
                }
            }
            if contender == Contender::Weft && wanted(&Read::CpuOfHop) {
                let value = Read::Cpu.value(&measured, contender)?.unwrap_or_default();
                collected.add("l7.same.cpu-hop", Family::V4, contender, value);
            }
        }
        if wanted(&Read::CpuOfHop) {
            let measured = bed.measure(Contender::Envoy, self.load, self.server, true)?;
            let value = Read::Cpu.value(&measured, Contender::Envoy)?.unwrap_or_default();
            collected.add("l7.same.cpu-hop", Family::V4, Contender::Envoy, value);
        }
        drop(awake);
        Ok(())
    }
}

impl Read {
    /// `None` where the contender has no such value.
    fn value(self, measured: &Measured, contender: Contender) -> Result<Option<f64>> {
        Ok(match self {
            Self::Rate => Some(measured.number("requests")? / measured.number("seconds")?),
            Self::Cpu | Self::CpuOfHop if matches!(contender, Contender::Weft | Contender::Envoy) => {
                Some(cpu_per_request(measured)?)
            }
            Self::Cpu | Self::CpuOfHop => None,
            Self::P50 => Some(measured.number("p50_us")?),
            Self::P99 => Some(measured.number("p99_us")?),
        })
    }
}

/// What ten more rules and the access log cost, of the processor time without both.
fn rules_overhead(bed: &Bed, collected: &mut Collected) -> Result<()> {
    let cost = || -> Result<f64> {
        let measured = bed.measure(Contender::Weft, &["http", "-n", CONNECTIONS], "far", false)?;
        cpu_per_request(&measured)
    };
    bed.set_policies(false)?;
    let without = cost();
    bed.set_policies(true)?;
    let rules: Vec<String> = (0..10)
        .map(|index| format!("{{to: [{{operation: {{methods: [GET], paths: [\"*/secret-{index}\"]}}}}]}}"))
        .collect();
    bed.lab.config().write("ten.yaml", &TEN_RULES.replace("RULES", &rules.join(", ")))?;
    let with = bed.settled().and_then(|()| cost());
    bed.lab.config().remove("ten.yaml")?;
    let (with, without) = (with?, without?);
    collected.add(OVERHEAD, Family::V4, Contender::Weft, with / without - 1.0);
    Ok(())
}

/// Processor microseconds.
fn cpu_per_request(measured: &Measured) -> Result<f64> {
    Ok(measured.agents_cpu * 1e6 / measured.number("requests")?)
}

impl Bed {
    fn new(binaries: &Path) -> Result<Self> {
        let mut spec = LabSpec::new().node("a").node("b").for_bench().binaries(binaries.to_owned());
        for namespace in ["mesh", "plain", "envoy"] {
            for (node, name) in [("a", "client"), ("a", "near"), ("b", "far")] {
                spec = spec.pod(PodSpec::new(node, namespace, name).service_account(name));
            }
        }
        let lab = Lab::new(&spec)?;
        lab.config().namespace("mesh", &[("weft.dev/mesh", "enabled")])?;
        for namespace in ["plain", "envoy"] {
            lab.config().namespace(namespace, &[])?;
        }
        let ports = [("http", HTTP, HTTP), ("grpc", GRPC, GRPC)];
        for (index, name) in ["near", "far"].into_iter().enumerate() {
            lab.config().service(&format!("mesh/{name}"), &[&vip(index)], name, &ports)?;
        }
        let mut servers = Vec::new();
        for namespace in ["mesh", "plain", "envoy"] {
            for name in ["near", "far"] {
                let pod = lab.pod(&format!("{namespace}/{name}"))?;
                servers.push(pod.serve(&[&format!("http:{HTTP}")])?);
                servers.push(pod.app("v1", &[GRPC])?);
            }
        }
        servers.extend(relays(&lab)?);
        let controller = lab.start_controller()?;
        let agents = vec![lab.start_agent("a")?, lab.start_agent("b")?];
        let (envoys, meter) = (Envoys::start(&lab)?, Meter::new(&lab)?);
        let bed = Self { agents, envoys, _servers: servers, _controller: controller, meter, lab };
        let [a, b] = bed.agents.as_slice() else { bail!("each node has its agent") };
        a.wait_enrolled(&["mesh/client", "mesh/near"])?;
        b.wait_enrolled(&["mesh/far"])?;
        bed.set_policies(true)?;
        Ok(bed)
    }

    /// Rules and access log, or neither.
    fn set_policies(&self, on: bool) -> Result<()> {
        let config = self.lab.config();
        if on {
            config.write("mesh-config.yaml", ACCESS_LOG)?;
            for name in ["near", "far"] {
                config.write(&format!("rules-{name}.yaml"), &RULES.replace("NAME", name))?;
            }
        } else {
            for name in ["mesh-config", "rules-near", "rules-far"] {
                config.remove(&format!("{name}.yaml"))?;
            }
        }
        self.settled()
    }

    /// Every path works; finding that out takes far longer than a change of configuration.
    fn settled(&self) -> Result<()> {
        poll_until(Duration::from_secs(20), || {
            for server in ["near", "far"] {
                for contender in [Contender::Direct, Contender::Weft, Contender::Envoy] {
                    let target = self.target(contender, &["latency"], server, false)?;
                    let args = ["load", "latency", &target, "--host", server, "--seconds", "0.1"];
                    let report = self.client(contender)?.peer(&args)?;
                    if report.get("p50_us").is_none() {
                        bail!("{} does not reach {target}: {report}", contender.name());
                    }
                }
            }
            Ok(())
        })
    }

    fn client(&self, contender: Contender) -> Result<&Pod> {
        self.lab.pod(match contender {
            Contender::Direct | Contender::Relays => "plain/client",
            Contender::Weft => "mesh/client",
            Contender::Envoy => "envoy/client",
        })
    }

    fn target(&self, contender: Contender, load: &[&str], server: &str, hop: bool) -> Result<String> {
        let grpc = load.contains(&"grpc");
        let port = if grpc { GRPC } else { HTTP };
        Ok(match contender {
            Contender::Direct => format!("{}:{port}", self.lab.pod(&format!("plain/{server}"))?.ipv4()),
            Contender::Relays => format!("127.0.0.1:{RELAY}"),
            Contender::Weft => format!("{}:{port}", vip(usize::from(server == "far"))),
            Contender::Envoy => {
                let port = match (server, grpc, hop) {
                    (_, _, true) => envoy::HOP,
                    (_, true, false) => envoy::PAIR_H2,
                    ("near", false, false) => envoy::PAIR_NEAR,
                    (_, false, false) => envoy::PAIR,
                };
                format!("127.0.0.1:{port}")
            }
        })
    }

    fn measure(&self, contender: Contender, load: &[&str], server: &str, hop: bool) -> Result<Measured> {
        let target = self.target(contender, load, server, hop)?;
        let serving = match (contender, server, hop) {
            (Contender::Direct | Contender::Relays, _, _) => Vec::new(),
            (Contender::Weft, _, _) => self.agents.iter().map(Agent::pid).collect(),
            (Contender::Envoy, _, true) => self.envoys.hop().to_vec(),
            (Contender::Envoy, "near", false) => self.envoys.same_pair().to_vec(),
            (Contender::Envoy, _, false) => self.envoys.cross_pair().to_vec(),
        };
        let Some((mode, options)) = load.split_first() else { bail!("a load has a name") };
        let fixed = ["load", mode, &target, "--host", server, "--seconds", SECONDS];
        self.meter.measure(self.client(contender)?, &serving, &[&fixed[..], options].concat())
    }
}

/// One in the client's pod and one in the server's, as a pair of proxies stands.
fn relays(lab: &Lab) -> Result<[Process; 2]> {
    let (client, far) = (lab.pod("plain/client")?, lab.pod("plain/far")?);
    Ok([
        client.relay(RELAY, &format!("{}:{RELAY}", far.ipv4()))?,
        far.relay(RELAY, &format!("127.0.0.1:{HTTP}"))?,
    ])
}

fn vip(index: usize) -> String {
    format!("172.20.1.{}", index + 1)
}
