//! `connectionPool` and `outlierDetection` (D-12, D-13, D-15, D-17).

use std::time::Duration;

use weft_core::resource::destination_rule::{ConnectionPool, OutlierDetection, TcpKeepalive};

use super::super::fields::Text;
use super::super::networking::numbers::Signed;
use super::super::networking::{Reader, shown, zero_or_more};
use super::super::report::Path;
use super::wire::{Http2KeepAliveWire, HttpWire, KeepAliveWire, OutlierWire, PoolWire, TcpWire};
use crate::codes;

/// What counts when `outlierDetection` does not say it (D-15).
const DEFAULT_CONSECUTIVE: u32 = 5;
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_BASE_EJECTION_TIME: Duration = Duration::from_secs(30);
const DEFAULT_MAX_EJECTION_PERCENT: u32 = 10;

pub(super) fn pool(wire: &PoolWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> ConnectionPool {
    if wire.tcp.is_none() && wire.http.is_none() {
        let message = "The connection pool is empty.";
        reader.report.reject(at, message, "Write `tcp` or `http`, or remove the block.");
    }
    let mut pool = ConnectionPool::default();
    if let Some(tcp) = &wire.tcp {
        self::tcp(tcp, &mut pool, &at.field("tcp"), reader);
    }
    if let Some(http) = &wire.http {
        self::http(http, &mut pool, &at.field("http"), reader);
    }
    pool
}

fn tcp(wire: &TcpWire<'_>, pool: &mut ConnectionPool, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    pool.max_connections = limit(wire.max_connections, &at.field("maxConnections"), reader);
    pool.connect_timeout = reader.duration(wire.connect_timeout.as_ref(), &at.field("connectTimeout"));
    pool.max_connection_duration =
        reader.duration(wire.max_connection_duration.as_ref(), &at.field("maxConnectionDuration"));
    pool.tcp_idle_timeout = idle_timeout(wire.idle_timeout.as_ref(), &at.field("idleTimeout"), reader);
    pool.tcp_keepalive =
        wire.tcp_keepalive.as_ref().map(|wire| keep_alive(wire, &at.field("tcpKeepalive"), reader));
}

/// `tcpKeepalive`, of a pool or of the mesh.
pub(in super::super) fn keep_alive(
    wire: &KeepAliveWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> TcpKeepalive {
    TcpKeepalive {
        probes: wire.probes.0.and_then(|probes| u32::try_from(probes).ok()),
        time: reader.duration(wire.time.as_ref(), &at.field("time")),
        interval: reader.duration(wire.interval.as_ref(), &at.field("interval")),
    }
}

/// 0 switches the timeout off.
fn idle_timeout(text: Option<&Text<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Duration> {
    let nanoseconds = reader.any_duration(text, at)?;
    if nanoseconds / 1_000_000 == 0 {
        return Some(Duration::ZERO);
    }
    reader.duration(text, at)
}

fn http(wire: &HttpWire<'_>, pool: &mut ConnectionPool, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    pool.max_pending_requests =
        limit(wire.http1_max_pending_requests, &at.field("http1MaxPendingRequests"), reader);
    pool.max_requests = limit(wire.http2_max_requests, &at.field("http2MaxRequests"), reader);
    pool.max_requests_per_connection =
        limit(wire.max_requests_per_connection, &at.field("maxRequestsPerConnection"), reader);
    pool.max_retries = limit(wire.max_retries, &at.field("maxRetries"), reader);
    pool.max_concurrent_streams =
        limit(wire.max_concurrent_streams, &at.field("maxConcurrentStreams"), reader);
    pool.http_idle_timeout = reader.duration(wire.idle_timeout.as_ref(), &at.field("idleTimeout"));
    pool.h2_upgrade = upgrade(wire.h2_upgrade_policy.as_ref(), &at.field("h2UpgradePolicy"), reader);
    pool.use_client_protocol = wire.use_client_protocol.unwrap_or_default();
    if pool.use_client_protocol && pool.h2_upgrade == Some(true) {
        let message = "`useClientProtocol` and `h2UpgradePolicy: UPGRADE` exclude each other.";
        reader.report.reject(at.field("useClientProtocol"), message, "Keep one of them.");
    }
    if let Some(keep_alive) = &wire.http2_keep_alive {
        pool.http2_keep_alive = http2_keep_alive(keep_alive, &at.field("http2KeepAlive"), reader);
    }
}

fn http2_keep_alive(
    wire: &Http2KeepAliveWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<(Duration, Duration)> {
    let mut read = |name: &str, value: &Option<Text<'_>>| {
        if value.is_none() {
            reader.report.reject(at.field(name), format!("`{name}` is missing."), "Write a duration.");
        }
        reader.duration(value.as_ref(), &at.field(name))
    };
    let (interval, timeout) = (read("interval", &wire.interval), read("timeout", &wire.timeout));
    interval.zip(timeout)
}

/// A limit; 0 and absent are none.
fn limit(number: Signed, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<u32> {
    let number = number.get();
    if number < 0 {
        reader.report.reject(at, format!("{number} is below 0."), "Write 0 (no limit) or more.");
    }
    u32::try_from(number).ok().filter(|limit| *limit != 0)
}

/// `h2UpgradePolicy`, of a pool or of the mesh.
pub(in super::super) fn upgrade(
    text: Option<&Text<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<bool> {
    match text?.as_str() {
        "DEFAULT" => None,
        "UPGRADE" => Some(true),
        "DO_NOT_UPGRADE" => Some(false),
        other => {
            let message = format!("{} does not say whether to upgrade.", shown(other));
            reader.report.reject(at, message, "Write DEFAULT, UPGRADE or DO_NOT_UPGRADE.");
            None
        }
    }
}

pub(super) fn outlier(
    wire: &OutlierWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> OutlierDetection {
    let split = wire.split_external_local_origin_errors.unwrap_or_default();
    if wire.consecutive_errors.get() != 0 {
        let message = "`consecutiveErrors` is deprecated and has no effect.";
        let fix = "Write `consecutive5xxErrors` or `consecutiveGatewayErrors`.";
        reader.report.add(codes::SCHEMA_WARNING, at.field("consecutiveErrors"), message, fix);
    }
    if !split && wire.consecutive_local_origin_failures.get() > 0 {
        let message = "Failures of connections are counted apart only with `splitExternalLocalOriginErrors`.";
        let fix = "Write `splitExternalLocalOriginErrors: true`, or remove the field.";
        reader.report.reject(at.field("consecutiveLocalOriginFailures"), message, fix);
    }
    let max_ejection = percent(wire.max_ejection_percent, &at.field("maxEjectionPercent"), reader);
    let error_codes = wire.outlier_detection_http_error_codes.items.iter();
    OutlierDetection {
        consecutive_5xx: count(wire.consecutive_5xx_errors.0).unwrap_or(DEFAULT_CONSECUTIVE),
        consecutive_gateway: count(wire.consecutive_gateway_errors.0).unwrap_or_default(),
        consecutive_local_origin: count(wire.consecutive_local_origin_failures.0)
            .unwrap_or(DEFAULT_CONSECUTIVE),
        split_local_origin: split,
        interval: reader.duration(wire.interval.as_ref(), &at.field("interval")).unwrap_or(DEFAULT_INTERVAL),
        base_ejection_time: reader
            .duration(wire.base_ejection_time.as_ref(), &at.field("baseEjectionTime"))
            .unwrap_or(DEFAULT_BASE_EJECTION_TIME),
        // 0 is not told from absent.
        max_ejection_percent: if max_ejection == 0 { DEFAULT_MAX_EJECTION_PERCENT } else { max_ejection },
        min_health_percent: percent(wire.min_health_percent, &at.field("minHealthPercent"), reader),
        error_codes: error_codes.filter_map(|code| u16::try_from(code.get()).ok()).collect(),
    }
}

fn count(number: Option<i64>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

fn percent(number: Signed, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> u32 {
    let number = number.get();
    if !(0..=100).contains(&number) {
        reader.report.reject(at, format!("{number} is not a percentage."), "Write a number from 0 to 100.");
    }
    u32::try_from(number).unwrap_or_default()
}

/// The time to live of a cookie: any duration, and none below zero.
pub(super) fn time_to_live(
    text: Option<&Text<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<Duration> {
    reader.any_duration(text, at).map(zero_or_more)
}
