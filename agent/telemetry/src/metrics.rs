//! The metric families and their handles.

use std::sync::Arc;

use weft_core::snapshot::WorkloadLabels;

/// `reporter` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// Seen at the client.
    Source,
    /// Seen at the server.
    Destination,
}

/// `connection_security_policy` label (M-4: always `unknown` where the client reports).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// TLS carried the bytes.
    MutualTls,
    /// It did not.
    None,
    /// Not for this reporter to say.
    Unknown,
}

/// The labels of one TCP series (M-3); absent workloads become `unknown` (M-4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    /// Who reports.
    pub reporter: Reporter,
    /// The client's workload.
    pub source: Option<Arc<WorkloadLabels>>,
    /// Its authenticated principal, `spiffe://…`; `unknown` without mTLS or kernel attestation.
    pub source_principal: Option<Arc<str>>,
    /// The server's workload.
    pub destination: Option<Arc<WorkloadLabels>>,
    /// Its principal.
    pub destination_principal: Option<Arc<str>>,
    /// `destination_service`: the Service's host, or what M-8 says.
    pub service: Arc<str>,
    /// `destination_service_name`.
    pub service_name: Arc<str>,
    /// `destination_service_namespace`.
    pub service_namespace: Arc<str>,
    /// `response_flags`.
    pub flags: &'static str,
    /// `connection_security_policy`.
    pub security: SecurityPolicy,
}

/// Counters of one series. Cheap to clone. `sent` and `received` are from the server's view (M-2):
/// received is what the client sent.
#[derive(Debug, Clone)]
pub struct TcpSeries {}

impl TcpSeries {
    /// A connection was opened.
    pub fn opened(&self) {}
    /// A connection was closed.
    pub fn closed(&self) {}
    /// Bytes from client to server.
    pub fn add_received(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Bytes from server to client.
    pub fn add_sent(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// All metrics of the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {}

impl Metrics {
    /// An empty registry with the agent's own families in it.
    pub fn new() -> Self {
        Self {}
    }

    /// The handle of a TCP series; created on first use.
    pub fn tcp(&self, labels: &TcpLabels) -> TcpSeries {
        let _ = labels;
        TcpSeries {}
    }

    /// A connection failed or was refused: `istio_tcp_connections_failed_total` with the same labels, and
    /// `weft_refused_total{reason,policy}` for refusals.
    pub fn failed(&self, labels: &TcpLabels, reason: &'static str, policy: Option<&str>) {
        let _ = (labels, reason, policy);
    }

    /// Text 0.0.4.
    pub fn render(&self) -> String {
        String::new()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
