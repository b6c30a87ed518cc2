//! HTTP through the whole agent: routing, failing, limits, authorization, streams.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

mod failing;
mod handover;
mod limits;
mod places;
mod readme;
mod routing;
mod security;
mod site;
mod streams;
mod telemetry;
mod visibility;
