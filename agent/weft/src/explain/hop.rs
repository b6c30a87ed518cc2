//! One endpoint: how it is reached, and whether its server's side lets the connection or the request in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use weft_core::decide::{Candidate, InboundConnection, Path};
use weft_core::kernel_view::{DirectPair, kernel_view};
use weft_core::snapshot::{LocalWorkload, Workload};

use super::question::AskedRequest;
use super::{
    AuthorizationView, EndpointView, Inquiry, PeerAuthenticationView, RequestAuthenticationView,
    ResponseView, authorization, reply,
};

/// What becomes of the connection or the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Allow,
    Deny,
    /// The mesh answers HTTP itself.
    Respond,
    Passthrough,
    Unreachable,
}

impl Outcome {
    /// Over all endpoints: denied only where every one of them denies.
    pub(super) fn of(hops: &[Hop]) -> Option<Self> {
        let allowed = hops.iter().find(|hop| hop.outcome != Self::Deny);
        allowed.or(hops.first()).map(|hop| hop.outcome)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Respond => "respond",
            Self::Passthrough => "passthrough",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The decision for one endpoint.
#[derive(Debug, Clone)]
pub(super) struct Hop {
    pub(super) addr: SocketAddr,
    workload: Option<Arc<Workload>>,
    pub(super) outcome: Outcome,
    pub(super) path: &'static str,
    pub(super) peer_authentication: Option<PeerAuthenticationView>,
    pub(super) request_authentication: Option<RequestAuthenticationView>,
    pub(super) authorization: AuthorizationView,
    pub(super) response: Option<ResponseView>,
    /// What the application receives, where the server's side changes headers.
    pub(super) headers: Option<HeaderMap>,
    /// The same of path and query.
    pub(super) target: Option<String>,
    sentences: Vec<String>,
}

impl Hop {
    pub(super) fn endpoint(&self) -> EndpointView {
        EndpointView {
            address: self.addr.to_string(),
            pod: self.workload.as_ref().map(|workload| workload.key.to_string()),
            node: self.workload.as_ref().and_then(|workload| workload.node.as_deref().map(Into::into)),
            ready: self.workload.as_ref().is_none_or(|workload| workload.ready),
            weight: 1,
            path: Some(self.path.into()),
        }
    }

    fn decided_like(&self, other: &Self) -> bool {
        self.path == other.path
            && self.outcome == other.outcome
            && self.peer_authentication == other.peer_authentication
            && self.request_authentication == other.request_authentication
            && self.authorization == other.authorization
    }
}

/// Puts the sentences of all hops into the steps, alike ones once.
pub(super) fn describe(hops: &[Hop], steps: &mut Vec<String>) {
    for (at, hop) in hops.iter().enumerate() {
        if hops.iter().take(at).any(|before| before.decided_like(hop)) {
            continue;
        }
        steps.extend(hop.sentences.iter().cloned());
        let alike = hops.iter().skip(at + 1).filter(|after| after.decided_like(hop)).count();
        if alike > 0 {
            steps.push(format!("{alike} more endpoint(s) are reached and decided in the same way."));
        }
    }
}

impl Inquiry<'_> {
    /// Decides for one endpoint; about `request`, where it is one.
    pub(super) fn hop(&self, candidate: &Candidate, request: Option<&AskedRequest>) -> Hop {
        let (path, how) = self.path(candidate);
        let mut hop = Hop {
            addr: candidate.addr,
            workload: candidate.workload.clone(),
            outcome: Outcome::Allow,
            path,
            peer_authentication: None,
            request_authentication: None,
            authorization: AuthorizationView::default(),
            response: None,
            headers: None,
            target: None,
            sentences: vec![how],
        };
        self.admit(candidate, request, &mut hop);
        hop
    }

    /// How bytes travel to the endpoint, and a sentence that says why.
    fn path(&self, candidate: &Candidate) -> (&'static str, String) {
        let name = name_of(candidate);
        if !self.source.in_mesh {
            return ("plaintext", format!("The client reaches {name} in plaintext."));
        }
        match &candidate.path {
            Path::SameNode(local) => self.same_node(local, candidate.addr.port(), &name),
            Path::Hbone(_) => ("hbone", format!("{name} is reached by mTLS through its port 15008 (HBONE).")),
            Path::Plaintext => ("plaintext", self.why_plaintext(candidate, &name)),
        }
    }

    fn why_plaintext(&self, candidate: &Candidate, name: &str) -> String {
        let workload = candidate.workload.as_ref();
        if workload.is_some_and(|workload| workload.in_mesh() && !self.snapshot.bypassed(&workload.key)) {
            return format!("{name} is in the mesh, but tls.mode DISABLE asks for plaintext.");
        }
        format!("{name} is not in the mesh: it is reached in plaintext.")
    }

    fn same_node(&self, destination: &LocalWorkload, port: u16, name: &str) -> (&'static str, String) {
        let key = &destination.workload.key;
        let enrolled = BTreeSet::from([self.source.workload.key.clone(), key.clone()]);
        let pair = DirectPair {
            destination: key.clone(),
            source: self.source.workload.identity.principal().into(),
            port,
        };
        if kernel_view(self.snapshot, &enrolled, self.learned).direct.contains(&pair) {
            let text = format!(
                "{name} is on the same node and policy lets the kernel decide: the connection is direct, no proxy in between."
            );
            return ("direct", text);
        }
        let text = format!(
            "{name} is on the same node: the connection passes the node's proxy, without TLS, and the kernel attests who opened it."
        );
        ("node", text)
    }

    /// The server's side of the endpoint.
    fn admit(&self, candidate: &Candidate, request: Option<&AskedRequest>, hop: &mut Hop) {
        let Some(workload) = candidate.workload.as_ref().filter(|workload| workload.in_mesh()) else {
            hop.sentences
                .push(format!("{} is not in the mesh: no policy is enforced there.", name_of(candidate)));
            return;
        };
        if self.snapshot.bypassed(&workload.key) {
            hop.sentences
                .push(format!("Capture of Pod {} is off: no policy is enforced there.", workload.key));
            return;
        }
        let Some(local) = self.snapshot.local_workload(&workload.key) else {
            let node = workload.node.as_deref().unwrap_or("another node");
            hop.sentences.push(format!(
                "The policies of Pod {} are decided on {node}: ask the agent there.",
                workload.key
            ));
            return;
        };
        let plaintext = hop.path == "plaintext";
        if plaintext && !local.capture.captures_inbound(candidate.addr.port()) {
            hop.sentences.push(format!(
                "Annotations of Pod {} exclude port {} from capture: no policy is enforced there.",
                workload.key,
                candidate.addr.port()
            ));
            return;
        }
        let identity = if plaintext { None } else { self.source.identity.as_deref() };
        let connection = InboundConnection {
            identity,
            source_ip: self.source.address_towards(candidate.addr),
            destination: candidate.addr,
            sni: self.sni(),
        };
        let admission = match request {
            Some(request) => authorization::request(local, &connection, &request.as_request()),
            None => authorization::connection(local, &connection),
        };
        hop.outcome = admission.outcome;
        hop.sentences.extend(admission.sentences);
        hop.peer_authentication = Some(admission.peer_authentication);
        hop.request_authentication = admission.request_authentication;
        hop.authorization = admission.authorization;
        let grpc = request.is_some_and(AskedRequest::is_grpc);
        hop.response = admission.response.map(|response| reply::in_terms_of_client(response, grpc));
        hop.headers = admission.headers;
        hop.target = admission.target;
    }
}

fn name_of(candidate: &Candidate) -> String {
    match &candidate.workload {
        Some(workload) => format!("Pod {} ({})", workload.key, candidate.addr),
        None => candidate.addr.to_string(),
    }
}
