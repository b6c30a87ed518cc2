//! Whom a token belongs to: the API server's TokenReview says so.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use tokio::sync::Semaphore;
use weft_identity::csr_api::{AuthenticationError, Authenticator, Caller};

use crate::output;

/// Claims of a token that is bound to a pod, as TokenReview repeats them.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Since Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

const USER: &str = "system:serviceaccount:";
/// Reviews at a time; more wait.
const AT_A_TIME: usize = 16;
/// For one answer of the API server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the API server.
pub(super) struct Reviews {
    client: Client,
    audience: String,
    places: Semaphore,
}

impl Reviews {
    pub(super) fn new(client: Client, audience: &str) -> Self {
        Self { client, audience: audience.to_owned(), places: Semaphore::new(AT_A_TIME) }
    }

    async fn review(&self, token: &str) -> Result<Caller, AuthenticationError> {
        let asking = async {
            let _place = self.places.acquire().await;
            let found = self.ask(token).await?;
            self.with_node(found).await
        };
        let late = || AuthenticationError::Unavailable("the API server does not answer".to_owned());
        tokio::time::timeout(TIMEOUT, asking).await.map_err(|_| late())?
    }

    async fn ask(&self, token: &str) -> Result<Found, AuthenticationError> {
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![self.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| unavailable(&error))?.status.unwrap_or_default();
        found(status, &self.audience).map_err(AuthenticationError::Refused)
    }

    /// Before Kubernetes 1.30 the node is that of the pod that the token is bound to.
    async fn with_node(&self, found: Found) -> Result<Caller, AuthenticationError> {
        let Found { mut caller, pod_uid } = found;
        let (None, Some(name), Some(uid)) = (&caller.node, &caller.pod, pod_uid) else { return Ok(caller) };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &caller.namespace);
        let pod = pods.get_opt(name).await.map_err(|error| unavailable(&error))?;
        let pod = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&uid)).ok_or_else(|| {
            AuthenticationError::Refused(format!(
                "the pod {name} that it is bound to does not exist any more"
            ))
        })?;
        caller.node = pod.spec.and_then(|spec| spec.node_name).map(Into::into);
        Ok(caller)
    }
}

impl Authenticator for Reviews {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Caller, AuthenticationError>> + Send + 'a>> {
        Box::pin(self.review(token))
    }
}

fn unavailable(error: &Error) -> AuthenticationError {
    AuthenticationError::Unavailable(output::chain(error))
}

/// What a review says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) caller: Caller,
    pub(super) pod_uid: Option<String>,
}

/// Reads a review. That the audience is ours is checked again: an API server that knows no audiences (or a webhook
/// behind it) answers without any.
pub(super) fn found(status: TokenReviewStatus, audience: &str) -> Result<Found, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.unwrap_or_else(|| "the API server does not accept it".to_owned()));
    }
    if !status.audiences.iter().flatten().any(|one| one == audience) {
        return Err(format!("it is not made for the audience `{audience}`"));
    }
    let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
    let username = username.unwrap_or_default();
    let account = username.strip_prefix(USER).and_then(|account| account.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return Err(format!("it belongs to `{username}`, which is no service account"));
    };
    let extra = extra.unwrap_or_default();
    let caller = Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: one(&extra, POD_NAME),
        node: one(&extra, NODE_NAME).map(Into::into),
    };
    Ok(Found { caller, pod_uid: one(&extra, POD_UID) })
}

fn one(extra: &BTreeMap<String, Vec<String>>, key: &str) -> Option<String> {
    match extra.get(key)?.as_slice() {
        [only] if !only.is_empty() => Some(only.clone()),
        _ => None,
    }
}
