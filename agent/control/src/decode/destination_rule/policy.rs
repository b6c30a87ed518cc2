//! `trafficPolicy` (D-5, D-19).

use weft_core::resource::destination_rule::{PolicyBlocks, RetryBudget, TrafficPolicy};
use weft_core::resource::virtual_service::PerMillion;

use super::super::networking::{Reader, numbers, shown};
use super::super::report::Path;
use super::super::validated::names;
use super::wire::{
    LoadBalancerWire, OutlierWire, PolicyWire, PoolWire, PortPolicyWire, ProxyProtocolWire, RetryBudgetWire,
    TlsWire, TunnelWire,
};
use super::{load_balancer, pool, tls};
use crate::codes;

/// Most `portLevelSettings`.
const MAX_PORTS: usize = 4096;

/// Retries by default: 20 % of the outstanding requests, and 3 in any case (D-19).
const DEFAULT_BUDGET: PerMillion = PerMillion(200_000);
const DEFAULT_RETRIES: u32 = 3;

/// The blocks that stand in `trafficPolicy` and in `portLevelSettings` alike.
struct Blocks<'w, 'a> {
    load_balancer: Option<&'w LoadBalancerWire<'a>>,
    pool: Option<&'w PoolWire<'a>>,
    outlier: Option<&'w OutlierWire<'a>>,
    tls: Option<&'w TlsWire<'a>>,
}

impl Blocks<'_, '_> {
    fn is_empty(&self) -> bool {
        self.load_balancer.is_none() && self.pool.is_none() && self.outlier.is_none() && self.tls.is_none()
    }

    fn read(&self, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> PolicyBlocks {
        let has_outlier = self.outlier.is_some();
        PolicyBlocks {
            load_balancer: self.load_balancer.map(|wire| {
                load_balancer::load_balancer(wire, has_outlier, &at.field("loadBalancer"), reader)
            }),
            connection_pool: self.pool.map(|wire| pool::pool(wire, &at.field("connectionPool"), reader)),
            outlier_detection: self
                .outlier
                .map(|wire| pool::outlier(wire, &at.field("outlierDetection"), reader)),
            tls: self.tls.map(|wire| tls::tls(wire, &at.field("tls"), reader)),
            // Of the whole host only.
            retry_budget: None,
        }
    }
}

pub(in super::super) fn policy(
    wire: &PolicyWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> TrafficPolicy {
    let blocks = Blocks {
        load_balancer: wire.load_balancer.as_ref(),
        pool: wire.connection_pool.as_ref(),
        outlier: wire.outlier_detection.as_ref(),
        tls: wire.tls.as_ref(),
    };
    let others = wire.tunnel.is_some() || wire.proxy_protocol.is_some() || wire.retry_budget.is_some();
    if blocks.is_empty() && wire.port_level_settings.items.is_empty() && !others {
        let message = "The traffic policy is empty.";
        reader.report.reject(at, message, "Write at least one block, or remove the policy.");
    }
    if wire.tunnel.is_some() && wire.proxy_protocol.is_some() {
        let message = "`tunnel` and `proxyProtocol` exclude each other (D-19).";
        reader.report.reject(at.field("proxyProtocol"), message, "Keep one of them.");
    }
    check_tunnel(wire.tunnel.as_ref(), &at.field("tunnel"), reader);
    check_proxy_protocol(wire.proxy_protocol.as_ref(), &at.field("proxyProtocol"), reader);
    let budget = wire.retry_budget.as_ref();
    let retry_budget = budget.map(|wire| retry_budget(wire, &at.field("retryBudget"), reader));
    TrafficPolicy {
        blocks: PolicyBlocks { retry_budget, ..blocks.read(at, reader) },
        ports: ports(&wire.port_level_settings.items, &at.field("portLevelSettings"), reader),
    }
}

/// `portLevelSettings` (D-5).
fn ports(
    wires: &[PortPolicyWire<'_>],
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(u16, PolicyBlocks)> {
    if wires.len() > MAX_PORTS {
        reader.report.reject(at, format!("There are more than {MAX_PORTS} ports."), "Remove some.");
    }
    let mut ports = Vec::with_capacity(wires.len());
    for (index, wire) in wires.iter().enumerate() {
        let at = at.index(index);
        let blocks = Blocks {
            load_balancer: wire.load_balancer.as_ref(),
            pool: wire.connection_pool.as_ref(),
            outlier: wire.outlier_detection.as_ref(),
            tls: wire.tls.as_ref(),
        };
        if blocks.is_empty() {
            let message = "The settings of the port are empty.";
            reader.report.reject(at, message, "Write at least one block, or remove the entry.");
        }
        let blocks = blocks.read(&at, reader);
        ports.extend(port(wire, &at.field("port"), reader).map(|port| (port, blocks)));
    }
    ports
}

/// Istio asks for a port, but not whether there can be such a port.
fn port(wire: &PortPolicyWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<u16> {
    let Some(port) = &wire.port else {
        let message = "The settings name no port.";
        reader.report.reject(at, message, "Write `port.number`.");
        return None;
    };
    let number = port.number.get();
    let valid = u16::try_from(number).ok().filter(|port| *port != 0);
    if valid.is_none() {
        let message = format!("{number} is not a port, so the settings have no effect.");
        reader.report.add(codes::NO_EFFECT, at.field("number"), message, "Write a number from 1 to 65535.");
    }
    valid
}

fn check_tunnel(wire: Option<&TunnelWire<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let Some(wire) = wire else { return };
    if !matches!(wire.protocol.as_str(), "" | "CONNECT" | "POST") {
        let message = format!("{} is not a protocol of a tunnel.", shown(wire.protocol.as_str()));
        reader.report.reject(at.field("protocol"), message, "Write CONNECT or POST.");
    }
    let host = wire.target_host.as_str();
    if let Err(why) = names::host(host)
        && !names::is_address(host)
    {
        reader.bad_host(host, &why, &at.field("targetHost"));
    }
    reader.port(wire.target_port.get(), &at.field("targetPort"));
    reader.not_applied(at, "connections go without a tunnel (D-19)");
}

fn check_proxy_protocol(wire: Option<&ProxyProtocolWire<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let Some(wire) = wire else { return };
    if let Some(version) = &wire.version
        && !matches!(version.as_str(), "V1" | "V2")
    {
        let message = format!("{} is not a version of the PROXY protocol.", shown(version.as_str()));
        reader.report.reject(at.field("version"), message, "Write V1 or V2.");
    }
    reader.not_applied(at, "connections go without a PROXY header (D-19)");
}

fn retry_budget(wire: &RetryBudgetWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> RetryBudget {
    if let Some(percent) = wire.percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
        let message = format!("{percent} is not a percentage.");
        reader.report.reject(at.field("percent"), message, "Write a number from 0 to 100.");
    }
    if wire.budget_interval.is_some() {
        let at = at.field("budgetInterval");
        reader.any_duration(wire.budget_interval.as_ref(), &at);
        reader.not_applied(at, "the budget is a share of the requests that are outstanding now (D-19)");
    }
    let minimum = wire.min_retry_concurrency.0;
    RetryBudget {
        share: wire.percent.map_or(DEFAULT_BUDGET, numbers::share),
        minimum: minimum.map_or(DEFAULT_RETRIES, |number| u32::try_from(number).unwrap_or(u32::MAX)),
    }
}
