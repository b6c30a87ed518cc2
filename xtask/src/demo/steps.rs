//! The story: one function for each chapter.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use weft_lab::{Agent, Capture, Pod, Process, poll_until};

use super::report::{Report, Seen};
use super::requests;
use super::world::{
    BACKEND_VIPS, CART_CALLERS, CART_VIPS, ECHO, IN_MESH, NO_FRONTEND, PERMISSIVE, STRICT, WHO, World,
};

/// Longest wait for a change to take effect.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// What the clients send; must never be seen between the nodes.
const MARKER: &str = "a-secret-that-nobody-else-may-read";

/// Plays the whole story.
pub(crate) fn play(world: &mut World, report: &mut Report) {
    report.chapter("The agents and their pods");
    enrolment(world, report);
    report.chapter("From one node to another: mTLS");
    cross_node(world, report);
    report.chapter("On one node: directly, and still by policy");
    same_node(world, report);
    report.chapter("A policy comes and goes");
    policy(world, report);
    report.chapter("Plaintext from outside the mesh");
    peer_authentication(world, report);
    report.chapter("A namespace joins and leaves");
    namespace_label(world, report);
    requests::play(world, report);
    report.chapter("The agent dies and comes back");
    agent_gone(world, report);
}

fn enrolment(world: &World, report: &mut Report) {
    for (node, pods) in [
        ("a", ["shop/frontend", "shop/cart", "shop/worker"].as_slice()),
        ("b", &["shop/backend", "open/notice-board"]),
    ] {
        let name = format!("the pods of node {node} are enrolled");
        report.step(&name, &format!("{} are in the mesh", pods.join(", ")), || {
            world.agent(node)?.wait_enrolled(pods)?;
            Ok(Seen::new(true, format!("`weft status` says enrolled for {} pods", pods.len())))
        });
    }
    report.step("a namespace without the label", "legacy/batch is left alone", || {
        let state = world.agent("a")?.state_of("legacy/batch")?;
        Ok(Seen::new(state != "enrolled", format!("`weft status` says {state}")))
    });
}

/// What one client found out about one connection to a `who` server.
struct Visit {
    outcome: String,
    /// The client's own address and port.
    local: String,
    /// The client's address and port as the application sees them; empty when it did not answer.
    seen: String,
}

impl Visit {
    fn answered(&self) -> bool {
        !self.seen.is_empty()
    }

    /// The application sees the client's own address.
    fn address_kept(&self) -> bool {
        let ip = |address: &str| address.rsplit_once(':').map(|(ip, _)| ip.to_owned());
        self.answered() && ip(&self.local) == ip(&self.seen)
    }

    /// The application sees the client's own port too: there is one TCP connection and nothing in between.
    fn is_direct(&self) -> bool {
        self.answered() && self.local == self.seen
    }

    fn describe(&self) -> String {
        if self.answered() {
            format!("answered; the client is {}, the application sees {}", self.local, self.seen)
        } else {
            format!("no answer ({})", self.outcome)
        }
    }
}

fn visit(client: &Pod, address: &str) -> Result<Visit> {
    let args = ["connect", address, "--send", MARKER, "--half-close", "--timeout-ms", "2000"];
    let result = client.peer(&args)?;
    let text =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let received: Value = serde_json::from_str(&text(&result, "received")).unwrap_or_default();
    Ok(Visit {
        outcome: text(&result, "outcome"),
        local: text(&result, "local"),
        seen: text(&received, "peer"),
    })
}

/// Repeats a visit until it is as wanted, because a change takes its time to arrive.
fn visit_until(client: &Pod, address: &str, wanted: impl Fn(&Visit) -> bool) -> Result<Seen> {
    let started = Instant::now();
    poll_until(PATIENCE, || {
        let visit = visit(client, address)?;
        if wanted(&visit) {
            let ms = started.elapsed().as_millis();
            return Ok(Seen::new(true, format!("{} ({ms} ms after the change)", visit.describe())));
        }
        Err(anyhow!("{}", visit.describe()))
    })
}

fn addresses(pod: &Pod, port: u16) -> [String; 2] {
    [format!("{}:{port}", pod.ipv4()), format!("[{}]:{port}", pod.ipv6())]
}

fn cross_node(world: &World, report: &mut Report) {
    let capture = world.lab.node("a").and_then(|node| Capture::start(&node.place(), "to-1"));
    let pod_addresses = world.pod("shop/backend").map(|pod| addresses(pod, WHO)).unwrap_or_default();
    let by_service = BACKEND_VIPS.map(|vip| format!("{vip}:90"));
    for (how, targets) in [("pod IP", pod_addresses), ("Service VIP", by_service)] {
        for target in targets {
            let name = format!("shop/frontend calls {how} {target}");
            report.step(&name, "answered, and the server sees the client's own address", || {
                let visit = visit(world.pod("shop/frontend")?, &target)?;
                Ok(Seen::new(visit.address_kept(), visit.describe()))
            });
        }
    }
    report.step(
        "the packets between the nodes",
        "TLS on port 15008 and nothing else; the secret is not there",
        || look_at_packets(capture?),
    );
    let principals = [
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/frontend"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/backend"),
    ];
    report.step("metrics of the server's node", "both SPIFFE identities, mutual_tls, 4 connections", || {
        let labels =
            [&principals[..], &[("reporter", "destination"), ("connection_security_policy", "mutual_tls")]]
                .concat();
        let opened = world.agent("b")?.wait_for_metric("istio_tcp_connections_opened_total", &labels, 4.0)?;
        Ok(Seen::new(true, format!("istio_tcp_connections_opened_total{labels:?} is {opened}")))
    });
    report.step("access log of the server's node", "both SPIFFE identities in one line", || {
        let line = log_line(world.agent("b")?, |line| principals.iter().all(|(_, id)| line.contains(id)))?;
        Ok(Seen::new(true, line))
    });
}

fn look_at_packets(capture: Capture) -> Result<Seen> {
    let captured = capture.stop()?;
    let proof = captured.tls_on_port(15008);
    let plain = captured.bytes_on_port(WHO) + captured.bytes_on_port(90);
    let ok = proof.data_records > 0 && proof.other_streams == 0 && plain == 0 && !captured.contains(MARKER);
    let found = if captured.contains(MARKER) { "the secret WAS THERE" } else { "the secret is in no packet" };
    Ok(Seen::new(
        ok,
        format!(
            "{} packets; on port 15008 {} TLS streams with {} records of data and {} streams of something else; \
             {plain} bytes on the application's ports; {found}",
            captured.packets.len(),
            proof.tls_streams,
            proof.data_records,
            proof.other_streams
        ),
    ))
}

/// Waits for a line of the agent's output.
pub(crate) fn log_line(agent: &Agent, wanted: impl Fn(&str) -> bool) -> Result<String> {
    poll_until(PATIENCE, || {
        let text = agent.process().stdout();
        text.lines().find(|line| wanted(line)).map(str::to_owned).context("there is no such line")
    })
}

fn same_node(world: &World, report: &mut Report) {
    let pod = world.pod("shop/cart").map(|pod| addresses(pod, WHO)).unwrap_or_default();
    for target in pod.into_iter().chain(CART_VIPS.map(|vip| format!("{vip}:90"))) {
        report.step(
            &format!("shop/frontend calls {target}"),
            "one TCP connection, no proxy in between",
            || {
                let seen = visit_until(world.pod("shop/frontend")?, &target, Visit::is_direct);
                seen.context("the application must see the client's own port")
            },
        );
    }
    report.step(
        "the packets on the pod's link",
        "the application's own bytes, because no proxy is in between",
        || {
            let capture = Capture::start(&world.lab.node("a")?.place(), world.pod("shop/cart")?.link())?;
            let target = format!("{}:{WHO}", world.pod("shop/cart")?.ipv4());
            visit(world.pod("shop/frontend")?, &target)?;
            poll_until(PATIENCE, || {
                if capture.so_far()?.contains(MARKER) { Ok(()) } else { bail!("no packet has them") }
            })?;
            capture.stop()?;
            Ok(Seen::new(
                true,
                "they are there (and so the search for the secret between the nodes can find it)",
            ))
        },
    );
    report.step("policy cart-callers: ALLOW frontend only", "shop/worker is refused", || {
        world.lab.config().write("cart-callers.yaml", CART_CALLERS)?;
        visit_until(world.pod("shop/worker")?, &format!("{}:90", CART_VIPS[0]), |visit| !visit.answered())
    });
    report.step("the frontend under cart-callers", "still allowed, still direct", || {
        visit_until(world.pod("shop/frontend")?, &format!("{}:90", CART_VIPS[0]), Visit::is_direct)
    });
    report.step("metrics of direct connections", "both identities, and the bytes that flowed", || {
        let labels = [
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/frontend"),
            ("destination_principal", "spiffe://cluster.local/ns/shop/sa/cart"),
        ];
        let agent = world.agent("a")?;
        let opened = agent.wait_for_metric("istio_tcp_connections_opened_total", &labels, 4.0)?;
        let bytes = agent.wait_for_metric("istio_tcp_received_bytes_total", &labels, 1.0)?;
        Ok(Seen::new(true, format!("{opened} connections opened, {bytes} bytes received")))
    });
}

/// A connection to an echo server that speaks all the time.
fn hold_open(client: &Pod, address: &str) -> Result<Process> {
    let mut held = client.spawn(&["connect", address, "--hold", "--timeout-ms", "5000"])?;
    held.wait_for_line(PATIENCE, |line| line.contains("established").then_some(()))?;
    Ok(held)
}

fn policy(world: &World, report: &mut Report) {
    let held = world.pod("shop/frontend").and_then(|frontend| {
        let far = hold_open(frontend, &format!("{}:70", BACKEND_VIPS[0]))?;
        let near = hold_open(frontend, &format!("{}:70", CART_VIPS[0]))?;
        Ok([("to the other node", far), ("on the same node, direct", near)])
    });
    report.step("two connections of the frontend are open", "established", || match &held {
        Ok(_) => Ok(Seen::new(true, "both speak")),
        Err(e) => Err(anyhow!("{e:#}")),
    });
    let dropped_in = Instant::now();
    report.step("policy no-frontend (DENY) is dropped in", "the next connection is refused", || {
        world.lab.config().write("no-frontend.yaml", NO_FRONTEND)?;
        visit_until(world.pod("shop/frontend")?, &format!("{}:90", BACKEND_VIPS[0]), |visit| {
            !visit.answered()
        })
    });
    for (which, mut process) in held.into_iter().flatten() {
        report.step(&format!("the open connection {which}"), "is cut", || {
            process.wait_for_line(PATIENCE, |line| line.contains("ended").then_some(()))?;
            Ok(Seen::new(true, format!("ended within {} ms", dropped_in.elapsed().as_millis())))
        });
    }
    report.step("counter of refusals", "names the policy", || {
        let metrics = poll_until(PATIENCE, || {
            let page = world.agent("b")?.metrics()?;
            let names = |value: &&weft_lab::Sample| {
                value.name == "weft_refused_total"
                    && value.labels.values().any(|label| label.contains("no-frontend"))
            };
            page.samples().iter().find(names).cloned().context("no counter of refusals names no-frontend")
        })?;
        Ok(Seen::new(true, format!("{}{:?} is {}", metrics.name, metrics.labels, metrics.value)))
    });
    report.step("access log of the refusal", "names the policy", || {
        Ok(Seen::new(true, log_line(world.agent("b")?, |line| line.contains("no-frontend"))?))
    });
    report.step("policy no-frontend is removed", "allowed again", || {
        world.lab.config().remove("no-frontend.yaml")?;
        visit_until(world.pod("shop/frontend")?, &format!("{}:90", BACKEND_VIPS[0]), Visit::answered)
    });
}

fn peer_authentication(world: &World, report: &mut Report) {
    let backend = world.pod("shop/backend").map(|pod| addresses(pod, WHO)).unwrap_or_default();
    let [backend, _] = &backend;
    report.step("PeerAuthentication PERMISSIVE", "plaintext from outside is let in", || {
        world.lab.config().write("peer-authentication.yaml", PERMISSIVE)?;
        visit_until(world.lab.outside(), backend, Visit::address_kept)
    });
    report.step("PeerAuthentication STRICT", "plaintext from outside is refused", || {
        world.lab.config().write("peer-authentication.yaml", STRICT)?;
        visit_until(world.lab.outside(), backend, |visit| !visit.answered())
    });
    report.step("the mesh under STRICT", "shop/frontend is answered as before", || {
        visit_until(world.pod("shop/frontend")?, backend, Visit::address_kept)
    });
}

fn namespace_label(world: &World, report: &mut Report) {
    let batch = "legacy/batch";
    let backend = world.pod("shop/backend").map(|pod| addresses(pod, WHO)).unwrap_or_default();
    let [backend, _] = &backend;
    report.step("legacy/batch calls shop/backend (STRICT)", "refused: it is not in the mesh", || {
        let visit = visit(world.pod(batch)?, backend)?;
        Ok(Seen::new(!visit.answered(), visit.describe()))
    });
    let label = format!("{}={}", IN_MESH.0, IN_MESH.1);
    report.step(
        &format!("namespace legacy gets {label}"),
        "the running pod is enrolled and now has an identity",
        || {
            world.lab.config().namespace("legacy", &[IN_MESH])?;
            world.agent("a")?.wait_enrolled(&[batch])?;
            visit_until(world.pod(batch)?, backend, Visit::address_kept)
        },
    );
    report.step("the label is taken away", "the pod is out of the mesh, and refused again", || {
        world.lab.config().namespace("legacy", &[])?;
        world.agent("a")?.wait_state(batch, |state| state != "enrolled")?;
        visit_until(world.pod(batch)?, backend, |visit| !visit.answered())
    });
}

fn agent_gone(world: &mut World, report: &mut Report) {
    let open = world.pod("open/notice-board").map(|pod| addresses(pod, WHO)).unwrap_or_default();
    let backend = world.pod("shop/backend").map(|pod| addresses(pod, WHO)).unwrap_or_default();
    let ([open, _], [backend, _]) = (&open, &backend);
    let cart =
        format!("{}:{ECHO}", world.pod("shop/cart").map(|pod| pod.ipv4().to_string()).unwrap_or_default());
    let held = world.pod("shop/frontend").and_then(|frontend| hold_open(frontend, &cart));
    for agent in world.agents.values_mut() {
        agent.kill();
    }
    report.step("both agents are killed: STRICT pod", "nothing unauthorised gets in", || {
        let visit = visit(world.lab.outside(), backend)?;
        Ok(Seen::new(!visit.answered(), visit.describe()))
    });
    report.step("a pod without STRICT and without policy", "still reachable from outside", || {
        let visit = visit(world.lab.outside(), open)?;
        Ok(Seen::new(visit.answered(), visit.describe()))
    });
    report.step("the frontend to the other node", "refused: its connection would leave without mTLS", || {
        let visit = visit(world.pod("shop/frontend")?, backend)?;
        Ok(Seen::new(!visit.answered(), visit.describe()))
    });
    report.step("an established connection on the same node", "goes on: the kernel carries it", || {
        let mut held = held?;
        Ok(Seen::new(held.is_running(), if held.is_running() { "it still speaks" } else { "it was cut" }))
    });
    report.step("a new connection on the same node", "allowed by the kernel for 30 s", || {
        let visit = visit(world.pod("shop/frontend")?, &format!("{}:90", CART_VIPS[0]))?;
        Ok(Seen::new(visit.is_direct(), visit.describe()))
    });
    for (node, pods) in
        [("a", ["shop/frontend", "shop/cart", "shop/worker"].as_slice()), ("b", &["shop/backend"])]
    {
        report.step(&format!("agent {node} is started again"), "it takes its pods over", || {
            let started = Instant::now();
            let agent = world.lab.start_agent(node)?;
            agent.wait_enrolled(pods)?;
            world.agents.insert(node, agent);
            Ok(Seen::new(true, format!("its pods are enrolled after {} ms", started.elapsed().as_millis())))
        });
    }
    report.step("the frontend to the other node", "answered again, by mTLS", || {
        visit_until(world.pod("shop/frontend")?, backend, Visit::address_kept)
    });
}
