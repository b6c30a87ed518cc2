//! What the tests of the whole agent share: puppets (processes in pods whose sockets a test moves) and a
//! mesh of two nodes with the usual pods.
//!
//! Tests need root and cgroup2; without them they say so loudly and pass, except in CI (`CI=true`), where
//! that is a failure.
#![forbid(unsafe_code)]

mod kernel;
mod mesh;
pub mod puppet;
pub mod yaml;

pub use kernel::{NetnsState, descriptors};
pub use mesh::{Family, Mesh, Path, SERVICE_PORT, eventually, privileged, usual_spec, value_eventually};
