//! Who a token belongs to: asked of an authenticator, and remembered for a moment.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::time::Instant;

use super::Counters;

/// How long an answer counts: a node that starts asks for many certificates with one token. A pod that is
/// deleted keeps its say for this long.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Answers that are remembered at a time.
const MOST: usize = 4096;
/// Longer than any token that Kubernetes makes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Whom a token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: Option<String>,
    /// The node of that pod.
    pub node: Option<Arc<str>>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)?;
        match &self.pod {
            Some(pod) => write!(f, " ({pod})"),
            None => Ok(()),
        }
    }
}

/// Why a token says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// It is worth nothing; the text says why.
    #[error("{0}")]
    Refused(String),
    /// Nobody could be asked.
    #[error("{0}")]
    Unavailable(String),
}

/// Says whom a token belongs to.
pub trait Authenticator: Send + Sync + 'static {
    /// Looks at one token.
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, AuthenticationError>> + Send + 'a>>;
}

type Review = Result<Caller, AuthenticationError>;

/// An authenticator with a short memory.
pub(super) struct Tokens {
    authenticator: Arc<dyn Authenticator>,
    counters: Arc<Counters>,
    /// By SHA-256: the memory of this process need not be full of tokens. Held for a few instructions.
    known: Mutex<HashMap<[u8; 32], (Review, Instant)>>,
}

impl Tokens {
    pub(super) fn new(authenticator: Arc<dyn Authenticator>, counters: Arc<Counters>) -> Self {
        Self { authenticator, counters, known: Mutex::default() }
    }

    pub(super) async fn review(&self, token: &str) -> Review {
        if token.len() > MAX_TOKEN_BYTES {
            let reason = format!("the token is longer than {MAX_TOKEN_BYTES} bytes");
            return Err(AuthenticationError::Refused(reason));
        }
        let key = key(token);
        if let Some(known) = self.remembered(&key, Instant::now()) {
            self.counters.was_remembered();
            return known;
        }
        self.counters.reviewed();
        let review = self.authenticator.authenticate(token).await;
        if !matches!(review, Err(AuthenticationError::Unavailable(_))) {
            self.remember(key, review.clone(), Instant::now());
        }
        review
    }

    fn remembered(&self, key: &[u8; 32], now: Instant) -> Option<Review> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(_, until)| now < *until).map(|(review, _)| review.clone())
    }

    fn remember(&self, key: [u8; 32], review: Review, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < MOST {
            known.insert(key, (review, now + REMEMBERED));
        }
    }
}

fn key(token: &str) -> [u8; 32] {
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    let mut key = [0; 32];
    key.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    key
}
