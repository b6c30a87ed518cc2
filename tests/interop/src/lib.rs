//! What the tests against foreign peers share: a real Envoy, certificates of every kind from the mesh's own
//! authority, and the comparison of Envoy and ztunnel with us.
#![forbid(unsafe_code)]

mod answer;
mod authority;
mod differences;
mod envoy;
mod sidecars;
mod ztunnel;

pub use answer::{Difference, compare};
pub use authority::{Authority, Credentials};
pub use differences::Differences;
pub use envoy::{Envoy, EnvoyBinary, client_config, server_config};
pub use sidecars::{Application, Fixture, Sidecars};
pub use ztunnel::{Connection, Told};
