//! HTTP through the node: the server's side of connections, the exchange of one request, and what the mesh
//! answers itself.
//!
//! A connection is driven by one task; a request runs inside it (HTTP/1) or in a task of its stream (HTTP/2).
//! Bodies stream; nothing is buffered but what a retry or a mirror may need.

mod ahead;
pub(crate) mod body;
mod call;
pub(crate) mod detect;
pub(crate) mod exchange;
mod expectation;
mod external;
mod failure;
pub(crate) mod flags;
pub(crate) mod forward;
mod h1;
pub(crate) mod headers;
pub(crate) mod inbound;
pub(crate) mod io;
pub(crate) mod keys;
pub(crate) mod message;
mod mirror;
mod outcall;
mod parting;
mod received;
pub(crate) mod record;
mod refused;
pub(crate) mod reply;
mod sendable;
pub(crate) mod serve;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
mod traffic;
pub(crate) mod upload;
pub(crate) mod upstream;
