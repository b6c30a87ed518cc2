//! Retry policies with their defaults (V-22 to V-24, S-11).

use std::sync::Arc;
use std::time::Duration;

use crate::decide::http::{RetryOn, RetryPolicy};
use crate::resource::virtual_service::Retries;

/// Tries after the first one where nobody says otherwise.
const DEFAULT_ATTEMPTS: u32 = 2;
/// V-23.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// S-11 as the decisions table reads it: only what no application can have seen, and two gRPC answers.
const DEFAULT_ON: [&str; 5] =
    ["connect-failure", "refused-stream", "reset-before-request", "unavailable", "cancelled"];

/// A policy in both forms that a destination may need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Retry {
    /// For most destinations.
    pub(crate) usual: Arc<RetryPolicy>,
    /// For a single destination that hashes: the endpoint stays the same (V-24).
    pub(crate) hashing: Arc<RetryPolicy>,
}

impl Retry {
    /// Of a rule, or of the mesh.
    pub(crate) fn new(written: &Retries) -> Self {
        let conditions: Vec<Arc<str>> = match written.on.is_empty() {
            true => DEFAULT_ON.map(Arc::from).into(),
            false => written.on.clone(),
        };
        let policy = RetryPolicy {
            attempts: written.attempts,
            on: conditions.iter().fold(RetryOn::default(), |on, name| with(on, name)),
            on_text: conditions.into(),
            per_try_timeout: written.per_try_timeout.filter(|timeout| !timeout.is_zero()),
            backoff: written.backoff.filter(|backoff| !backoff.is_zero()).unwrap_or(DEFAULT_BACKOFF),
            ignore_previous_hosts: written.ignore_previous_hosts.unwrap_or(true),
            remote_localities: written.remote_localities,
            default: false,
        };
        let hashing = RetryPolicy {
            ignore_previous_hosts: written.ignore_previous_hosts.unwrap_or(false),
            ..policy.clone()
        };
        Self { usual: Arc::new(policy), hashing: Arc::new(hashing) }
    }

    /// Where no rule says anything: the mesh's, or what every mesh has.
    pub(crate) fn default_of(mesh: Option<&Retries>) -> Self {
        let own = Retries {
            attempts: DEFAULT_ATTEMPTS,
            per_try_timeout: None,
            on: Vec::new(),
            ignore_previous_hosts: None,
            remote_localities: None,
            backoff: None,
        };
        let Self { usual, hashing } = Self::new(mesh.unwrap_or(&own));
        let marked =
            |policy: Arc<RetryPolicy>| Arc::new(RetryPolicy { default: mesh.is_none(), ..(*policy).clone() });
        Self { usual: marked(usual), hashing: marked(hashing) }
    }
}

/// Adds a condition; one that means nothing to us (`retriable-headers`, `envoy-ratelimited`, …) adds nothing.
fn with(mut on: RetryOn, name: &str) -> RetryOn {
    match name.trim() {
        "5xx" => on.server_errors = true,
        "gateway-error" => on.gateway_errors = true,
        "reset" => on.reset = true,
        "reset-before-request" => on.reset_before_request = true,
        "connect-failure" => on.connect_failure = true,
        "retriable-4xx" => on.retriable_4xx = true,
        "refused-stream" => on.refused_stream = true,
        "cancelled" => on.grpc.push(1),
        "deadline-exceeded" => on.grpc.push(4),
        "resource-exhausted" => on.grpc.push(8),
        "internal" => on.grpc.push(13),
        "unavailable" => on.grpc.push(14),
        other => on.status_codes.extend(other.parse::<u16>().ok().filter(|code| (100..600).contains(code))),
    }
    on
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::http::TryOutcome;

    fn on(conditions: &str) -> RetryPolicy {
        let on = conditions.split(',').filter(|text| !text.is_empty()).map(Arc::from).collect();
        let written = Retries {
            attempts: 3,
            per_try_timeout: None,
            on,
            ignore_previous_hosts: None,
            remote_localities: None,
            backoff: None,
        };
        (*Retry::new(&written).usual).clone()
    }

    /// E15, S-11.
    #[test]
    fn the_default_repeats_only_what_no_application_has_seen() {
        let default = Retry::default_of(None).usual;
        assert_eq!((default.attempts, default.default), (2, true));
        let repeated = [
            TryOutcome::ConnectFailure,
            TryOutcome::RefusedStream,
            TryOutcome::ResetBeforeRequest,
            TryOutcome::GrpcStatus(14),
            TryOutcome::GrpcStatus(1),
        ];
        assert!(repeated.iter().all(|outcome| default.repeats(outcome)));
        let not = [
            TryOutcome::Status(503),
            TryOutcome::Status(500),
            TryOutcome::Reset,
            TryOutcome::PerTryTimeout,
            TryOutcome::GrpcStatus(13),
        ];
        assert!(not.iter().all(|outcome| !default.repeats(outcome)));
    }

    /// V-22.
    #[test]
    fn each_condition_repeats_its_own() {
        let cases = [
            (
                "5xx",
                vec![
                    TryOutcome::Status(500),
                    TryOutcome::Reset,
                    TryOutcome::PerTryTimeout,
                    TryOutcome::ConnectFailure,
                ],
            ),
            ("gateway-error", vec![TryOutcome::Status(502), TryOutcome::Status(504), TryOutcome::Reset]),
            ("reset", vec![TryOutcome::Reset, TryOutcome::ResetBeforeRequest, TryOutcome::RefusedStream]),
            ("retriable-4xx", vec![TryOutcome::Status(409)]),
            ("retriable-status-codes,418", vec![TryOutcome::Status(418)]),
            ("deadline-exceeded", vec![TryOutcome::GrpcStatus(4)]),
            ("resource-exhausted", vec![TryOutcome::GrpcStatus(8)]),
        ];
        for (text, repeated) in cases {
            let policy = on(text);
            assert!(repeated.iter().all(|outcome| policy.repeats(outcome)), "{text}");
            assert!(!policy.repeats(&TryOutcome::Status(200)), "{text}");
            assert!(!policy.repeats(&TryOutcome::Status(404)), "{text}");
        }
        assert!(!on("gateway-error").repeats(&TryOutcome::Status(500)));
        assert!(!on("connect-failure").repeats(&TryOutcome::Reset));
        assert!(!on("unknown-word").repeats(&TryOutcome::ConnectFailure));
    }

    /// V-24.
    #[test]
    fn a_hashing_destination_keeps_its_endpoint() {
        let written = Retries {
            attempts: 1,
            per_try_timeout: None,
            on: vec![],
            ignore_previous_hosts: None,
            remote_localities: None,
            backoff: None,
        };
        let retry = Retry::new(&written);
        assert!(retry.usual.ignore_previous_hosts && !retry.hashing.ignore_previous_hosts);
        let asked = Retry::new(&Retries { ignore_previous_hosts: Some(true), ..written });
        assert!(asked.hashing.ignore_previous_hosts);
    }
}
