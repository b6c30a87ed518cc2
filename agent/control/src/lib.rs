//! Configuration sources and the single writer of the snapshot.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod codes;
pub mod decode;
pub mod directory;
mod handle;
pub mod kubernetes;
pub mod writer;

pub use directory::{DirectoryOptions, Loaded, StartError, analyze, load, start};
pub use handle::Handle;
pub use kubernetes::KubernetesOptions;
pub use writer::{Published, Status};
