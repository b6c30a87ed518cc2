//! The agent's own log: standard error, so that standard output is the access log's.

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Changes the level while the process runs.
#[derive(Clone)]
pub(crate) struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl LogLevel {
    /// A handle without a log, for tests.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        let (_, handle) = reload::Layer::new(EnvFilter::default());
        Self { handle }
    }

    /// Sets the filter: a level, or directives such as `info,weft_proxy=debug`.
    pub(crate) fn set(&self, directives: &str) -> anyhow::Result<()> {
        let filter = parse(directives)?;
        self.handle.reload(filter).context("the log has no filter any more")
    }
}

/// Starts logging.
pub(crate) fn start(directives: &str, format: LogFormat) -> anyhow::Result<LogLevel> {
    let (filter, handle) = reload::Layer::new(parse(directives)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(ansi)).try_init()
        }
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
    }
    .context("logging was started twice")?;
    Ok(LogLevel { handle })
}

/// Libraries that say more than they should. Kube logs every failed try as an error; what that means is told by those
/// who try: an API server that is away for a night is one line, not thousands. H2 warns of what clients do, who could
/// fill a disk by it; that is counted. Whoever names them in the directives hears them all the same.
const QUIET: &str = "kube_client=off,h2=error";

fn parse(directives: &str) -> anyhow::Result<EnvFilter> {
    let all = if directives.trim().is_empty() { QUIET.to_owned() } else { format!("{QUIET},{directives}") };
    EnvFilter::try_new(all).with_context(|| {
        format!("`{directives}` is no log level; write error, warn, info, debug or trace, or directives such as info,weft_proxy=debug")
    })
}
