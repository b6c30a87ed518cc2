//! The server over TLS: a token says who asks, and for a node agent the configuration says what it may have.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::transport::Server;
use tonic::{Code, Request, Status};
use weft_core::Identity;

use super::limits::{Buckets, FAILURES, NODE};
use super::message::{IstioCertificateRequest, IstioCertificateResponse};
use super::service::{Answer, Answering, CertificateService, lifetime, requested_identity, status};
use super::tls_listener::{self, Peer};
use super::tokens::{AuthenticationError, Authenticator, Caller, Tokens};
use super::{Counters, NodeAuthority, Outcome, audit_issue, audit_refusal};
use crate::{Ca, CaError, IdentityError, LiveCa, ServingTls};

/// Nodes and addresses whose limits are kept.
const LIMITED: usize = 20_000;
/// Requests of one connection at a time; an agent sends eight.
const STREAMS: u32 = 64;
/// Header list: a token and some names.
const HEADER_BYTES: u32 = 32 * 1024;
/// One request, token review included.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that is gone without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Agents connect anew from time to time, so that all replicas get their share.
const CONNECTION_AGE: Duration = Duration::from_hours(1);

/// Namespace and name of a service account, written `weft-system/weft-agent`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceAccount {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("`{text}` is not of the form NAMESPACE/SERVICEACCOUNT")),
        }
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who may have what.
pub struct Access {
    /// Says whom a token belongs to.
    pub authenticator: Arc<dyn Authenticator>,
    /// Says which identities the pods of a node have.
    pub authority: Arc<dyn NodeAuthority>,
    /// Service accounts of node agents: they may ask for the identities of their node's pods. Everybody else
    /// gets his own identity only.
    pub node_accounts: BTreeSet<ServiceAccount>,
}

/// The CSR API over TLS.
pub struct NetworkServer {
    ca: Arc<LiveCa>,
    tokens: Tokens,
    access: Access,
    counters: Arc<Counters>,
    nodes: Buckets<Arc<str>>,
    failures: Buckets<IpAddr>,
}

impl NetworkServer {
    /// A server that signs with the CA of the moment.
    pub fn new(ca: Arc<LiveCa>, access: Access) -> Self {
        let counters = Arc::<Counters>::default();
        let tokens = Tokens::new(Arc::clone(&access.authenticator), Arc::clone(&counters));
        let (nodes, failures) = (Buckets::new(NODE, LIMITED), Buckets::new(FAILURES, LIMITED));
        Self { ca, tokens, access, counters, nodes, failures }
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Serves until `shutdown` completes; requests under way are answered. Renews the certificate of `tls` itself.
    ///
    /// # Errors
    /// [`IdentityError::Internal`] when the listener fails for good.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Arc<ServingTls>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), IdentityError> {
        let connections = tls_listener::accept(listener, Arc::clone(&tls), self.counters());
        let serving = Server::builder()
            .timeout(TIMEOUT)
            .max_concurrent_streams(STREAMS)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .max_connection_age(CONNECTION_AGE)
            .serve_with_incoming_shutdown(CertificateService::new(Arc::new(self)), connections, shutdown);
        let served = tokio::select! {
            served = serving => served,
            () = tls.keep_fresh() => Ok(()),
        };
        served.map_err(|error| IdentityError::Internal(format!("serving the CSR API failed: {error}")))
    }
}

impl Answering for NetworkServer {
    fn answer(self: Arc<Self>, request: Request<IstioCertificateRequest>) -> Answer {
        Box::pin(async move {
            let answer = self.issue(&request).await;
            self.counters.end(match &answer {
                Ok(_) => Outcome::Issued,
                Err(status) => outcome(status.code()),
            });
            answer
        })
    }
}

fn outcome(code: Code) -> Outcome {
    match code {
        Code::Unauthenticated => Outcome::Unauthenticated,
        Code::PermissionDenied => Outcome::Forbidden,
        Code::InvalidArgument => Outcome::Invalid,
        Code::ResourceExhausted => Outcome::Limited,
        Code::Unavailable => Outcome::Unavailable,
        _ => Outcome::Failed,
    }
}

impl NetworkServer {
    async fn issue(
        &self,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        let address = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
        let caller = self.caller(request, address).await.inspect_err(|status| {
            let from = address.map_or_else(|| "-".to_owned(), |address| address.to_string());
            audit_refusal(("-", &from), None, status.message());
        })?;
        let (node, name) = (caller.node.as_deref().unwrap_or("-"), caller.to_string());
        let refuse = |identity: Option<&Identity>, status: Status| {
            audit_refusal((node, &name), identity, status.message());
            status
        };
        self.admit(&caller).map_err(|status| refuse(None, status))?;
        let ca = self.ca.current();
        let message = request.get_ref();
        let asked = requested_identity(message).map_err(|status| refuse(None, status))?;
        let own = Identity::new(ca.trust_domain(), &*caller.namespace, &*caller.service_account);
        let identity = asked.unwrap_or_else(|| own.clone());
        let signed = self
            .permit(&caller, &identity, &own)
            .map_err(status)
            .and_then(|()| sign(&ca, message, &identity))
            .map_err(|status| refuse(Some(&identity), status))?;
        audit_issue((node, &name), &identity, &signed);
        Ok(signed.into())
    }

    async fn caller(
        &self,
        request: &Request<IstioCertificateRequest>,
        address: Option<IpAddr>,
    ) -> Result<Caller, Status> {
        let token = bearer(request)?;
        if address.is_some_and(|address| !self.failures.has(&address, Instant::now())) {
            return Err(Status::resource_exhausted(
                "too many tokens from this address were refused; ask again later",
            ));
        }
        match self.tokens.review(token).await {
            Ok(caller) => Ok(caller),
            Err(AuthenticationError::Refused(reason)) => {
                if let Some(address) = address {
                    self.failures.take(address, Instant::now());
                }
                Err(Status::unauthenticated(format!("the token is refused: {reason}")))
            }
            Err(AuthenticationError::Unavailable(reason)) => {
                Err(Status::unavailable(format!("the token cannot be reviewed now: {reason}")))
            }
        }
    }

    /// A caller without a node is limited like a node of his name.
    fn admit(&self, caller: &Caller) -> Result<(), Status> {
        let who = caller.node.clone().unwrap_or_else(|| caller.to_string().into());
        if self.nodes.take(Arc::clone(&who), Instant::now()) {
            return Ok(());
        }
        let limit = NODE.per_second;
        Err(Status::resource_exhausted(format!(
            "{who} asks for more than {limit} certificates a second; ask again later"
        )))
    }

    fn permit(&self, caller: &Caller, wanted: &Identity, own: &Identity) -> Result<(), CaError> {
        if wanted == own {
            return Ok(());
        }
        let account =
            ServiceAccount { namespace: caller.namespace.clone(), name: caller.service_account.clone() };
        if !self.access.node_accounts.contains(&account) {
            return Err(CaError::Forbidden(format!(
                "{account} may only have its own identity, not {wanted}: it is no trusted node account"
            )));
        }
        match &caller.node {
            Some(node) => self.access.authority.may_have(node, wanted),
            None => Err(CaError::Forbidden(format!(
                "the token of {account} does not say on which node it is used: it must be bound to a pod"
            ))),
        }
    }
}

fn sign(
    ca: &Ca,
    message: &IstioCertificateRequest,
    identity: &Identity,
) -> Result<crate::SignedCertificate, Status> {
    ca.sign(&message.csr, identity, lifetime(ca, message)?).map_err(status)
}

fn bearer(request: &Request<IstioCertificateRequest>) -> Result<&str, Status> {
    let missing = || Status::unauthenticated("there is no bearer token in the metadata `authorization`");
    let value = request.metadata().get("authorization").ok_or_else(missing)?;
    let text = value.to_str().map_err(|_| missing())?;
    let token = text.strip_prefix("Bearer ").or_else(|| text.strip_prefix("bearer ")).map(str::trim);
    token.filter(|token| !token.is_empty()).ok_or_else(missing)
}
