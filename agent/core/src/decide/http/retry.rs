//! Which failures are tried again (V-22, S-11, E15, E16, E18).

use super::{RetryOn, RetryPolicy};

/// How one try ended. What the application answered is [`TryOutcome::Status`] or, for a gRPC answer without a
/// message, [`TryOutcome::GrpcStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryOutcome {
    /// No connection.
    ConnectFailure,
    /// HTTP/2 REFUSED_STREAM: the application has not seen it.
    RefusedStream,
    /// The connection ended before anything of the request was sent.
    ResetBeforeRequest,
    /// The connection or stream ended later, without an answer.
    Reset,
    /// The try's own time was over.
    PerTryTimeout,
    /// An answer with this status.
    Status(u16),
    /// An answer with this gRPC status.
    GrpcStatus(u8),
}

impl RetryPolicy {
    /// Whether a try that ended so is followed by another one, if there is one left.
    pub fn repeats(&self, outcome: &TryOutcome) -> bool {
        let on = &self.on;
        match outcome {
            TryOutcome::ConnectFailure => {
                on.connect_failure || on.reset_before_request || on.repeats_any_reset()
            }
            TryOutcome::RefusedStream => on.refused_stream || on.repeats_any_reset(),
            TryOutcome::ResetBeforeRequest => on.reset_before_request || on.repeats_any_reset(),
            TryOutcome::Reset | TryOutcome::PerTryTimeout => on.repeats_any_reset(),
            TryOutcome::Status(status) => on.repeats_status(*status),
            TryOutcome::GrpcStatus(status) => on.grpc.contains(status),
        }
    }
}

impl RetryOn {
    /// A request without an answer counts as a 5xx.
    fn repeats_any_reset(&self) -> bool {
        self.reset || self.server_errors || self.gateway_errors
    }

    fn repeats_status(&self, status: u16) -> bool {
        (self.server_errors && (500..600).contains(&status))
            || (self.gateway_errors && matches!(status, 502..=504))
            || (self.retriable_4xx && status == 409)
            || self.status_codes.contains(&status)
    }
}
