//! Lines that the programs write when they were built for it (`WEFT_EBPF_DEBUG_LOG=1 cargo xtask build-ebpf`).

use std::fmt;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// Hands the programs' lines to `tracing`.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        tracing::enabled!(tracing::Level::DEBUG)
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Error => tracing::error!("{}", record.args()),
            Level::Warn => tracing::warn!("{}", record.args()),
            Level::Info => tracing::info!("{}", record.args()),
            Level::Debug | Level::Trace => tracing::debug!("{}", record.args()),
        }
    }

    fn flush(&self) {}
}

/// Readers of all objects that have lines to tell. Empty unless the programs were built for it; readers of
/// pods that have gone stay until the agent ends.
#[derive(Default)]
pub(crate) struct DebugLog {
    readers: Vec<EbpfLogger<ToTracing>>,
}

impl DebugLog {
    /// Adds an object, if it has a buffer of lines.
    pub(crate) fn add(&mut self, object: &mut Ebpf) {
        const BUFFER: &str = "AYA_LOGS";
        if object.map(BUFFER).is_none() {
            return;
        }
        match EbpfLogger::init_with_logger(object, ToTracing) {
            Ok(reader) => self.readers.push(reader),
            Err(error) => tracing::warn!(%error, "cannot read the debug lines of the kernel programs"),
        }
    }

    /// Passes on what has been written.
    pub(crate) fn flush(&mut self) {
        self.readers.iter_mut().for_each(EbpfLogger::flush);
    }
}

impl fmt::Debug for DebugLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugLog").field("readers", &self.readers.len()).finish()
    }
}
