//! When the client of a connection that is to end is told so.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// How long a silent client of HTTP/1 may take to send one more request, whose answer tells it. To close at once
/// would break the request that it may be sending at this moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// The end of one connection, once it is wanted.
#[derive(Debug, Default)]
pub(crate) struct Parting(Option<Pin<Box<Sleep>>>);

impl Parting {
    /// Whether the client has been silent for long enough. To be asked in every poll; `is_busy` says that a request
    /// is not over.
    pub(crate) fn is_due(&mut self, is_busy: bool, cx: &mut Context<'_>) -> bool {
        if is_busy {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(|| Box::pin(sleep(PATIENCE))).as_mut().poll(cx).is_ready()
    }
}
