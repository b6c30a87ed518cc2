//! `weft-cni`, a chained CNI plugin: a pod's sandbox is ready only when the agent has enrolled the pod, so that the
//! first instruction of its first container is in the mesh already.
//!
//! The plugin changes nothing itself. It tells the agent of the new network namespace over a Unix socket
//! ([`protocol`]), waits, and prints the result of the plugins before it unchanged. While no agent answers, [`rules`]
//! that the agent left beside the plugin say which pods must not start.
//!
//! Specification: CNI 1.1.0 and what is the same since 0.3.0.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod exchange;
pub mod plugin;
pub mod protocol;
pub mod rules;
