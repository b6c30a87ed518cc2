//! An agent is replaced, and an agent is killed, under the load that the goals name: 1,000 requests/s, 5,000
//! connections/s and 1,000 held connections, half of each on one node and half between two.
//!
//! Requests are proxied on both ways; connections and held ones are direct on one node and proxied between two. A
//! killed agent is started again at once, as a service manager does it; `weft hold` keeps its sockets.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use weft_lab::{Agent, AgentOptions, Controller, Lab, LabSpec, PodSpec, Process, now_ns, poll_until};

use super::Plan;
use super::bed::Where;
use super::change::STRICT;
use super::report::{Collected, Contender, Family};

const HTTP: u16 = 1003;
const SMALL: u16 = 1002;
const NODES: [&str; 2] = ["a", "b"];
/// Of each of the two ways: half of what the goals name.
const REQUESTS: &str = "500";
const CONNECTIONS: &str = "2500";
const HELD: &str = "500";
/// Connections per second of somebody who is not in the mesh.
const STRANGER: &str = "50";
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the load goes on before, between and after what happens.
const CALM: Duration = Duration::from_secs(3);

const UPGRADE: [&str; 4] =
    ["change.upgrade-failed", "change.upgrade-refused", "change.upgrade-reset", "change.upgrade-wait"];
const KILL: [&str; 3] = ["change.kill-direct-lost", "change.kill-lost", "change.kill-wait"];
const UNPOLICED: &str = "change.unpoliced";

/// The worst of all rounds counts: a connection that is lost now and then is lost.
pub(super) fn measure(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    let (upgrade, kill) = (plan.wants_any(&UPGRADE), plan.wants_any(&KILL));
    let unpoliced = plan.wants(UNPOLICED);
    if !(upgrade || kill || unpoliced) {
        return Ok(());
    }
    let mut bed = Bed::new(binaries)?;
    let mut worst = Worst::default();
    for round in 1..=plan.rounds {
        eprintln!("change: agents are replaced and killed, round {round} of {}", plan.rounds);
        if upgrade || unpoliced {
            let outcome = bed.under_load(Bed::replace)?;
            eprintln!("upgrade: {}", outcome.told());
            worst.upgrade(&outcome);
        }
        if kill || unpoliced {
            let outcome = bed.under_load(Bed::kill)?;
            eprintln!("SIGKILL: {}", outcome.told());
            worst.kill(&outcome);
        }
    }
    for (row, value) in worst.0.into_iter().filter(|(row, _)| plan.wants(row)) {
        collected.add(row, Family::V4, Contender::Weft, value);
        collected.note(row, format!("the worst of {} rounds", plan.rounds));
    }
    Ok(())
}

/// Values of rows, in the order in which they came.
#[derive(Debug, Default)]
struct Worst(Vec<(&'static str, f64)>);

impl Worst {
    fn note(&mut self, row: &'static str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == row) {
            Some((_, worst)) => *worst = worst.max(value),
            None => self.0.push((row, value)),
        }
    }

    fn upgrade(&mut self, outcome: &Outcome) {
        let [failed, refused, reset, wait] = UPGRADE;
        let of = |name: &str| outcome.failures(|failure| failure.outcome == name);
        let (was_refused, was_reset) = (of("refused"), of("reset"));
        self.note(failed, outcome.failures(|_| true) + outcome.held_lost() - was_refused - was_reset);
        self.note(refused, was_refused);
        self.note(reset, was_reset);
        self.note(wait, outcome.longest_ms());
        self.note(UNPOLICED, outcome.unpoliced);
    }

    fn kill(&mut self, outcome: &Outcome) {
        let [direct, lost, wait] = KILL;
        self.note(direct, outcome.near.lost_directly());
        // What the killed agent had accepted ends with it; whoever came later has to wait only.
        let came_later =
            |failure: &Failure| failure.outcome == "refused" || !outcome.is_before_a_kill(failure);
        self.note(lost, outcome.failures(came_later));
        self.note(wait, outcome.longest_ms());
        self.note(UNPOLICED, outcome.unpoliced);
    }
}

/// An arrival that was not served.
#[derive(Debug)]
struct Failure {
    outcome: String,
    begun_ns: u64,
}

/// What one client said of one kind of arrivals.
#[derive(Debug)]
struct Arrivals {
    done: f64,
    failures: Vec<Failure>,
    longest_ms: f64,
}

/// What one client said.
#[derive(Debug)]
struct Report {
    requests: Arrivals,
    connections: Arrivals,
    held_lost: f64,
    text: String,
}

/// What came of everybody.
#[derive(Debug)]
struct Outcome {
    near: Report,
    far: Report,
    /// Connections that somebody outside the mesh has got.
    unpoliced: f64,
    /// From the signal to the end of the process, of each agent that was killed.
    kills: Vec<(u64, u64)>,
}

impl Report {
    fn read(value: &Value) -> Result<Self> {
        let held = |name: &str| number(value, &format!("/held/{name}"));
        let mut shown = value.clone();
        for kind in ["requests", "connections"] {
            shown
                .get_mut(kind)
                .and_then(Value::as_object_mut)
                .context("it tells of both")?
                .remove("failures");
        }
        Ok(Self {
            requests: Arrivals::read(value, "requests")?,
            connections: Arrivals::read(value, "connections")?,
            held_lost: held("opened")? - held("alive")?,
            text: shown.to_string(),
        })
    }

    /// Connections on one node do without the agent.
    fn lost_directly(&self) -> f64 {
        count(&self.connections.failures, |_| true) + self.held_lost
    }
}

impl Arrivals {
    fn read(value: &Value, kind: &str) -> Result<Self> {
        let of = |name: &str| number(value, &format!("/{kind}/{name}"));
        let failures = value.pointer(&format!("/{kind}/failures")).and_then(Value::as_array);
        let failures = failures.context("failures are told")?.iter().map(|failure| {
            Ok(Failure {
                outcome: failure.get("outcome").and_then(Value::as_str).unwrap_or_default().to_owned(),
                begun_ns: failure.get("begun_ns").and_then(Value::as_u64).context("a failure has a time")?,
            })
        });
        let (done, longest_ms) = (of("done")?, of("longest_ms")?);
        Ok(Self { done, failures: failures.collect::<Result<_>>()?, longest_ms })
    }
}

impl Outcome {
    fn kinds(&self) -> [&Arrivals; 4] {
        [&self.near.requests, &self.near.connections, &self.far.requests, &self.far.connections]
    }

    fn failures(&self, wanted: impl Fn(&Failure) -> bool) -> f64 {
        self.kinds().into_iter().map(|kind| count(&kind.failures, &wanted)).sum()
    }

    fn held_lost(&self) -> f64 {
        self.near.held_lost + self.far.held_lost
    }

    fn longest_ms(&self) -> f64 {
        self.kinds().into_iter().map(|kind| kind.longest_ms).fold(0.0, f64::max)
    }

    /// Whether an agent that was killed may have accepted it: it had begun when the agent's process ended, and not
    /// longer before than anything takes.
    fn is_before_a_kill(&self, failure: &Failure) -> bool {
        const LONGEST_NS: u64 = 500_000_000;
        let killed = |(signal, end): &(u64, u64)| {
            (signal.saturating_sub(LONGEST_NS)..=*end).contains(&failure.begun_ns)
        };
        self.kills.iter().any(killed)
    }

    fn told(&self) -> String {
        let mut kinds = std::collections::BTreeMap::<&str, u64>::new();
        for failure in self.kinds().into_iter().flat_map(|kind| &kind.failures) {
            *kinds.entry(&failure.outcome).or_default() += 1;
        }
        let served: f64 = self.kinds().into_iter().map(|kind| kind.done).sum();
        format!(
            "{served} served, not served {kinds:?}, unpoliced {}\n  on one node {}\n  between nodes {}",
            self.unpoliced, self.near.text, self.far.text
        )
    }
}

fn count(failures: &[Failure], wanted: impl Fn(&Failure) -> bool) -> f64 {
    failures.iter().filter(|failure| wanted(failure)).fold(0.0, |sum, _| sum + 1.0)
}

fn number(value: &Value, at: &str) -> Result<f64> {
    value.pointer(at).and_then(Value::as_f64).with_context(|| format!("no {at} in {value}"))
}

/// Two nodes. Fields end in the order in which they stand.
struct Bed {
    /// Those that serve, as [`NODES`].
    agents: Vec<Agent>,
    /// Those that were replaced.
    old: Vec<Agent>,
    _holders: Vec<Process>,
    _servers: Vec<Process>,
    _controller: Controller,
    lab: Lab,
}

impl Bed {
    fn new(binaries: &Path) -> Result<Self> {
        let pods = [("a", "client"), ("a", "near"), ("b", "far")];
        let spec = LabSpec::new().node("a").node("b").for_bench().binaries(binaries.to_owned());
        let pod =
            |spec: LabSpec, (node, name)| spec.pod(PodSpec::new(node, "mesh", name).service_account(name));
        let lab = Lab::new(&pods.into_iter().fold(spec, pod))?;
        lab.config().namespace("mesh", &[("weft.dev/mesh", "enabled")])?;
        lab.config().write("strict.yaml", STRICT)?;
        let ports = [("tcp-small", SMALL, SMALL), ("http-web", HTTP, HTTP)];
        let mut servers = Vec::new();
        for (name, address) in [("near", "172.20.1.1"), ("far", "172.20.1.2")] {
            lab.config().service(&format!("mesh/{name}"), &[address], name, &ports)?;
            let services = [format!("small:{SMALL}"), format!("http:{HTTP}")];
            let pod = lab.pod(&format!("mesh/{name}"))?;
            servers.push(pod.serve(&services.each_ref().map(String::as_str))?);
        }
        let controller = lab.start_controller()?;
        let mut bed = Self {
            agents: Vec::new(),
            old: Vec::new(),
            _holders: NODES.into_iter().map(|node| hold(&lab, node)).collect::<Result<_>>()?,
            _servers: servers,
            _controller: controller,
            lab,
        };
        for node in NODES {
            let mut agent = bed.spawn(node)?;
            agent.wait_ready()?;
            bed.agents.push(agent);
        }
        for (agent, pods) in bed.agents.iter().zip([&["mesh/client", "mesh/near"][..], &["mesh/far"]]) {
            agent.wait_enrolled(pods)?;
        }
        bed.warm_up()?;
        Ok(bed)
    }

    fn spawn(&self, node: &str) -> Result<Agent> {
        let socket = holder_socket(&self.lab, node)?;
        let args = ["--holder-socket", &socket, "--drain-seconds", "120"].map(str::to_owned);
        self.lab.spawn_agent(node, &AgentOptions { args: args.into(), ..AgentOptions::default() })
    }

    fn target(&self, location: Where, port: u16) -> Result<String> {
        let name = match location {
            Where::SameNode => "near",
            Where::CrossNode => "far",
        };
        Ok(format!("{}:{port}", self.lab.pod(&format!("mesh/{name}"))?.ipv4()))
    }

    fn warm_up(&self) -> Result<()> {
        for location in [Where::SameNode, Where::CrossNode] {
            let target = self.target(location, SMALL)?;
            poll_until(PATIENCE, || {
                let report = self.lab.pod("mesh/client")?.peer(&["load", "first", &target])?;
                report.get("ms").with_context(|| format!("{target} is not reached: {report}")).map(drop)
            })?;
        }
        Ok(())
    }

    /// Something happens to the agents of both nodes, one after the other, while everybody is busy.
    fn under_load(
        &mut self,
        happens: impl Fn(&mut Self, usize) -> Result<Option<(u64, u64)>>,
    ) -> Result<Outcome> {
        let mut clients =
            vec![self.client(Where::SameNode)?, self.client(Where::CrossNode)?, self.stranger()?];
        for client in &mut clients {
            client.wait_for_line(PATIENCE, |line| line.contains("steady").then_some(()))?;
        }
        let mut kills = Vec::new();
        for index in 0..NODES.len() {
            std::thread::sleep(CALM);
            kills.extend(happens(self, index)?);
        }
        std::thread::sleep(CALM);
        let mut reports = Vec::new();
        for client in &mut clients {
            client.close_stdin();
        }
        for mut client in clients {
            client.wait(PATIENCE)?;
            let said = client.stdout();
            let last = said.lines().last().unwrap_or_default();
            reports.push(
                serde_json::from_str(last).with_context(|| client.report("does not tell what came of it"))?,
            );
        }
        for mut agent in std::mem::take(&mut self.old) {
            let status = agent.process_mut().wait(PATIENCE)?;
            anyhow::ensure!(status.success(), "{}", agent.process().report("did not end well"));
        }
        let [near, far, stranger] = reports.as_slice() else { anyhow::bail!("three clients report") };
        Ok(Outcome {
            near: Report::read(near)?,
            far: Report::read(far)?,
            unpoliced: number(stranger, "/connections/done")?,
            kills,
        })
    }

    fn client(&self, location: Where) -> Result<Process> {
        let (host, vip) = match location {
            Where::SameNode => ("near", "172.20.1.1"),
            Where::CrossNode => ("far", "172.20.1.2"),
        };
        let (http, small) = (format!("{vip}:{HTTP}"), self.target(location, SMALL)?);
        let args = ["steady", "--http", &http, "--host", host, "--requests", REQUESTS];
        let more = ["--conn", &small, "--connections", CONNECTIONS, "--hold", &small, "--held", HELD];
        self.lab.pod("mesh/client")?.spawn(&[&args[..], &more].concat())
    }

    fn stranger(&self) -> Result<Process> {
        let small = self.target(Where::SameNode, SMALL)?;
        self.lab.outside().spawn(&["steady", "--conn", &small, "--connections", STRANGER])
    }

    fn replace(&mut self, index: usize) -> Result<Option<(u64, u64)>> {
        let node = NODES.get(index).context("two nodes")?;
        let successor = self.spawn(node)?;
        let agent = self.agents.get_mut(index).context("each node has its agent")?;
        let before = format!("process {} ", agent.pid());
        self.old.push(std::mem::replace(agent, successor));
        poll_until(PATIENCE, || {
            let status = agent.status()?;
            let from = status.get("took_over_from").and_then(Value::as_str).unwrap_or_default();
            anyhow::ensure!(from.starts_with(&before), "{}", agent.process().report("has not taken over"));
            Ok(())
        })?;
        agent.wait_ready()?;
        Ok(None)
    }

    fn kill(&mut self, index: usize) -> Result<Option<(u64, u64)>> {
        let node = NODES.get(index).context("two nodes")?;
        let agent = self.agents.get_mut(index).context("each node has its agent")?;
        let signal = now_ns()?;
        agent.kill();
        let end = now_ns()?;
        let mut next = self.spawn(node)?;
        next.wait_ready()?;
        *self.agents.get_mut(index).context("each node has its agent")? = next;
        Ok(Some((signal, end)))
    }
}

fn holder_socket(lab: &Lab, node: &str) -> Result<String> {
    Ok(lab.node(node)?.dir().join("hold.sock").display().to_string())
}

fn hold(lab: &Lab, node: &str) -> Result<Process> {
    let socket = holder_socket(lab, node)?;
    let holder = Process::spawn(
        &lab.node(node)?.place(),
        &format!("hold-{node}"),
        &lab.weft(),
        &["hold", "--socket", &socket],
    )?;
    poll_until(PATIENCE, || {
        anyhow::ensure!(Path::new(&socket).exists(), "{}", holder.report("is not there"));
        Ok(())
    })?;
    Ok(holder)
}
