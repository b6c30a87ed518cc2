//! What a client is told when its request could not be brought to an application (E15 to E26).

use std::fmt::Write as _;

use bytes::Bytes;
use weft_core::decide::http::TryOutcome;

use super::flags::{Flags, Reason};
use super::reply::Reply;
use super::upstream::{SendError, SendErrorKind};

const BEFORE_HEADERS: &str = "upstream connect error or disconnect/reset before headers. ";

/// How a failed try counts for retries; `None` is never tried again.
pub(crate) fn outcome(kind: &SendErrorKind) -> Option<TryOutcome> {
    match kind {
        SendErrorKind::ConnectFailure => Some(TryOutcome::ConnectFailure),
        SendErrorKind::RefusedStream => Some(TryOutcome::RefusedStream),
        SendErrorKind::ResetBeforeRequest => Some(TryOutcome::ResetBeforeRequest),
        SendErrorKind::Reset => Some(TryOutcome::Reset),
        SendErrorKind::NoHealthyUpstream
        | SendErrorKind::Overflow
        | SendErrorKind::BrokenBody { .. }
        | SendErrorKind::Denied(_) => None,
    }
}

/// The answer after the last try. `retried` says that it was not the only one.
pub(crate) fn reply(error: SendError, retried: bool) -> Reply {
    let (reason, why, details) = match &error.kind {
        SendErrorKind::NoHealthyUpstream => {
            let reply = Reply::flagged(503, "no healthy upstream", "no_healthy_upstream", Reason::UH);
            return Reply { failure: Some(error.detail), ..reply };
        }
        SendErrorKind::Overflow => {
            (Reason::UO, "overflow", "upstream_reset_before_response_started{overflow}")
        }
        SendErrorKind::ConnectFailure => (
            Reason::UF,
            "remote connection failure",
            "upstream_reset_before_response_started{remote_connection_failure}",
        ),
        SendErrorKind::RefusedStream => (
            Reason::UR,
            "remote refused stream reset",
            "upstream_reset_before_response_started{remote_refused_stream_reset}",
        ),
        SendErrorKind::ResetBeforeRequest | SendErrorKind::Reset => (
            Reason::UC,
            "connection termination",
            "upstream_reset_before_response_started{connection_termination}",
        ),
        SendErrorKind::BrokenBody { malformed: true } => {
            let reply = Reply::malformed(400, "", "http1.codec_error");
            return Reply { failure: Some(error.detail), ..reply };
        }
        SendErrorKind::BrokenBody { malformed: false } => {
            // Nobody will read it.
            let reply = Reply::flagged(400, "", "downstream_remote_disconnect", Reason::DC);
            return Reply { failure: Some(error.detail), ..reply };
        }
        SendErrorKind::Denied(failure) => {
            let reason = Flags::reason_of(failure.flags).unwrap_or(Reason::UF);
            let reply = Reply::flagged(503, "", "upstream_reset_before_response_started", reason);
            let body = format!("{BEFORE_HEADERS}reset reason: connection termination");
            let policy = failure.policy.clone();
            return Reply { failure: Some(failure.details.clone()), policy, body: body.into(), ..reply };
        }
    };
    let mut body = BEFORE_HEADERS.to_owned();
    let latest = if retried { "retried and the latest reset reason" } else { "reset reason" };
    // Writing to a String cannot fail.
    let _ = write!(body, "{latest}: {why}");
    let mut reply = Reply::flagged(503, "", details, reason);
    if reason == Reason::UO {
        reply = reply.with("x-envoy-overloaded", "true");
    }
    Reply { body: Bytes::from(body), failure: Some(error.detail), ..reply }
}

/// The answer when the route's timeout, or the last try's own, is over (E18, E19).
pub(crate) fn timeout(per_try: bool) -> Reply {
    let details = if per_try { "upstream_per_try_timeout" } else { "response_timeout" };
    Reply::flagged(504, "upstream request timeout", details, Reason::UT)
}
