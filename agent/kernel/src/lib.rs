//! Everything that touches the kernel's side of the mesh: eBPF programs and maps, network namespaces,
//! policy routes, socket destruction.
//!
//! The only crate of the agent with `unsafe` code. It takes a [`weft_core::kernel_view::KernelView`] and
//! makes the maps say it; it takes no decision of its own.
//!
//! # Architecture
//!
//! [`Datapath`] owns everything that is pinned. Below it, one module per concern: `probe` (what the kernel
//! can), `bpffs`, `lock` and `pins` (where state lives and whether it may be taken over), `load` (programs and
//! links), `view` and `maps` (wanted and actual content), `admit` and `enrol` (one pod's namespace), `inheritance`
//! and `agents` (what one agent leaves to the next), `others` (programs that are not ours), `netlink`, `route` and `diag` (rtnetlink and sock_diag), `flows` (direct flows), `cleanup` (all of it undone).
#![warn(missing_docs)]

mod admit;
mod agents;
mod bpffs;
mod cgroup;
mod cleanup;
mod counters;
pub mod datapath;
mod debug_log;
mod diag;
mod enrol;
mod error;
mod flows;
mod handles;
mod inheritance;
mod load;
mod lock;
mod maps;
mod netlink;
pub mod netns;
mod older;
mod others;
mod pins;
mod probe;
pub mod processes;
pub mod program;
mod route;
#[cfg(test)]
mod steer_tests;
mod sys;
mod sysctl;
mod tables;
mod view;
mod watch;

pub use cleanup::CleanupReport;
pub use datapath::{Applied, CounterValue, Cut, Datapath, DatapathConfig, Enrolled, MapUse, PodToEnrol};
pub use error::{EnrolError, KernelError};
pub use flows::{DirectFlowEvent, DirectFlowTotals, FlowEventKind, FlowEvents, FlowRecord};
pub use handles::{AttestedPeer, OnwardTuples, Tuples};
pub use inheritance::{Inheritance, Listeners};
pub use netns::Netns;
pub use older::OlderConnection;
pub use others::EarlierProgram;
pub use probe::missing_features;
pub use processes::{PodProcess, ProcessTable, Processes};
pub use watch::NamespaceChanges;
