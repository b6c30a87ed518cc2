//! Decisions: pure functions over one [`Snapshot`](crate::Snapshot).
//!
//! [`inbound`] answers whether a connection may reach a local workload; [`outbound`] answers where a captured
//! connection goes. The proxy executes the answers, `explain` prints them.

pub mod connection;
pub mod ext_authz;
pub mod http;
pub mod inbound;
pub mod outbound;
pub mod protocol;
pub mod request_authentication;

pub use connection::{ConnectionDecision, route_connection, route_connection_traced};
pub use inbound::{
    Audit, AuthorizationDecision, AuthorizationOutcome, DryRun, ExternalCheck, InboundConnection,
    InboundDecision, InboundRequest, Verdict,
};
pub use outbound::{Candidate, Destination, OutboundDecision, Path};
