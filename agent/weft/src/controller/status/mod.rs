//! What stands in `status` of the users' Istio objects: whether we accept them, and what is wrong with them.
//!
//! One controller writes, the leader ([`super::lease`]). `objects` follows the objects, `surroundings` and `pods` know
//! what the analyzers compare them with, `findings` runs decoder and analyzers, `report` says what the status is to be,
//! and `writer` drives them.

mod findings;
mod kinds;
mod objects;
mod pods;
mod report;
mod surroundings;
mod writer;

pub(super) use report::{Mode, sentence};
pub(super) use writer::{Writer, WriterOptions};
