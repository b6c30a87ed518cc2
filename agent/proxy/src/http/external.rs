//! External authorisation (AP-17): a CUSTOM policy has somebody else asked before the application is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;
use weft_core::Snapshot;
use weft_core::decide::InboundRequest;
use weft_core::decide::ext_authz::{
    Answer, GRPC_PATH, GrpcCheck, failure, grpc_answer, grpc_check, http_answer, http_check,
};
use weft_core::decide::inbound::ExternalCheck;
use weft_core::resource::ExtAuthz;
use weft_core::snapshot::LocalWorkload;

use super::ahead::Ahead;
use super::body::{Body, BodyError};
use super::flags::Reason;
use super::headers::GRPC_STATUS;
use super::outcall::{self, CallError};
use super::reply::Reply;
use super::upstream::UpstreamProtocol;
use crate::pod::Pod;
use crate::worker::Worker;

/// An answer is not larger, in bytes.
const LARGEST: usize = 64 * 1024;

/// Tells the provider whether it sees only the beginning of the body.
const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// A request to an authoriser: nobody is asked about it, or two of them could ask each other for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfAuthoriser;

/// As much of the request's body as a provider is to see (`includeRequestBodyInCheck`).
#[derive(Debug, Default)]
pub(crate) struct Included {
    bytes: Bytes,
    /// Whether there is more; `None` where the provider sees no bodies.
    cut: Option<bool>,
}

impl Included {
    /// Reads what the provider wants; the error is the answer to the client. A body that the provider cannot see
    /// as a whole, and is not to see in part, is not let through.
    pub(crate) async fn of(provider: &ExtAuthz, body: &mut Ahead) -> Result<Self, Box<Reply>> {
        let Some((most, partial)) = provider.include_body else { return Ok(Self::default()) };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let read: Result<_, BodyError> = async {
            match partial || body.fits(most).await? {
                true => Ok(Some(body.first(most).await?)),
                false => Ok(None),
            }
        }
        .await;
        match read {
            Ok(Some(bytes)) => Ok(Self { bytes, cut: Some(!body.is_within(most)) }),
            Ok(None) => {
                let reply = Reply::text(413, "Payload Too Large", "request_payload_too_large");
                let failure =
                    format!("the body is larger than the {most} bytes that {} is shown", provider.name);
                Err(Box::new(Reply { failure: Some(failure), ..reply }))
            }
            Err(error) => {
                let reply = Reply::flagged(400, "", "downstream_remote_disconnect", Reason::DC);
                Err(Box::new(Reply { failure: Some(error.to_string()), ..reply }))
            }
        }
    }
}

/// For whose sake somebody is asked.
pub(crate) struct Asker<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) snapshot: &'a Arc<Snapshot>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) local: &'a Arc<LocalWorkload>,
    /// The client's port.
    pub(crate) source_port: u16,
    /// `HTTP/1.1`, `HTTP/2`.
    pub(crate) protocol: &'static str,
}

impl Asker<'_> {
    /// Asks one provider.
    pub(crate) async fn ask(
        &self,
        check: &ExternalCheck,
        asked: &InboundRequest<'_>,
        included: &Included,
    ) -> Answer {
        let provider = &check.provider;
        let answer = async {
            match provider.grpc {
                true => self.grpc(provider, asked, &included.bytes).await,
                false => self.http(provider, asked, included).await,
            }
        };
        let error = match timeout(provider.timeout, answer).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", provider.timeout.as_secs()),
        };
        tracing::debug!(provider = %provider.name, error, "an external authoriser could not be asked");
        failure(provider)
    }

    async fn http(
        &self,
        provider: &ExtAuthz,
        asked: &InboundRequest<'_>,
        included: &Included,
    ) -> Result<Answer, CallError> {
        let check = http_check(provider, &asked.request);
        let mut request = Request::builder().method(check.method.as_str()).uri(check.target.as_str());
        if let Some(headers) = request.headers_mut() {
            *headers = check.headers;
            headers.insert(CONTENT_LENGTH, HeaderValue::from(included.bytes.len()));
            if let Some(cut) = included.cut {
                let cut = HeaderValue::from_static(if cut { "true" } else { "false" });
                headers.insert(PARTIAL_BODY, cut);
            }
        }
        let body = Body::full(included.bytes.clone());
        let request = request.header(HOST, check.authority.as_str()).body(body);
        let request = request.map_err(|error| self.broken(provider, &error))?;
        let response = self.send(provider, request, UpstreamProtocol::Http1).await?;
        let (head, body, _) = self.whole(provider, response).await?;
        Ok(http_answer(provider, head.status.as_u16(), &head.headers, &body))
    }

    async fn grpc(
        &self,
        provider: &ExtAuthz,
        asked: &InboundRequest<'_>,
        body: &[u8],
    ) -> Result<Answer, CallError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let message = grpc_check(&GrpcCheck {
            connection: asked.connection,
            source_port: self.source_port,
            destination_principal: &self.local.workload.labels.principal,
            request: asked.request,
            protocol: self.protocol,
            body,
            now: i64::try_from(now).unwrap_or(i64::MAX),
        });
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        framed.extend_from_slice(&message);
        let request = Request::post(GRPC_PATH)
            .header(HOST, host_of(provider))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Body::full(framed.freeze()));
        let request = request.map_err(|error| self.broken(provider, &error))?;
        let response = self.send(provider, request, UpstreamProtocol::Http2).await?;
        let (head, body, trailers) = self.whole(provider, response).await?;
        let status = |headers: &HeaderMap| headers.get(GRPC_STATUS)?.to_str().ok()?.parse::<u32>().ok();
        let status = trailers.as_ref().and_then(status).or_else(|| status(&head.headers));
        match (status, body.get(5..)) {
            (Some(status), Some(message)) => Ok(grpc_answer(provider, status, message)),
            (Some(_) | None, _) => Ok(failure(provider)),
        }
    }

    async fn send(
        &self,
        provider: &ExtAuthz,
        mut request: Request<Body>,
        protocol: UpstreamProtocol,
    ) -> Result<Response<Body>, CallError> {
        request.extensions_mut().insert(OfAuthoriser);
        let (host, of) = (host_of(provider), (self.pod, self.local));
        match outcall::in_mesh(self.snapshot, self.local, host, provider.port) {
            Some(cluster) => {
                outcall::call(self.worker, self.snapshot, of, &cluster, (request, protocol)).await
            }
            None if protocol == UpstreamProtocol::Http1 => {
                outcall::outside(self.worker, (host, provider.port, false), request).await
            }
            None => Err(self.broken(provider, &"the gRPC service is not a host of the mesh")),
        }
    }

    async fn whole(
        &self,
        provider: &ExtAuthz,
        response: Response<Body>,
    ) -> Result<(http::response::Parts, Bytes, Option<HeaderMap>), CallError> {
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, LARGEST).collect().await.map_err(|error| self.broken(provider, &error))?;
        let trailers = body.trailers().cloned();
        Ok((head, body.to_bytes(), trailers))
    }

    fn broken(&self, provider: &ExtAuthz, error: &dyn std::fmt::Display) -> CallError {
        CallError::Exchange(provider.service.to_string(), error.to_string())
    }
}

/// The host of a service that may be written as `namespace/host`.
fn host_of(provider: &ExtAuthz) -> &str {
    provider.service.rsplit('/').next().unwrap_or_default()
}
