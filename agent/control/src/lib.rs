//! Configuration sources and the single writer of the snapshot.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod codes;
pub mod decode;
