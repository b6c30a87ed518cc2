//! Configuration sources and the single writer of the snapshot.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod codes;
pub mod decode;
pub mod directory;
pub mod writer;

pub use directory::{DirectoryOptions, Handle, Loaded, StartError, analyze, load, start};
pub use writer::{Published, Status};
