//! Runs a command in an agent's container.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::AttachParams;
use kube::{Api, Error};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::{Agent, Cluster};
use crate::output::chain;

/// A dump of a large mesh takes a while.
const LIMIT: Duration = Duration::from_secs(60);
/// Room for what is on its way: with kube's 1 KiB a dump takes minutes.
const BUFFER: usize = 256 << 10;

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Ran {
    pub(in super::super) stdout: Vec<u8>,
    pub(in super::super) stderr: String,
    /// 0 when it succeeded; `None` when it did not even start.
    pub(in super::super) code: Option<i32>,
    /// What the kubelet said about it.
    message: String,
}

impl Ran {
    /// The answer, of a command that came to one: exit status 1 is an answer, too.
    pub(in super::super) fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        if !matches!(self.code, Some(0 | 1)) || self.stdout.is_empty() {
            let said = self.stderr.trim();
            bail!("{}", if said.is_empty() { self.message.trim() } else { said });
        }
        serde_json::from_slice(&self.stdout).context("the agent's answer is not of this version")
    }
}

impl Cluster {
    /// Runs a command in an agent's container, with `input` as its standard input.
    pub(in super::super) async fn exec(
        &self,
        agent: &Agent,
        command: &[&str],
        input: Option<&[u8]>,
    ) -> anyhow::Result<Ran> {
        let run = tokio::time::timeout(LIMIT, self.exec_patiently(agent, command, input)).await;
        run.with_context(|| format!("the agent did not answer within {} s", LIMIT.as_secs()))?
    }

    async fn exec_patiently(
        &self,
        agent: &Agent,
        command: &[&str],
        input: Option<&[u8]>,
    ) -> anyhow::Result<Ran> {
        let pods: Api<Pod> = Api::namespaced(self.client().clone(), self.system());
        let how = AttachParams::default()
            .container(&agent.container)
            .stdin(input.is_some())
            .stdout(true)
            .stderr(true)
            .max_stdout_buf_size(BUFFER);
        let process = pods.exec(&agent.pod, command.iter().copied(), &how).await;
        let mut process = process.map_err(|error| cannot_run(&agent.pod, &error))?;
        let status = process.take_status();
        let (stdin, stdout, stderr) = (process.stdin(), process.stdout(), process.stderr());
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A command that ends early does not read it all, and says why on its standard error.
                let _ = stdin.write_all(input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(feed, all_of(stdout), all_of(stderr));
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        Ok(Ran {
            stdout: stdout?,
            stderr: String::from_utf8_lossy(&stderr?).into_owned(),
            code: status.as_ref().and_then(exit_code),
            message: status.and_then(|status| status.message).unwrap_or_default(),
        })
    }
}

async fn all_of(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut all).await?;
    }
    Ok(all)
}

/// The kubelet tells the exit status among the causes.
fn exit_code(status: &Status) -> Option<i32> {
    if status.status.as_deref() == Some("Success") {
        return Some(0);
    }
    let causes = status.details.as_ref().and_then(|details| details.causes.as_deref()).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    code.and_then(|cause| cause.message.as_deref()?.parse().ok())
}

fn cannot_run(pod: &str, error: &Error) -> anyhow::Error {
    let text = chain(error);
    if super::is_forbidden(error) || text.contains("403") {
        return anyhow!(
            "you may not run commands in the pod {pod} (pods/exec); ask for that permission, or use --from-cluster \
             where a command has it"
        );
    }
    anyhow!("nothing can be run in the pod {pod}: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Status {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn exit_codes_are_read_from_what_the_kubelet_says() {
        assert_eq!(exit_code(&status(r#"{"status": "Success"}"#)), Some(0));
        let failed = r#"{"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "1"}]}}"#;
        assert_eq!(exit_code(&status(failed)), Some(1));
        let not_started = r#"{"status": "Failure", "reason": "InternalError", "message": "no such file"}"#;
        assert_eq!(exit_code(&status(not_started)), None);
    }

    #[test]
    fn bad_news_is_an_answer_and_a_failure_is_told_in_its_own_words() {
        let ran = |code, stdout: &str, stderr: &str| Ran {
            stdout: stdout.into(),
            stderr: stderr.into(),
            code,
            message: "command terminated".into(),
        };
        assert_eq!(ran(Some(1), "[1]", "").json::<Vec<u8>>().unwrap(), [1]);
        let error = ran(Some(2), "", "weft: no agent answers\n").json::<Vec<u8>>().unwrap_err();
        assert_eq!(error.to_string(), "weft: no agent answers");
        let error = ran(None, "", "").json::<Vec<u8>>().unwrap_err();
        assert_eq!(error.to_string(), "command terminated");
        assert!(ran(Some(0), "{", "").json::<Vec<u8>>().unwrap_err().to_string().contains("version"));
    }
}
