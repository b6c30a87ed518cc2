//! Certificates of the workloads of this node: where they come from, when they are renewed, how peers are
//! verified.
//!
//! [`CertStore`] is what the proxy uses: for an identity it answers the TLS configurations of the moment.
//! [`CaClient`] is one interface for every CA; [`csr_api`] is the CSR API on a Unix socket (client and
//! server), [`ca`] the CA itself. Agents never see a CA key (ruling 9) unless they embed the CA.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod ca;
pub mod csr_api;
pub mod store;
pub mod tls;

pub use ca::{Ca, CaError};
pub use store::{CaClient, CertInfo, CertStore, IdentityError, SignedCertificate};
pub use tls::{Hbone, PeerVerificationError, peer_identity};
