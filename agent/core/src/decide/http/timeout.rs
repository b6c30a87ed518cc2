//! How long may an exchange take? (V-21, H-9, E47)

use std::time::Duration;

use super::{Forward, Request, fields};

impl Forward {
    /// The limit for one request, from its beginning to the end of the answer, retries included.
    ///
    /// For gRPC it is `grpc-timeout`, of which the rule's timeout is the upper bound; without the header it is the
    /// rule's.
    pub fn limit(&self, request: &Request<'_>) -> Option<Duration> {
        if !fields::is_grpc(request.headers) {
            return self.timeout;
        }
        match (grpc_timeout(request), self.timeout) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            (asked, most) => asked.or(most),
        }
    }
}

/// `grpc-timeout`: at most eight digits and a unit. Zero is no limit.
fn grpc_timeout(request: &Request<'_>) -> Option<Duration> {
    let text = request.headers.get("grpc-timeout")?.to_str().ok()?;
    let (unit_at, unit) = text.char_indices().next_back()?;
    let digits = text.get(..unit_at)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        'H' => Duration::from_secs(amount * 3600),
        'M' => Duration::from_secs(amount * 60),
        'S' => Duration::from_secs(amount),
        'm' => Duration::from_millis(amount),
        'u' => Duration::from_micros(amount),
        'n' => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(timeout).filter(|timeout| !timeout.is_zero())
}
