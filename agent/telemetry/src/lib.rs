//! Metrics (Prometheus text 0.0.4, Istio's names and labels) and the access log.
//!
//! Series are looked up once per connection ([`Metrics::tcp`]); counting is an atomic addition on the handle.
//! The access log is written by a thread of its own through a bounded queue; what does not fit is counted.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod metrics;

pub use access::{AccessLog, AccessLogFormat, ConnectionLog, Direction};
pub use metrics::{Metrics, Reporter, SecurityPolicy, TcpLabels, TcpSeries};
