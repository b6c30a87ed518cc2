//! Certificates of the workloads of this node: where they come from, when they are renewed, how peers are
//! verified.
//!
//! [`CertStore`] is what the proxy uses: for an identity it answers the TLS configurations of the moment.
//! [`CaClient`] is one interface for every CA; [`csr_api`] is the CSR API on a Unix socket and over TLS (client
//! and server), [`ca`] the CA itself. Agents never see a CA key (ruling 9) unless they embed the CA
//! ([`EmbeddedCa`]).
//!
//! Threads: the crate starts no thread. The store's renewals run on the runtime that it is given; reads are
//! atomic pointer loads and may come from any thread. Private keys of workloads live in memory only.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bundle;
pub mod ca;
pub mod csr_api;
mod embedded;
mod fingerprint;
pub mod jwt;
pub mod origination;
mod random;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;

pub use ca::{Ca, CaError, CaMaterial, LiveCa, ServingTls};
pub use embedded::EmbeddedCa;
pub use fingerprint::fingerprint;
pub use store::{CaClient, CertInfo, CertStore, IdentityError, SignedCertificate, TrustedRoot};
pub use tls::{Hbone, PeerVerificationError, explain, key_exchange_group, peer_identity};
