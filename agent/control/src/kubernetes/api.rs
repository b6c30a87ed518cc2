//! Single requests: their answers, cut into lines, and what can be wrong with them.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;

/// An answer must begin within this time.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two parts of an answer that is not waiting for something to happen.
const STALLED: Duration = Duration::from_secs(30);
/// A page is held in memory as a whole.
const LONGEST_PAGE: usize = 256 << 20;
/// An object is limited to some 1.5 MB by the API server's store.
const LONGEST_LINE: usize = 16 << 20;
/// Of the text of an error no more than this is told.
const LONGEST_REASON: usize = 300;
/// Of an error's answer no more than this is read.
const LONGEST_ERROR: usize = 64 << 10;
/// A server may ask for more patience than this, in vain.
const MOST_PATIENCE: Duration = Duration::from_secs(60);

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// 403: this account may not do that.
    Denied(String),
    /// 401: the credentials are not accepted.
    Unauthorized(String),
    /// 404: there is no such resource.
    NotFound,
    /// 410 in any of its forms: what was seen last is too long ago.
    Expired,
    /// The resource version is one that the server does not have yet: it has lost its memory.
    AheadOfServer,
    /// 429, with the time to wait if the server names one.
    Busy(Option<Duration>),
    /// The request itself is not understood: the server knows no streaming lists.
    NotUnderstood(String),
    /// No answer at all.
    Unreachable(String),
    /// Any other answer that is an error.
    Server(String),
    /// An answer that makes no sense.
    Garbage(String),
    /// The answer began and does not go on.
    Stalled,
    /// The connection ended within the answer.
    Cut,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(reason) => write!(f, "it is forbidden: {reason}"),
            Self::Unauthorized(reason) => write!(f, "the credentials are not accepted: {reason}"),
            Self::NotFound => f.write_str("there is no such resource"),
            Self::Expired => f.write_str("what was read before is too old to go on from"),
            Self::AheadOfServer => f.write_str("the server knows less than it did before"),
            Self::Busy(_) => f.write_str("the server is too busy"),
            Self::NotUnderstood(reason) => write!(f, "the request is not understood: {reason}"),
            Self::Unreachable(reason) => write!(f, "the server cannot be reached: {reason}"),
            Self::Server(reason) => write!(f, "the server answers with an error: {reason}"),
            Self::Garbage(reason) => write!(f, "the answer makes no sense: {reason}"),
            Self::Stalled => f.write_str("the answer does not go on"),
            Self::Cut => f.write_str("the connection ended within the answer"),
        }
    }
}

/// What an error of the API server's looks like, as an answer or as an event of a watch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StatusWire {
    code: u16,
    reason: String,
    message: String,
    details: Option<DetailsWire>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DetailsWire {
    retry_after_seconds: u64,
    causes: Vec<CauseWire>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CauseWire {
    reason: String,
}

impl StatusWire {
    /// What it means. `retry_after` is what the HTTP header of this name says.
    pub(super) fn failure(self, retry_after: Option<Duration>) -> Failure {
        let details = self.details.unwrap_or_default();
        let text = if self.message.is_empty() { self.reason.clone() } else { self.message };
        let text = format!("{} ({})", shortened(&text), self.code);
        let ahead = details.causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge");
        match self.code {
            _ if ahead => Failure::AheadOfServer,
            401 => Failure::Unauthorized(text),
            403 => Failure::Denied(text),
            404 => Failure::NotFound,
            410 => Failure::Expired,
            429 => {
                let named =
                    Some(Duration::from_secs(details.retry_after_seconds)).filter(|wait| !wait.is_zero());
                Failure::Busy(retry_after.or(named).map(|wait| wait.min(MOST_PATIENCE)))
            }
            400 | 405 | 422 => Failure::NotUnderstood(text),
            _ if matches!(self.reason.as_str(), "Expired" | "Gone") => Failure::Expired,
            _ => Failure::Server(text),
        }
    }
}

/// One line, and not too long.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// Asks for a path; the answer's body is still to be read.
pub(super) async fn get(client: &Client, path: &str, metadata_only: bool) -> Result<Response<Body>, Failure> {
    let accept = if metadata_only { METADATA } else { JSON };
    let request = Request::get(path).header(ACCEPT, accept).body(Body::empty());
    let request = request.map_err(|error| Failure::Garbage(error.to_string()))?;
    let answer = limited(ANSWER, client.send(request)).await?;
    let answer = answer.map_err(|error| Failure::Unreachable(shortened(&chain(&error))))?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    Err(failure_of(answer).await)
}

async fn failure_of(answer: Response<Body>) -> Failure {
    let code = answer.status();
    let header = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = header.map(Duration::from_secs);
    // What cannot be read of the explanation is not worth a failure of its own.
    let body = Lines::new(answer).whole(LONGEST_ERROR).await.unwrap_or_default();
    let mut status: StatusWire = serde_json::from_slice(&body).unwrap_or_default();
    if status.code == 0 {
        status.code = code.as_u16();
    }
    if status.message.is_empty() && status.reason.is_empty() {
        status.message = match String::from_utf8_lossy(&body).trim() {
            "" => code.canonical_reason().unwrap_or("no reason given").to_owned(),
            text => text.to_owned(),
        };
    }
    if code == StatusCode::TOO_MANY_REQUESTS {
        status.code = code.as_u16();
    }
    status.failure(retry_after)
}

/// All causes of an error: the outer ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

async fn limited<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = || Failure::Unreachable(format!("no answer within {} s", limit.as_secs()));
    tokio::time::timeout(limit, work).await.map_err(|_| late())
}

/// Asks for a path and reads the whole answer.
pub(super) async fn read(client: &Client, path: &str, metadata_only: bool) -> Result<Bytes, Failure> {
    Lines::new(get(client, path, metadata_only).await?).whole(LONGEST_PAGE).await
}

/// A body, read as a whole or line by line.
#[derive(Debug)]
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer holds no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(answer: Response<Body>) -> Self {
        Self { body: answer.into_body(), buffer: BytesMut::new(), searched: 0 }
    }

    /// More of the body; false at its end.
    async fn fill(&mut self, idle: Duration) -> Result<bool, Failure> {
        let frame = tokio::time::timeout(idle, self.body.frame()).await.map_err(|_| Failure::Stalled)?;
        match frame {
            None => Ok(false),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.buffer.extend_from_slice(data);
                }
                Ok(true)
            }
            Some(Err(error)) => {
                tracing::debug!(error = chain(&error), "an answer of the API server ended early");
                Err(Failure::Cut)
            }
        }
    }

    async fn whole(mut self, limit: usize) -> Result<Bytes, Failure> {
        while self.fill(STALLED).await? {
            if self.buffer.len() > limit {
                return Err(Failure::Garbage(format!("it is longer than {} MiB", limit >> 20)));
            }
        }
        Ok(self.buffer.freeze())
    }

    /// The next line that is not empty; `None` at the end. Nothing for as long as `idle` is a failure.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was read stays in the buffer.
    pub(super) async fn next(&mut self, idle: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            let unseen = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = unseen.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.searched > LONGEST_LINE {
                return Err(Failure::Garbage(format!("an event is longer than {} MiB", LONGEST_LINE >> 20)));
            }
            if !self.fill(idle).await? {
                // An event that was cut short is sent again by the next watch.
                return if self.buffer.is_empty() { Ok(None) } else { Err(Failure::Cut) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Failure {
        serde_json::from_str::<StatusWire>(text).unwrap().failure(None)
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(status(r#"{"code":410,"reason":"Expired"}"#), Failure::Expired);
        assert_eq!(status(r#"{"code":404}"#), Failure::NotFound);
        assert_eq!(
            status(
                r#"{"code":504,"reason":"Timeout","details":{"causes":[{"reason":"ResourceVersionTooLarge"}]}}"#
            ),
            Failure::AheadOfServer
        );
        assert_eq!(
            status(r#"{"code":429,"details":{"retryAfterSeconds":2}}"#),
            Failure::Busy(Some(Duration::from_secs(2)))
        );
        assert_eq!(
            status(r#"{"code":429,"details":{"retryAfterSeconds":86400}}"#),
            Failure::Busy(Some(MOST_PATIENCE))
        );
        assert!(matches!(status(r#"{"code":422,"message":"sendInitialEvents"}"#), Failure::NotUnderstood(_)));
        let denied = status(r#"{"code":403,"message":"pods is forbidden: User \"a\" cannot list"}"#);
        assert!(denied.to_string().contains("cannot list"), "{denied}");
        assert!(matches!(status(r#"{"code":500,"message":"x"}"#), Failure::Server(_)));
    }

    async fn lines(parts: &[&str]) -> (Vec<String>, Result<(), Failure>) {
        let body = Body::from(parts.concat().into_bytes());
        let mut lines = Lines::new(Response::new(body));
        let mut found = Vec::new();
        loop {
            match lines.next(Duration::from_secs(1)).await {
                Ok(Some(line)) => found.push(String::from_utf8(line.trim_ascii().to_vec()).unwrap()),
                Ok(None) => return (found, Ok(())),
                Err(failure) => return (found, Err(failure)),
            }
        }
    }

    #[tokio::test]
    async fn a_body_is_cut_into_lines() {
        assert_eq!(lines(&["{a}\n\n{b}\r\n"]).await, (vec!["{a}".into(), "{b}".into()], Ok(())));
        assert_eq!(lines(&["{a}\n{b"]).await, (vec!["{a}".into()], Err(Failure::Cut)));
        assert_eq!(lines(&[]).await, (vec![], Ok(())));
    }

    #[test]
    fn long_explanations_are_shortened() {
        let text = "ä\n ".repeat(1000);
        assert!(shortened(&text).chars().count() == LONGEST_REASON + 1);
    }
}
