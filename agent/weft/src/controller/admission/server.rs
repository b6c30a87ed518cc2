//! Listens to the API server: HTTPS, one request a connection, everything bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use weft_identity::ServingTls;

use super::review::review;
use crate::controller::counters::{Counters, Decision};
use crate::output;

/// Where the API server asks.
const PATH: &str = "/validate";
/// Connections at a time; more wait.
const CONNECTIONS: usize = 64;
/// Questions that are held in memory at a time; more wait.
const QUESTIONS: usize = 8;
/// Longest question: the object and what it was before, each at most 3 MiB (the API server's own limit).
const LONGEST: usize = 8 << 20;
/// For the handshake, and for the head of the request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// For a whole connection. The API server waits 5 s for its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed (no descriptors left, for example).
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever.
pub(in crate::controller) async fn serve(
    listener: TcpListener,
    tls: Arc<ServingTls>,
    counters: Arc<Counters>,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let answers = Answers { questions: Arc::new(Semaphore::new(QUESTIONS)), counters };
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let acceptor = TlsAcceptor::from(tls.config());
                tokio::spawn(connection(stream, acceptor, answers.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for admission could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    answers: Answers,
    _permit: OwnedSemaphorePermit,
) {
    let stream = match tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake for admission failed");
            return;
        }
        Err(_) => return,
    };
    let service = service_fn(|request: Request<Incoming>| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answers.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        // Idle connections would take the places of those who ask.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for admission failed"),
        Err(_) => tracing::debug!("a connection for admission took too long"),
    }
}

type Answer = Response<Full<Bytes>>;

#[derive(Clone)]
struct Answers {
    questions: Arc<Semaphore>,
    counters: Arc<Counters>,
}

impl Answers {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if request.uri().path() != PATH {
            return words(StatusCode::NOT_FOUND, "objects are validated at /validate");
        }
        if request.method() != Method::POST {
            return words(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview");
        }
        let Ok(_permit) = self.questions.acquire().await else {
            return words(StatusCode::SERVICE_UNAVAILABLE, "stopping");
        };
        match self.decide(request).await {
            Ok(answer) => answer,
            Err((status, error)) => {
                tracing::warn!(error, "an object could not be validated");
                self.counters.reviewed(Decision::Failed);
                words(status, &error)
            }
        }
    }

    async fn decide(&self, request: Request<Incoming>) -> Result<Answer, (StatusCode, String)> {
        let body = Limited::new(request.into_body(), LONGEST).collect();
        let body = body.await.map_err(|error| {
            let status = if error.is::<LengthLimitError>() {
                StatusCode::PAYLOAD_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            };
            (status, output::chain(&*error))
        })?;
        let body = body.to_bytes();
        // A large object takes long. A panic ends the task, not us; it was logged by the hook.
        let decided = tokio::task::spawn_blocking(move || review(&body)).await;
        let failed = |_| (StatusCode::INTERNAL_SERVER_ERROR, "a fault of Weft: please report it".to_owned());
        let (answer, decision) =
            decided.map_err(failed)?.map_err(|error| (StatusCode::BAD_REQUEST, output::chain(&error)))?;
        self.counters.reviewed(decision);
        Ok(text(StatusCode::OK, "application/json", answer.to_string()))
    }
}

fn words(status: StatusCode, words: &str) -> Answer {
    text(status, "text/plain; charset=utf-8", format!("{words}\n"))
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}
