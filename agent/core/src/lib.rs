//! The pure part of the mesh.
//!
//! Objects as users write them ([`resource`]) are compiled into one immutable [`Snapshot`]; a connection
//! becomes a decision by a pure function over that snapshot ([`decide`]). The proxy, the kernel maps and
//! `weft explain` all ask the same functions.
//!
//! This crate does no I/O and knows no clock, socket, TLS, runtime or Kubernetes client: time and random
//! choice are parameters. `cargo xtask lint` fails when its dependency tree says otherwise.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod access_format;
pub mod analyze;
pub mod compile;
pub mod decide;
pub mod hashing;
pub mod http_path;
pub mod identity;
pub mod kernel_view;
pub mod locality;
pub mod names;
pub mod problem;
pub mod re2;
pub mod resource;
pub mod routing_view;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod visibility;

pub use identity::Identity;
pub use problem::{Problem, Severity};
pub use resource::ObjectRef;
pub use snapshot::Snapshot;
