//! Failures of the API server, as the person at the command line reads them: the cause, then the next command.

use std::time::Duration;

use anyhow::anyhow;
use kube::Error;

use crate::output::chain;

/// The API server did not answer the first question.
pub(super) fn unreachable(error: &Error) -> anyhow::Error {
    match error {
        Error::Api(status) if status.code == 401 => anyhow!(
            "the API server does not accept these credentials ({}); log in again, and try `kubectl auth whoami`",
            status.message
        ),
        Error::Api(status) => {
            anyhow!("the API server refuses to tell its version ({}); try `kubectl version`", status.message)
        }
        Error::Auth(error) => anyhow!(
            "the kubeconfig's way to log in does not work ({}); try `kubectl auth whoami`",
            chain(error)
        ),
        error => {
            let why = chain(innermost(error));
            let hint = if why.to_lowercase().contains("certificate") {
                "the kubeconfig's certificate authority does not fit this server: get a new kubeconfig"
            } else {
                "is the cluster up, and is this its context? Try `kubectl cluster-info`, or another --context"
            };
            anyhow!("the API server does not answer ({why}); {hint}")
        }
    }
}

/// The API server accepted the connection, or not even that, and was silent.
pub(super) fn silent(patience: Duration) -> String {
    format!(
        "the API server did not answer within {} s; is the cluster up, and is this its context? Try \
         `kubectl cluster-info`, or another --context",
        patience.as_secs()
    )
}

/// Something could not be read: `what` completes "you may not read …".
pub(in super::super) fn reading(what: &str, error: &Error) -> anyhow::Error {
    match error {
        Error::Api(status) if status.code == 403 => anyhow!(
            "you may not read {what} ({}); `weft check` lists the permissions that the commands need",
            status.message
        ),
        Error::Api(status) => anyhow!("{what} cannot be read: {}", status.message),
        error => anyhow!("{what} cannot be read: {}", chain(innermost(error))),
    }
}

/// RBAC says no.
pub(in super::super) fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 403)
}

/// Below the wrappers that only say that something failed.
fn innermost(error: &Error) -> &(dyn std::error::Error + 'static) {
    match std::error::Error::source(error) {
        Some(source) => source,
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refused(code: u16, message: &str) -> Error {
        Error::Api(Box::new(Status { code, message: message.into(), ..Status::default() }))
    }

    #[test]
    fn every_failure_says_what_to_do() {
        let cases = [
            (unreachable(&refused(401, "Unauthorized")), "kubectl auth whoami"),
            (unreachable(&refused(403, "forbidden")), "kubectl version"),
            (
                unreachable(&Error::Service("tls: bad certificate".into())),
                "certificate authority does not fit",
            ),
            (unreachable(&Error::Service("connection refused".into())), "kubectl cluster-info"),
            (reading("the agents' pods", &refused(403, "no")), "weft check"),
        ];
        for (error, wanted) in cases {
            assert!(error.to_string().contains(wanted), "{error}");
        }
        assert!(is_forbidden(&refused(403, "")) && !is_forbidden(&refused(404, "")));
    }
}
