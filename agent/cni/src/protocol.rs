//! What plugin and agent say to each other: one line of JSON each, over a Unix socket.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the agent listens.
pub const SOCKET: &str = "/run/weft/cni.sock";
/// Version of the messages.
pub const VERSION: u32 = 1;
/// Longest message in bytes, either way.
pub const MESSAGE_LIMIT: u64 = 256 << 10;

/// What the runtime asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// A sandbox was made.
    Add,
    /// It goes.
    Del,
    /// Is it as it should be?
    Check,
    /// Only these sandboxes exist.
    Gc,
}

/// What the plugin says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What the runtime asked for.
    pub command: Command,
    /// The sandbox. Empty for [`Command::Gc`].
    #[serde(default)]
    pub container_id: String,
    /// Path of its network namespace.
    #[serde(default)]
    pub netns: String,
    /// Namespace of the pod.
    #[serde(default)]
    pub namespace: String,
    /// Name of the pod.
    #[serde(default)]
    pub pod: String,
    /// Its uid, where the runtime knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The addresses that the plugins before gave it.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The sandboxes that exist, for [`Command::Gc`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
    /// How long the plugin is going to wait, in milliseconds.
    #[serde(default)]
    pub patience_ms: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The pod is in the mesh.
    Enrolled,
    /// It is none of the mesh's.
    NotInMesh,
    /// Taken notice of.
    Done,
    /// It belongs to the mesh and could not be enrolled in time.
    Failed,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Answer {
    /// An answer that needs no reason.
    pub fn new(outcome: Outcome) -> Self {
        Self { outcome, reason: None }
    }

    /// An answer with a reason.
    pub fn because(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self { outcome, reason: Some(reason.into()) }
    }
}
