//! One call of the runtime.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use serde_json::value::RawValue;

use crate::config::{self, Config};
use crate::exchange::ask;
use crate::protocol::{Answer, Command, Outcome, Request, SOCKET, VERSION};
use crate::rules::{self, Rules};

/// Versions of the specification, newest last. All are the same for a plugin that passes the result on.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

const PATIENCE: Duration = Duration::from_secs(10);
/// For news that the agent can do without.
const NEWS_PATIENCE: Duration = Duration::from_secs(1);

/// Error codes of the specification.
mod code {
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const INVALID_CONFIG: u32 = 7;
    pub(super) const TRY_AGAIN_LATER: u32 = 11;
}

/// How the runtime calls: the variables `CNI_…`.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// The file of [`crate::rules`], unless the configuration names another one.
    pub rules: PathBuf,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let var = |name: &str| {
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let program = std::env::current_exe().unwrap_or_default();
        Self {
            command: var("CNI_COMMAND"),
            container_id: var("CNI_CONTAINERID"),
            netns: var("CNI_NETNS"),
            args: var("CNI_ARGS"),
            rules: program.with_file_name(rules::FILE),
        }
    }
}

/// What the runtime gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// For standard output.
    pub output: String,
    /// Exit status 0.
    pub success: bool,
}

impl Reply {
    fn success(output: impl Into<String>) -> Self {
        Self { output: output.into(), success: true }
    }
}

/// Does what the runtime asks for.
pub fn run(environment: &Environment, stdin: &[u8]) -> Reply {
    let config = serde_json::from_slice::<Config>(stdin);
    let version = config.as_ref().ok().and_then(|config| config.cni_version.clone());
    let call = Call { environment, version };
    match (environment.command.as_str(), config) {
        ("VERSION", _) => call.versions(),
        // Whatever is wrong must not keep a pod from going.
        ("DEL", Ok(config)) => call.delete(&config),
        ("GC", Ok(config)) => call.collect(&config),
        ("DEL" | "GC", Err(_)) => Reply::success(""),
        // Without a network the runtime could not start the agent itself: this plugin is never a reason.
        ("STATUS", _) => Reply::success(""),
        ("ADD" | "CHECK", Err(error)) => call.error(
            code::INVALID_CONFIG,
            "the configuration on standard input is not one of the CNI",
            &error.to_string(),
        ),
        ("ADD", Ok(config)) => call.add(&config),
        ("CHECK", Ok(config)) => call.check(&config),
        (other, _) => call.error(
            code::INVALID_ENVIRONMENT,
            &format!("weft-cni {} is a CNI plugin that container runtimes call", env!("CARGO_PKG_VERSION")),
            &format!("CNI_COMMAND is {other:?}, not one of ADD, DEL, CHECK, GC, STATUS, VERSION"),
        ),
    }
}

struct Call<'a> {
    environment: &'a Environment,
    /// As the configuration has it; that of answers.
    version: Option<String>,
}

/// The pod that a call is about.
struct Pod<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: Option<&'a str>,
}

impl Call<'_> {
    fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("0.3.1")
    }

    fn versions(&self) -> Reply {
        let [.., newest] = VERSIONS;
        let version = self.version.as_deref().unwrap_or(newest);
        Reply::success(json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string())
    }

    fn error(&self, code: u32, message: &str, details: &str) -> Reply {
        let text = json!({ "cniVersion": self.version(), "code": code, "msg": message, "details": details });
        Reply { output: text.to_string(), success: false }
    }

    fn request(&self, command: Command, pod: Option<&Pod<'_>>) -> Request {
        Request {
            version: VERSION,
            command,
            container_id: self.environment.container_id.clone(),
            netns: self.environment.netns.clone(),
            namespace: pod.map(|pod| pod.namespace.to_owned()).unwrap_or_default(),
            pod: pod.map(|pod| pod.name.to_owned()).unwrap_or_default(),
            uid: pod.and_then(|pod| pod.uid).map(str::to_owned),
            ips: Vec::new(),
            keep: Vec::new(),
            patience_ms: 0,
        }
    }

    /// The pod, where the call is about one.
    fn pod(&self) -> Option<Pod<'_>> {
        let args = config::arguments(&self.environment.args);
        let arg = |name: &str| args.get(name).copied().filter(|value| !value.is_empty());
        Some(Pod {
            namespace: arg("K8S_POD_NAMESPACE")?,
            name: arg("K8S_POD_NAME")?,
            uid: arg("K8S_POD_UID"),
        })
    }

    /// What ADD and CHECK need; the error is the reply.
    fn previous<'c>(&self, config: &'c Config) -> Result<&'c RawValue, Reply> {
        if !VERSIONS.contains(&self.version()) {
            let details = format!("supported are {}", VERSIONS.join(", "));
            let message = format!("weft-cni does not know version {} of the CNI", self.version());
            return Err(self.error(code::INCOMPATIBLE_VERSION, &message, &details));
        }
        config.prev_result.as_deref().filter(|result| result.get() != "null").ok_or_else(|| {
            let message = "weft-cni must come after the plugin that makes the pod's network";
            self.error(code::INVALID_CONFIG, message, "the configuration has no prevResult")
        })
    }

    fn add(&self, config: &Config) -> Reply {
        let previous = match self.previous(config) {
            Ok(previous) => previous,
            Err(reply) => return reply,
        };
        let unchanged = || Reply::success(previous.get());
        // Sandboxes of no pod are nobody's.
        let Some(pod) = self.pod() else { return unchanged() };
        if self.environment.container_id.is_empty() || self.environment.netns.is_empty() {
            let details = "CNI_CONTAINERID or CNI_NETNS is not set";
            return self.error(
                code::INVALID_ENVIRONMENT,
                "the runtime does not say which sandbox it means",
                details,
            );
        }
        let Some(ips) = config::addresses(previous) else {
            let details = "prevResult is not a result of the CNI";
            return self.error(code::INVALID_CONFIG, "the plugins before made no network", details);
        };
        if is_exempt(config, &pod) {
            // The agent may learn of it, but is not waited for.
            return unchanged();
        }
        let request = Request { ips, ..self.request(Command::Add, Some(&pod)) };
        let held_back = self.rules(config).holds_back(pod.namespace, pod.name);
        let deadline = Instant::now() + patience(config);
        match ask(&socket(config), &request, deadline, held_back) {
            Ok(Answer { outcome: Outcome::Enrolled | Outcome::NotInMesh | Outcome::Done, .. }) => unchanged(),
            Ok(Answer { outcome: Outcome::Failed, reason }) => self.not_enrolled(&pod, reason),
            Err(_) if !held_back => unchanged(),
            Err(failure) => self.no_agent(config, &pod, &failure),
        }
    }

    fn not_enrolled(&self, pod: &Pod<'_>, reason: Option<String>) -> Reply {
        let message =
            format!("pod {}/{} belongs to the mesh and could not be enrolled", pod.namespace, pod.name);
        let reason = reason.unwrap_or_else(|| "the Weft agent of this node gives no reason".to_owned());
        self.error(code::TRY_AGAIN_LATER, &message, &reason)
    }

    fn no_agent(&self, config: &Config, pod: &Pod<'_>, failure: &str) -> Reply {
        let message = format!(
            "pod {}/{} belongs to the mesh, and no Weft agent answers on this node: it would start unprotected",
            pod.namespace, pod.name
        );
        let details = format!(
            "{}: {failure}; look at `kubectl -n weft-system get pods -o wide`, or take the namespace out of the mesh \
             with `kubectl label namespace {} weft.dev/mesh-`",
            socket(config).display(),
            pod.namespace
        );
        self.error(code::TRY_AGAIN_LATER, &message, &details)
    }

    fn check(&self, config: &Config) -> Reply {
        if let Err(reply) = self.previous(config) {
            return reply;
        }
        let Some(pod) = self.pod().filter(|pod| !is_exempt(config, pod)) else { return Reply::success("") };
        let request = self.request(Command::Check, Some(&pod));
        match ask(&socket(config), &request, Instant::now() + NEWS_PATIENCE, false) {
            Ok(Answer { outcome: Outcome::Failed, reason }) => self.not_enrolled(&pod, reason),
            // What is enrolled stays so without an agent.
            Ok(_) | Err(_) => Reply::success(""),
        }
    }

    fn delete(&self, config: &Config) -> Reply {
        if !self.environment.container_id.is_empty() {
            self.tell(config, &self.request(Command::Del, self.pod().as_ref()));
        }
        Reply::success("")
    }

    fn collect(&self, config: &Config) -> Reply {
        let keep =
            config.valid_attachments.iter().map(|attachment| attachment.container_id.clone()).collect();
        self.tell(config, &Request { keep, ..self.request(Command::Gc, None) });
        Reply::success("")
    }

    /// The agent finds out by itself as well, later.
    fn tell(&self, config: &Config, request: &Request) {
        let _ = ask(&socket(config), request, Instant::now() + NEWS_PATIENCE, false);
    }

    fn rules(&self, config: &Config) -> Rules {
        Rules::read(&config.rules.as_ref().map_or_else(|| self.environment.rules.clone(), PathBuf::from))
    }
}

fn is_exempt(config: &Config, pod: &Pod<'_>) -> bool {
    rules::EXEMPT.contains(&pod.namespace)
        || config.exclude_namespaces.iter().any(|name| name == pod.namespace)
}

fn socket(config: &Config) -> PathBuf {
    config.socket.as_deref().unwrap_or(SOCKET).into()
}

fn patience(config: &Config) -> Duration {
    config.timeout_seconds.map_or(PATIENCE, |seconds| Duration::from_secs(seconds.clamp(1, 300)))
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
mod tests;
