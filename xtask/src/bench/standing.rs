//! An agent that has a whole cluster in view and goes on: nothing changes, one endpoint does, or very many do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weft_lab::{Agent, AgentOptions, Lab, Watcher, cpu_seconds, ms_between, now_ns};

use super::Plan;
use super::bed::SMALL;
use super::report::{Collected, Contender, Family, percentile};

pub(super) const IDLE: &str = "scale.idle-cpu";
pub(super) const UPDATE: &str = "scale.endpoint-update";
pub(super) const CHURN: &str = "scale.churn-100";

/// Ten thousand policies allow others.
const ALLOW: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: allow-own, namespace: \
    mesh}\nspec: {rules: [{from: [{source: {namespaces: [mesh]}}]}]}\n";
const VIP: &str = "172.19.0.1";
/// Changes that are timed in each round.
const CHANGES: usize = 40;
/// How long an idle agent is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Pause between two of the hundred changes of a second.
const CHURN_EVERY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures in a lab with pods `mesh/client` and `mesh/server` of node a, whose directory has everything else.
pub(super) fn measure(plan: &Plan, lab: &Lab, collected: &mut Collected) -> Result<()> {
    let server = lab.pod("mesh/server")?;
    let _server = server.serve(&[&format!("small:{SMALL}")])?;
    lab.config().write("allow.yaml", ALLOW)?;
    lab.config().write("changing.yaml", &service("changing", VIP))?;
    let endpoint = server.ipv4().to_string();
    lab.config().write("endpoints.yaml", &endpoints("changing", Some(&endpoint)))?;
    let mut agent = lab.spawn_agent("a", &AgentOptions { embedded_ca: true, ..AgentOptions::default() })?;
    agent.wait_ready()?;
    agent.wait_enrolled(&["mesh/client", "mesh/server"])?;
    for round in 1..=plan.rounds {
        eprintln!("scale: standing: round {round} of {}", plan.rounds);
        let mut add = |row, value| collected.add(row, Family::V4, Contender::Weft, value);
        if plan.wants(IDLE) {
            add(IDLE, share_of_a_core(&agent, || std::thread::sleep(LOOK))?);
        }
        if plan.wants(UPDATE) {
            add(UPDATE, percentile(&updates(lab, &endpoint)?, 50));
        }
        if plan.wants(CHURN) {
            add(CHURN, percentile(&beside_churn(lab, || updates(lab, &endpoint))?, 99));
            // By itself: what is timed makes changes of its own, and a connection every few hundred microseconds.
            let look = || share_of_a_core(&agent, || std::thread::sleep(LOOK));
            collected.note(CHURN, format!("{:.1} % of a core", beside_churn(lab, look)? * 100.0));
        }
    }
    agent.stop(Duration::from_secs(30))?;
    lab.clean_up_node("a")
}

fn share_of_a_core(agent: &Agent, meanwhile: impl FnOnce()) -> Result<f64> {
    let (before, started) = (cpu_seconds(agent.pid())?, Instant::now());
    meanwhile();
    Ok((cpu_seconds(agent.pid())? - before) / started.elapsed().as_secs_f64())
}

/// From the rename of the file to the first connection with the new answer, in milliseconds: the Service's only
/// endpoint goes and comes.
fn updates(lab: &Lab, endpoint: &str) -> Result<Vec<f64>> {
    let mut watcher = Watcher::start(lab.pod("mesh/client")?, &format!("{VIP}:{SMALL}"))?;
    watcher.next(true, PATIENCE).context("the Service is not reached before the change")?;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let there = number % 2 == 1;
        lab.config().stage("endpoints.yaml", &endpoints("changing", there.then_some(endpoint)))?;
        let from = now_ns()?;
        lab.config().publish("endpoints.yaml")?;
        times.push(ms_between(from, watcher.next(there, PATIENCE)?));
    }
    Ok(times)
}

/// Changes the endpoints of another Service a hundred times a second while something is measured.
fn beside_churn<T>(lab: &Lab, measured: impl FnOnce() -> Result<T>) -> Result<T> {
    lab.config().write("churning.yaml", &service("churning", "172.19.0.2"))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let (began, mut number) = (Instant::now(), 0_u32);
            while !over.load(Ordering::Relaxed) {
                let address = format!("198.51.100.{}", number % 250 + 1);
                lab.config().stage("churn.yaml", &endpoints("churning", Some(&address)))?;
                lab.config().publish("churn.yaml")?;
                number += 1;
                // By the clock: a change that takes its time does not make them fewer.
                std::thread::sleep((CHURN_EVERY * number).saturating_sub(began.elapsed()));
            }
            anyhow::Ok(())
        });
        let result = measured();
        over.store(true, Ordering::Relaxed);
        churn.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the churn panicked")))?;
        result
    })
}

fn service(name: &str, vip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: mesh}}\nspec:\n  clusterIP: {vip}\n  \
         clusterIPs: [{vip}]\n  ports: [{{name: tcp, port: {SMALL}, targetPort: {SMALL}, protocol: TCP}}]\n"
    )
}

fn endpoints(service: &str, address: Option<&str>) -> String {
    let endpoints = address
        .map(|address| format!("{{addresses: [{address}], conditions: {{ready: true}}}}"))
        .unwrap_or_default();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-1\n  namespace: mesh\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nendpoints: [{endpoints}]\nports: \
         [{{name: tcp, port: {SMALL}, protocol: TCP}}]\n"
    )
}
