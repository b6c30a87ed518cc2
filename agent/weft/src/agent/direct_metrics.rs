//! Direct flows in metrics and access log: the kernel counts them by pods, Istio's names are by workloads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use weft_core::Snapshot;
use weft_core::decide::protocol::inbound_cluster;
use weft_core::resource::NamespacedName;
use weft_core::snapshot::{CompiledService, WorkloadLabels};
use weft_kernel::{DirectFlowEvent, DirectFlowTotals, FlowEventKind, FlowRecord};
use weft_telemetry::{
    AccessLog, ConnectionLog, Direction, Metrics, Reporter, SecurityPolicy, TcpDelta, TcpLabels,
};

type FlowKey = (NamespacedName, NamespacedName, SocketAddr);

/// Turns the kernel's absolute counts into increases of the series.
#[derive(Debug, Default)]
pub(crate) struct DirectAccounting {
    last: HashMap<FlowKey, TcpDelta>,
}

impl DirectAccounting {
    /// Counts what is new since the last call.
    pub(crate) fn update(&mut self, totals: &[DirectFlowTotals], snapshot: &Snapshot, metrics: &Metrics) {
        let mut seen = HashMap::with_capacity(totals.len());
        for total in totals {
            let key = (total.source.clone(), total.destination.clone(), total.dialled);
            let now = absolute(total);
            let before = self.last.get(&key).copied().unwrap_or_default();
            count(total, increase(before, now), snapshot, metrics);
            seen.insert(key, now);
        }
        // A pod that is gone takes its counts along; one of the same name begins at zero.
        self.last = seen;
    }
}

/// The kernel counts from the client's view, metrics from the server's (M-2).
fn absolute(total: &DirectFlowTotals) -> TcpDelta {
    TcpDelta {
        opened: total.opened,
        closed: total.closed,
        failed: total.failed,
        sent: total.received_bytes,
        received: total.sent_bytes,
    }
}

/// A count that went down began again.
fn increase(before: TcpDelta, now: TcpDelta) -> TcpDelta {
    let since = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
    TcpDelta {
        opened: since(before.opened, now.opened),
        closed: since(before.closed, now.closed),
        failed: since(before.failed, now.failed),
        sent: since(before.sent, now.sent),
        received: since(before.received, now.received),
    }
}

fn count(total: &DirectFlowTotals, delta: TcpDelta, snapshot: &Snapshot, metrics: &Metrics) {
    if delta == TcpDelta::default() {
        return;
    }
    let TcpDelta { failed, .. } = delta;
    // M-7: the agent sees both ends and speaks for both.
    for reporter in [Reporter::Source, Reporter::Destination] {
        let labels = labels(total, reporter, snapshot);
        metrics.tcp(&labels).add(TcpDelta { failed: 0, ..delta });
        if failed > 0 {
            let failures = TcpLabels { flags: "UF", ..labels };
            metrics.tcp(&failures).add(TcpDelta { failed, ..TcpDelta::default() });
        }
    }
}

fn labels(total: &DirectFlowTotals, reporter: Reporter, snapshot: &Snapshot) -> TcpLabels {
    let workload = |key| snapshot.workload(key).map(|workload| workload.labels.clone());
    let (source, destination) = (workload(&total.source), workload(&total.destination));
    let principal =
        |labels: &Option<Arc<WorkloadLabels>>| labels.as_ref().map(|labels| labels.principal.clone());
    let unknown = || Arc::<str>::from("unknown");
    let service = service(snapshot, total.dialled);
    TcpLabels {
        reporter,
        source_principal: principal(&source),
        source,
        destination_principal: principal(&destination),
        destination,
        service: service.map_or_else(unknown, |service| service.host.clone()),
        service_name: service.map_or_else(unknown, |service| service.key.name.clone()),
        service_namespace: service.map_or_else(unknown, |service| service.key.namespace.clone()),
        flags: "-",
        security: match reporter {
            Reporter::Source => SecurityPolicy::Unknown,
            // Ruling 4: no TLS carried the bytes; the principals are the kernel's word.
            Reporter::Destination => SecurityPolicy::None,
        },
    }
}

fn service(snapshot: &Snapshot, dialled: SocketAddr) -> Option<&Arc<CompiledService>> {
    snapshot.addressed(&dialled, None).map(|(service, _)| service)
}

/// Flows that are being cut, with the reason: their last event is logged with it. Shared by the reconciler,
/// which cuts, and the thread that writes the log; both hold the lock for one operation on the map.
#[derive(Debug, Default)]
pub(crate) struct Cuts(Mutex<HashMap<(SocketAddr, SocketAddr), Ending>>);

impl Cuts {
    /// Before the cut: its event may come at once.
    pub(crate) fn announce(&self, flow: &FlowRecord, ending: Ending) {
        self.lock().insert((flow.source_addr, flow.destination_addr), ending);
    }

    /// The reason, once.
    pub(crate) fn take(&self, flow: &FlowRecord) -> Option<Ending> {
        self.lock().remove(&(flow.source_addr, flow.destination_addr))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(SocketAddr, SocketAddr), Ending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a flow of which a line is written ended.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Envoy's response flag.
    pub(crate) flags: &'static str,
    /// For people.
    pub(crate) details: Option<String>,
    /// The policy that decided.
    pub(crate) policy: Option<String>,
}

/// Writes the lines of an event: both ends, as for proxied connections of one node.
pub(crate) fn log_event(event: &DirectFlowEvent, snapshot: &Snapshot, cuts: &Cuts, log: &AccessLog) {
    let ending = match event.kind {
        FlowEventKind::Opened => return,
        FlowEventKind::Closed => {
            cuts.take(&event.flow).unwrap_or(Ending { flags: "-", details: None, policy: None })
        }
        FlowEventKind::Failed => {
            Ending { flags: "UF", details: Some("the handshake did not complete".into()), policy: None }
        }
    };
    let duration = Duration::from_nanos(event.at_ns.saturating_sub(event.opened_ns));
    let bytes = (event.sent_bytes, event.received_bytes);
    for direction in [Direction::Outbound, Direction::Inbound] {
        log.write(line(&event.flow, direction, (duration, bytes), &ending, snapshot));
    }
}

/// One line. `bytes` are those from the client and those to it.
pub(crate) fn line(
    flow: &FlowRecord,
    direction: Direction,
    (duration, bytes): (Duration, (u64, u64)),
    ending: &Ending,
    snapshot: &Snapshot,
) -> ConnectionLog {
    let addressed = flow.vip.unwrap_or(flow.destination_addr);
    let principal = |key| snapshot.workload(key).map(|workload| workload.labels.principal.clone());
    let upstream_cluster = match (direction, service(snapshot, addressed)) {
        (Direction::Outbound, Some(service)) => format!("outbound|{}||{}", addressed.port(), service.host),
        (Direction::Outbound, None) => "PassthroughCluster".into(),
        (Direction::Inbound, _) => {
            let local = snapshot.local_workload(&flow.destination).map(|local| &**local);
            inbound_cluster(local, flow.destination_addr.port())
        }
    };
    ConnectionLog {
        start: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
        duration,
        direction,
        flags: ending.flags,
        details: ending.details.clone(),
        bytes_received: bytes.0,
        bytes_sent: bytes.1,
        downstream_remote: flow.source_addr,
        downstream_local: addressed,
        upstream_remote: Some(flow.destination_addr),
        upstream_local: Some(flow.source_addr),
        upstream_cluster,
        path: "direct",
        source_principal: principal(&flow.source),
        destination_principal: principal(&flow.destination),
        source_pod: Some(flow.source.to_string()),
        destination_pod: Some(flow.destination.to_string()),
        policy: ending.policy.clone(),
        audit: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const MESH: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {weft.dev/mesh: enabled, app: cart}}
spec: {nodeName: a, serviceAccountName: cart}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stock-1, namespace: shop, labels: {weft.dev/mesh: enabled, app: stock}}
spec: {nodeName: a, serviceAccountName: stock}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], selector: {app: stock}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
";

    fn snapshot() -> Arc<Snapshot> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
        config::load(&[dir.path().to_owned()]).unwrap().snapshot
    }

    fn totals(dialled: &str, opened: u64) -> DirectFlowTotals {
        DirectFlowTotals {
            source: NamespacedName::new("shop", "cart-1"),
            destination: NamespacedName::new("shop", "stock-1"),
            dialled: dialled.parse().unwrap(),
            opened,
            closed: opened.saturating_sub(1),
            failed: 1,
            sent_bytes: opened * 100,
            received_bytes: opened * 1000,
        }
    }

    fn value<'t>(text: &'t str, family: &str, labels: &[&str]) -> Option<&'t str> {
        let mut lines = text.lines().filter(|line| line.starts_with(family));
        lines.find(|line| labels.iter().all(|label| line.contains(label)))?.rsplit(' ').next()
    }

    #[test]
    fn both_reporters_count_once_and_name_the_service_that_was_dialled() {
        let (snapshot, metrics) = (snapshot(), Metrics::new());
        let mut accounting = DirectAccounting::default();
        accounting.update(&[totals("10.96.0.2:80", 2)], &snapshot, &metrics);
        accounting.update(&[totals("10.96.0.2:80", 5)], &snapshot, &metrics);
        let text = metrics.render();
        for (reporter, security) in [("source", "unknown"), ("destination", "none")] {
            let labels = [
                format!("reporter=\"{reporter}\""),
                format!("connection_security_policy=\"{security}\""),
                "destination_service=\"stock.shop.svc.cluster.local\"".into(),
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"".into(),
                "destination_principal=\"spiffe://cluster.local/ns/shop/sa/stock\"".into(),
            ];
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            assert_eq!(value(&text, "istio_tcp_connections_opened_total", &labels), Some("5"), "{text}");
            assert_eq!(value(&text, "istio_tcp_connections_closed_total", &labels), Some("4"));
            assert_eq!(value(&text, "istio_tcp_received_bytes_total", &labels), Some("500"));
            assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &labels), Some("5000"));
        }
        assert_eq!(value(&text, "istio_tcp_connections_failed_total", &["response_flags=\"UF\""]), Some("1"));
    }

    #[test]
    fn a_pod_of_the_same_name_that_begins_at_zero_adds_up() {
        let (snapshot, metrics) = (snapshot(), Metrics::new());
        let mut accounting = DirectAccounting::default();
        accounting.update(&[totals("10.0.0.2:8080", 7)], &snapshot, &metrics);
        accounting.update(&[totals("10.0.0.2:8080", 3)], &snapshot, &metrics);
        let text = metrics.render();
        let labels = ["destination_service=\"unknown\"", "reporter=\"source\""];
        assert_eq!(value(&text, "istio_tcp_connections_opened_total", &labels), Some("10"));
    }

    fn flow() -> FlowRecord {
        FlowRecord {
            socket_cookie: 0,
            source: NamespacedName::new("shop", "cart-1"),
            destination: NamespacedName::new("shop", "stock-1"),
            source_addr: "10.0.0.1:40000".parse().unwrap(),
            destination_addr: "10.0.0.2:8080".parse().unwrap(),
            vip: Some("10.96.0.2:80".parse().unwrap()),
        }
    }

    #[test]
    fn lines_of_direct_flows_say_so() {
        let ending = Ending { flags: "-", details: None, policy: None };
        let facts = (Duration::from_secs(1), (10, 20));
        let outbound = line(&flow(), Direction::Outbound, facts, &ending, &snapshot());
        assert_eq!(outbound.upstream_cluster, "outbound|80||stock.shop.svc.cluster.local");
        assert_eq!((outbound.path, outbound.bytes_received, outbound.bytes_sent), ("direct", 10, 20));
        let inbound = line(&flow(), Direction::Inbound, facts, &ending, &snapshot());
        assert_eq!(inbound.upstream_cluster, "inbound|8080||");
        let nobodys = FlowRecord { destination_addr: "10.0.0.2:9999".parse().unwrap(), vip: None, ..flow() };
        let passed = line(&nobodys, Direction::Inbound, facts, &ending, &snapshot());
        assert_eq!(passed.upstream_cluster, "InboundPassthroughCluster", "as of a proxied one");
        let gone = FlowRecord { destination: NamespacedName::new("shop", "gone"), ..nobodys };
        assert_eq!(
            line(&gone, Direction::Inbound, facts, &ending, &snapshot()).upstream_cluster,
            "inbound|9999||"
        );
        assert_eq!(inbound.source_principal.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/cart"));
    }

    #[test]
    fn a_flow_that_was_cut_ends_with_the_reason_once() {
        let cuts = Cuts::default();
        cuts.announce(
            &flow(),
            Ending { flags: "DENY", details: None, policy: Some("ns[shop]-policy[x]".into()) },
        );
        assert_eq!(cuts.take(&flow()).map(|ending| ending.flags), Some("DENY"));
        assert!(cuts.take(&flow()).is_none());
    }
}
