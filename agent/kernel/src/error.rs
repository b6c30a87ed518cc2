//! What can fail, as operators read it.

use std::io;

/// A failure that keeps the data path from working at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The kernel lacks something; the text names the feature and the version that brought it.
    #[error("{0}")]
    Unsupported(String),
    /// A pinned state that this version cannot take over; the text names the remedy.
    #[error("{0}")]
    IncompatiblePins(String),
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The eBPF library failed.
    #[error("{what}")]
    Bpf {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why one pod could not be enrolled. `Display` is the reason that `weft status` shows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Never enrolled, whatever happens: the host's namespace, the agent's, another pod's, wrong addresses, ….
    #[error("{0}")]
    Refused(String),
    /// What is missing may be there in a moment: the pod's process, its namespace, an address.
    #[error("{0}")]
    NotYet(String),
    /// May work later.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    /// `what` completes the sentence "cannot …".
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, KernelError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, KernelError> {
        self.map_err(|source| KernelError::Io { what: format!("cannot {}", what().into()), source })
    }
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, KernelError> {
        self.map_err(io::Error::from).doing(what)
    }
}

macro_rules! doing_with_bpf {
    ($($error:ty),*) => {$(
        impl<T> Doing<T> for Result<T, $error> {
            fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, KernelError> {
                self.map_err(|source| KernelError::Bpf {
                    what: format!("cannot {}", what().into()),
                    source: Box::new(source),
                })
            }
        }
    )*};
}
doing_with_bpf!(
    aya::EbpfError,
    aya::maps::MapError,
    aya::programs::ProgramError,
    aya::programs::links::LinkError,
    aya::pin::PinError
);
