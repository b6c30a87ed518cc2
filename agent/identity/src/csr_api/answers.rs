//! Asking, and what the answers mean: the same for every way to a CA.

use std::error::Error;
use std::io;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::METHOD;
use super::message::{IstioCertificateRequest, IstioCertificateResponse};
use crate::{IdentityError, SignedCertificate, explain};

/// A bundle of roots may be long; a chain is not.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Sends one request; `place` names the CA in messages.
pub(super) async fn call(
    channel: Channel,
    request: Request<IstioCertificateRequest>,
    place: &(dyn Fn() -> String + Sync),
) -> Result<SignedCertificate, IdentityError> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    grpc.ready().await.map_err(|error| unreachable(place, &error))?;
    let answer = grpc
        .unary(request, PathAndQuery::from_static(METHOD), ProstCodec::default())
        .await
        .map_err(|status| failed(place, &status))?;
    signed(answer.into_inner())
}

fn failed(place: &dyn Fn() -> String, status: &Status) -> IdentityError {
    match status.code() {
        Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated | Code::Unimplemented => {
            IdentityError::Refused(status.message().to_owned())
        }
        _ => match status.source() {
            Some(source) => unreachable(place, source),
            None => unreachable(place, &io::Error::other(status.message().to_owned())),
        },
    }
}

/// Names the innermost cause: the layers around it only say that a transport failed.
fn unreachable(place: &dyn Fn() -> String, error: &(dyn Error + 'static)) -> IdentityError {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    IdentityError::Unavailable(format!("{}: {}", place(), explain(cause)))
}

/// Splits an answer: the last element is the bundle of roots.
fn signed(answer: IstioCertificateResponse) -> Result<SignedCertificate, IdentityError> {
    let mut chain_pem = answer.cert_chain;
    match chain_pem.pop() {
        Some(roots) if !chain_pem.is_empty() => Ok(SignedCertificate { chain_pem, roots_pem: vec![roots] }),
        _ => Err(IdentityError::InvalidAnswer(
            "cert_chain must have the leaf first and the roots last, so at least two elements".to_owned(),
        )),
    }
}

impl From<SignedCertificate> for IstioCertificateResponse {
    fn from(signed: SignedCertificate) -> Self {
        let mut cert_chain = signed.chain_pem;
        cert_chain.push(signed.roots_pem.concat());
        Self { cert_chain }
    }
}
