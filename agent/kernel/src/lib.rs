//! Everything that touches the kernel's side of the mesh: eBPF programs and maps, network namespaces,
//! policy routes, socket destruction.
//!
//! The only crate of the agent with `unsafe` code. It takes a [`weft_core::kernel_view::KernelView`] and
//! makes the maps say it; it takes no decision of its own.
#![warn(missing_docs)]

pub mod datapath;
pub mod netns;

pub use datapath::{
    Applied, AttestedPeer, CleanupReport, CounterValue, Cut, Datapath, DatapathConfig, DirectFlowTotals, EnrolError,
    Enrolled, FlowRecord, KernelError, MapUse, OnwardTuples, PodToEnrol, Tuples,
};
pub use netns::Netns;
