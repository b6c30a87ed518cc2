//! `retries`, `fault` and mirrors (V-22 to V-27).

use std::sync::Arc;

use weft_core::resource::virtual_service::{AbortStatus, Fault, Mirror, PerMillion, Retries};

use super::super::networking::{Reader, numbers, shown};
use super::super::report::Path;
use super::wire::{AbortWire, DelayWire, FaultWire, HttpWire, PercentWire, RetriesWire};
use super::{actions, destinations};
use crate::codes;

/// Conditions that can be retried on, besides status codes (V-22).
const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Names of gRPC's statuses, each at the place of its number.
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub(super) fn retries(
    wire: Option<&RetriesWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<Retries> {
    let wire = wire?;
    let attempts = wire.attempts.get();
    if attempts < 0 {
        let message = format!("{attempts} is no number of tries.");
        reader.report.reject(at.field("attempts"), message, "Write 0 or more; 0 switches retrying off.");
    }
    let is_configured = wire.per_try_timeout.is_some()
        || wire.retry_on.non_empty().is_some()
        || wire.retry_remote_localities.is_some();
    if attempts == 0 && is_configured {
        let message =
            "`attempts` is 0, which switches retrying off, but there are other settings of it (V-22).";
        reader.report.reject(
            at.field("attempts"),
            message,
            "Write `attempts`, or remove the other settings.",
        );
    }
    Some(Retries {
        attempts: u32::try_from(attempts).unwrap_or_default(),
        per_try_timeout: reader.duration(wire.per_try_timeout.as_ref(), &at.field("perTryTimeout")),
        on: retry_on(wire.retry_on.as_str(), &at.field("retryOn"), reader),
        ignore_previous_hosts: wire.retry_ignore_previous_hosts,
        remote_localities: wire.retry_remote_localities,
        backoff: reader.duration(wire.backoff.as_ref(), &at.field("backoff")),
    })
}

/// Cut at commas. Spaces are an error, as for Istio's admission, although its translation would trim them.
fn retry_on(text: &str, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<Arc<str>> {
    if text.is_empty() {
        return Vec::new();
    }
    for condition in text.split(',').filter(|condition| !is_retry_condition(condition)) {
        let message = format!("{} is not a condition to retry on.", shown(condition));
        let fix = if is_retry_condition(condition.trim()) {
            "Remove the spaces.".to_owned()
        } else {
            format!("Write {} or a status code, separated by commas.", RETRY_ON.join(", "))
        };
        reader.report.reject(at, message, fix);
    }
    text.split(',').map(|condition| reader.text(condition.trim())).collect()
}

fn is_retry_condition(text: &str) -> bool {
    RETRY_ON.contains(&text) || text.parse::<u16>().is_ok_and(has_reason)
}

/// Status codes that HTTP has given a meaning.
fn has_reason(status: u16) -> bool {
    matches!(status, 100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429)
        || matches!(status, 431 | 451 | 500..=508 | 510 | 511)
}

pub(super) fn fault(
    wire: Option<&FaultWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<Fault> {
    let wire = wire?;
    if wire.delay.is_none() && wire.abort.is_none() {
        reader.report.reject(at, "The fault is neither a delay nor an abort.", "Write `delay` or `abort`.");
    }
    let delay = wire.delay.as_ref().and_then(|delay| self::delay(delay, &at.field("delay"), reader));
    let abort = wire.abort.as_ref().and_then(|abort| self::abort(abort, &at.field("abort"), reader));
    Some(Fault { delay, abort })
}

fn delay(
    wire: &DelayWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<(PerMillion, std::time::Duration)> {
    if let Some(exponential) = &wire.exponential_delay {
        let at = at.field("exponentialDelay");
        reader.duration(Some(exponential), &at);
        let message = "Istio does not support exponential delays (V-26).";
        reader.report.reject(at, message, "Write `fixedDelay`.");
    }
    let share = match (wire.percentage, wire.percent.0) {
        (Some(percentage), _) => percentage_of_fault(Some(percentage), at, reader),
        // The legacy field: whole percents, which Istio does not check.
        (None, percent) => whole_percents(percent.unwrap_or_default()),
    };
    let length = reader.duration(wire.fixed_delay.as_ref(), &at.field("fixedDelay"))?;
    Some((share, length))
}

fn abort(
    wire: &AbortWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<(PerMillion, AbortStatus)> {
    let share = percentage_of_fault(wire.percentage, at, reader);
    let statuses = [wire.http_status.is_written(), wire.grpc_status.is_some(), wire.http2_error.is_some()];
    if statuses.into_iter().filter(|written| *written).count() > 1 {
        let message = "`httpStatus`, `grpcStatus` and `http2Error` exclude each other.";
        reader.report.reject(at, message, "Keep one of them.");
    }
    if wire.http2_error.is_some() {
        let message = "Istio does not support errors of HTTP/2 (V-26).";
        reader.report.reject(at.field("http2Error"), message, "Write `httpStatus` or `grpcStatus`.");
    }
    if let Some(name) = &wire.grpc_status {
        let number = grpc_status(name.as_str(), &at.field("grpcStatus"), reader)?;
        return Some((share, AbortStatus::Grpc(number)));
    }
    if wire.http_status.is_written() {
        let status = actions::status(wire.http_status.get(), &at.field("httpStatus"), reader)?;
        return Some((share, AbortStatus::Http(status)));
    }
    if wire.http2_error.is_none() {
        let message = "The abort has no status, so it aborts nothing.";
        reader.report.add(codes::SCHEMA_WARNING, at, message, "Write `httpStatus` or `grpcStatus`.");
    }
    None
}

fn grpc_status(name: &str, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<u8> {
    let number = GRPC_STATUSES.iter().position(|status| *status == name);
    if number.is_none() {
        let message = format!("{} is not a status of gRPC.", shown(name));
        reader.report.reject(at, message, "Write a name such as UNAVAILABLE or NOT_FOUND.");
    }
    number.and_then(|number| u8::try_from(number).ok())
}

/// Absent is 0 for faults (E21).
fn percentage_of_fault(wire: Option<PercentWire>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> PerMillion {
    let value = wire.and_then(|wire| wire.value).unwrap_or_default();
    if value != 0.0 && !(0.0001..=100.0).contains(&value) {
        let message = format!("{value} is not a percentage.");
        let at = at.field("percentage");
        reader.report.reject(at.field("value"), message, "Write 0, or a number from 0.0001 to 100.");
    }
    numbers::share(value)
}

fn whole_percents(percent: i64) -> PerMillion {
    PerMillion(u32::try_from(percent.clamp(0, 100)).unwrap_or_default() * 10_000)
}

/// `mirror` with its percentage, and `mirrors` (V-27).
pub(super) fn mirrors(wire: &HttpWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<Mirror> {
    let share = mirror_share(wire, at, reader);
    let mut mirrors = Vec::with_capacity(wire.mirrors.items.len());
    if let Some(mirror) = &wire.mirror {
        let destination = destinations::destination(mirror, &at.field("mirror"), reader);
        mirrors.extend(destination.map(|destination| Mirror { destination, share }));
    }
    let at = at.field("mirrors");
    for (index, mirror) in wire.mirrors.items.iter().enumerate() {
        let at = at.index(index);
        let share = mirror.percentage.map(|wire| percentage_of_mirror(wire, &at.field("percentage"), reader));
        let destination = destinations::required(mirror.destination.as_ref(), &at, reader);
        let share = share.unwrap_or(PerMillion::ALL);
        mirrors.extend(destination.map(|destination| Mirror { destination, share }));
    }
    mirrors
}

/// Absent is everything, and an explicit 0 nothing.
fn mirror_share(wire: &HttpWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> PerMillion {
    if let Some(percent) = wire.mirror_percent.0 {
        let at = at.field("mirrorPercent");
        if percent > 100 {
            let message = format!("{percent} is more than 100 percent.");
            reader.report.reject(at, message, "Write `mirrorPercentage.value` from 0 to 100.");
        }
        let message = "`mirrorPercent` is deprecated.";
        reader.report.add(codes::SCHEMA_WARNING, at, message, "Write `mirrorPercentage.value`.");
    }
    match (wire.mirror_percentage, wire.mirror_percent.0) {
        (Some(percentage), _) => percentage_of_mirror(percentage, &at.field("mirrorPercentage"), reader),
        (None, Some(percent)) => whole_percents(percent),
        (None, None) => PerMillion::ALL,
    }
}

fn percentage_of_mirror(wire: PercentWire, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> PerMillion {
    let value = wire.value.unwrap_or_default();
    if !(0.0..=100.0).contains(&value) {
        let message = format!("{value} is not a percentage.");
        reader.report.reject(at.field("value"), message, "Write a number from 0 to 100.");
    }
    numbers::share(value)
}
