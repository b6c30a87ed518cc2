//! A mesh on one machine, for tests, demo and bench: "nodes" and "pods" are network namespaces with veth
//! links, processes run in cgroup2 paths shaped like kubelet's, agents run as they do in production.
//!
//! Everything carries the id of its [`Lab`] (`<pid>-<counter>`), so that labs run side by side and whatever
//! one made can be found and removed from its id alone. Removal happens when the `Lab` is dropped; a janitor
//! process does it when the owner dies in any other way (a signal, `SIGKILL`, an abort), because it waits for
//! the end of a pipe that only the owner holds. [`sweep_stale`] removes what is left of dead owners besides.
//!
//! Needs root, iproute2 and util-linux. Has no `unsafe`: processes are placed by `sh` and `nsenter`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod agent;
mod callgrind;
mod capture;
mod cgroup;
mod cleanup;
mod command;
mod config;
mod envoy;
mod http;
mod id;
pub mod jwt;
mod kubernetes;
mod lab;
mod metrics;
mod netns;
mod process;
mod scope;
mod spec;
mod sysctl;
mod topology;
mod usage;
mod wait;
mod watcher;

pub use agent::{Agent, AgentOptions, Controller};
pub use callgrind::{Cost, cost_of};
pub use capture::{Capture, Captured, Packet, TlsProof};
pub use cgroup::{mount_point, populated};
pub use cleanup::{remove_everything, remove_labs_of_this_process, sweep_stale};
pub use command::{output, run, run_with_input};
pub use config::ConfigDir;
pub use envoy::envoy_binary;
pub use http::{Response, get};
pub use id::LabId;
pub use kubernetes::{GoModule, ISTIOD, KUBERNETES, kubernetes_servers};
pub use lab::{Lab, Node, Pod};
pub use metrics::{Metrics, Sample};
pub use netns::within;
pub use process::{Place, Process};
pub use scope::Scope;
pub use spec::{LabSpec, PodSpec};
pub use usage::{
    CpuClock, Others, Usage, anonymous_bytes, cpu_seconds, machine_busy_seconds, peak_resident_bytes,
    resident_bytes, settled_resident_bytes,
};
pub use wait::{eventually, poll_until};
pub use watcher::{Watcher, ms_between, now_ns};
