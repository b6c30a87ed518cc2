//! What the tests against foreign peers share: a real Envoy, and certificates of every kind from the mesh's own
//! authority.
#![forbid(unsafe_code)]

mod authority;
mod envoy;

pub use authority::{Authority, Credentials};
pub use envoy::{Envoy, EnvoyBinary, client_config, server_config};
