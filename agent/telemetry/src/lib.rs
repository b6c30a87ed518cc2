//! Metrics (Prometheus text 0.0.4, Istio's names and labels) and the access log.
//!
//! Series are looked up once per connection ([`Metrics::tcp`], [`Metrics::http`], [`Metrics::cluster`]); counting is an
//! atomic addition on the handle.
//! What is not counted but measured (map use, certificates, pods) is asked for when somebody scrapes
//! ([`Metrics::on_scrape`]). The access log, and the agent's own, are each written by a thread of
//! their own through a bounded queue ([`Lines`]); what does not fit is counted.
//!
//! This crate opens no socket: the binary serves [`Metrics::pieces`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod cluster;
mod custom;
pub mod families;
mod format;
pub mod http;
pub mod lines;
pub mod metrics;
mod scrape;
mod table;
mod unknown_hosts;

pub use access::{AccessLog, AccessLogFormat, ConnectionLog, Direction, LogText, NotedHeaders, RequestLog};
pub use cluster::{ClusterCounters, ClusterEvent};
pub use custom::{WantedHeaders, time};
pub use http::{RequestLabels, RequestProtocol, RequestSample, RequestSeries};
pub use lines::Lines;
pub use metrics::{Limits, Metrics, Pieces, Reporter, SecurityPolicy, TcpDelta, TcpLabels, TcpSeries};
pub use scrape::{Family, Kind, ScrapeSink};
