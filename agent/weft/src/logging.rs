//! The agent's own log: standard error, so that standard output is the access log's.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};
use weft_telemetry::Lines;

/// How long the end waits until everything is written.
const FLUSH: Duration = Duration::from_secs(2);

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
    lines: Lines,
}

impl LogLevel {
    /// A handle without a log, for tests.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        let (_, handle) = reload::Layer::new(EnvFilter::default());
        Self { handle, lines: Lines::to("log", Box::new(io::sink()), Duration::ZERO) }
    }

    /// Lines that were lost because nobody read them.
    pub(crate) fn lost(&self) -> u64 {
        self.lines.lost()
    }

    /// Sets the filter: a level, or directives such as `info,weft_proxy=debug`.
    pub(crate) fn set(&self, directives: &str) -> anyhow::Result<()> {
        let filter = parse(directives)?;
        self.handle.reload(filter).context("the log has no filter any more")
    }
}

/// Standard error, without ever waiting for whoever reads it: a log collector that stands still stops no traffic.
struct StandardError(Lines);

/// Takes one line.
struct Line<'a> {
    lines: &'a Lines,
    urgent: bool,
}

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: &self.0, urgent: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line { lines: &self.0, urgent: *metadata.level() <= Level::WARN }
    }
}

impl Write for Line<'_> {
    /// Whole lines are written at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.push(line, self.urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what is still to be written when it goes.
pub(crate) struct LastWords(Lines);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.flush(FLUSH);
    }
}

/// Starts an agent's log, until the second value goes.
pub(crate) fn start(directives: &str, format: LogFormat) -> anyhow::Result<(LogLevel, LastWords)> {
    let lines = Lines::to("log", Box::new(io::stderr()), Duration::ZERO);
    let handle = install(directives, format, BoxMakeWriter::new(StandardError(lines.clone())))?;
    Ok((LogLevel { handle, lines: lines.clone() }, LastWords(lines)))
}

/// Starts a controller's log. Who has something to say waits until it is written: an audit loses nothing, and no traffic
/// depends on it.
pub(crate) fn start_lossless(directives: &str, format: LogFormat) -> anyhow::Result<()> {
    install(directives, format, BoxMakeWriter::new(io::stderr)).map(drop)
}

fn install(
    directives: &str,
    format: LogFormat,
    writer: BoxMakeWriter,
) -> anyhow::Result<reload::Handle<EnvFilter, Registry>> {
    let (filter, handle) = reload::Layer::new(parse(directives)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            registry.with(fmt::layer().with_writer(writer).with_ansi(ansi)).try_init()
        }
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(writer)).try_init()
        }
    }
    .context("logging was started twice")?;
    Ok(handle)
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
