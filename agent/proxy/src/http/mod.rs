//! HTTP through the node: the server's side of connections, the exchange of one request, and what the mesh
//! answers itself.
//!
//! A connection is driven by one task; a request runs inside it (HTTP/1) or in a task of its stream (HTTP/2).
//! Bodies stream; nothing is buffered but what a retry may need.

pub(crate) mod body;
pub(crate) mod stream;
pub(crate) mod upstream;
