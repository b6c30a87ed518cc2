//! Every metric family of the agent: name, help, labels. The text is part of the contract with dashboards.

use crate::scrape::{Family, Kind};

/// Labels that say who spoke with whom, and those that say how it ended.
macro_rules! labels {
    ($($ended:literal),*) => {
        &[
            "reporter",
            "source_workload",
            "source_workload_namespace",
            "source_principal",
            "source_app",
            "source_version",
            "source_cluster",
            "source_canonical_service",
            "source_canonical_revision",
            "destination_workload",
            "destination_workload_namespace",
            "destination_principal",
            "destination_app",
            "destination_version",
            "destination_cluster",
            "destination_canonical_service",
            "destination_canonical_revision",
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "request_protocol",
            $($ended,)*
        ]
    };
}

/// Labels of a TCP series, in the order in which [`crate::TcpLabels`] renders them (M-3).
pub(crate) const TCP_LABELS: &[&str] = labels!("response_flags", "connection_security_policy");

/// Labels of a series of requests, in the order in which [`crate::RequestLabels`] renders them (M-3).
pub(crate) const REQUEST_LABELS: &[&str] =
    labels!("response_code", "grpc_response_status", "response_flags", "connection_security_policy");

/// Labels of a client workload's cluster (M-9, D-14).
const CLUSTER_LABELS: &[&str] = &["cluster_name", "workload"];

macro_rules! families {
    ($($ident:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $ident: Family =
                Family { name: $name, help: $help, kind: Kind::$kind, labels: &[$($label),*] };
        )*
    };
}

families! {
    REFUSED Counter "weft_refused_total" ["reason", "policy"]
        "Connections and requests that the mesh refused, by reason and by the policy that decided.";
    DRY_RUN Counter "weft_dry_run_total" ["policy", "outcome"]
        "What dry-run policies would have answered.";
    AUDIT Counter "weft_audit_total" ["policy"]
        "Connections and requests that AUDIT policies matched, by policy and rule.";
    POLICY_CUT Counter "weft_policy_cut_total" []
        "Established connections that were cut because a change of policy denies them.";
    PANICS Counter "weft_panics_total" []
        "Panics that were confined to one connection or task.";
    SERIES_OVERFLOW Counter "weft_metric_series_overflow_total" []
        "Lookups of a series beyond the limit; their counts are in the series whose labels are all unknown.";
    TUNNELS_OPEN Gauge "weft_tunnels_open" []
        "HBONE tunnels (TLS connections) that are open, both directions.";
    ACCESS_LOG_LOST Counter "weft_access_log_lost_total" []
        "Access log lines that were lost because the queue was full or the output failed.";
    LOG_LOST Counter "weft_log_lost_total" []
        "Lines of the agent's own log that were lost because the queue was full or the output failed.";
    BUILD_INFO Gauge "weft_build_info" ["version"]
        "1, with the version of the agent.";
    WORKLOADS Gauge "weft_workloads" ["state"]
        "Pods of this node that belong to the mesh, by state.";
    CONNECTIONS_OPEN Gauge "weft_connections_open" ["namespace", "pod"]
        "Connections that the proxy holds open for a pod, both directions.";
    CONFIG_REVISION Gauge "weft_config_revision" []
        "Revision of the configuration in force; counts up with every change.";
    CONFIG_AGE Gauge "weft_config_age_seconds" []
        "Seconds since the configuration in force was compiled; with Kubernetes, since the API server was heard of last.";
    CONFIG_CONNECTED Gauge "weft_config_connected" ["kind"]
        "1 while changes of objects of a kind are heard of, else 0.";
    CONFIG_KIND_AGE Gauge "weft_config_kind_age_seconds" ["kind"]
        "Seconds since the API server was last heard of about a kind.";
    CONFIG_REQUESTS Counter "weft_config_requests_total" ["kind", "verb"]
        "Requests to the API server by kind: list and watch (a streamed list is one of each).";
    CONFIG_WATCH_RESTARTS Counter "weft_config_watch_restarts_total" ["kind"]
        "Watches that were opened again, by kind.";
    CONFIG_UNDECODABLE Counter "weft_config_decode_errors_total" ["kind"]
        "Objects and events of the API server's that could not be decoded, by kind.";
    CONFIG_PROBLEMS Gauge "weft_config_problems" ["severity"]
        "Problems in the configuration in force.";
    CONFIG_OBJECTS Gauge "weft_config_objects" []
        "Objects from which the configuration in force was compiled.";
    CERTIFICATE_EXPIRY Gauge "weft_certificate_expiry_seconds" ["principal"]
        "Seconds until the certificate of an identity expires; negative when it has.";
    KERNEL_EVENTS Counter "weft_kernel_events_total" ["program", "reason"]
        "What the kernel programs counted, by program and reason.";
    KERNEL_MAP_ENTRIES Gauge "weft_kernel_map_entries" ["map"]
        "Entries of a kernel map.";
    KERNEL_MAP_MAX Gauge "weft_kernel_map_entries_max" ["map"]
        "Capacity of a kernel map.";
    PROXY_EVENTS Counter "weft_proxy_events_total" ["reason"]
        "Things that should not happen, as the proxy counted them, by reason.";
    BREAK_GLASS Gauge "weft_break_glass" []
        "1 while capture is switched off for the whole node.";
    PROCESS_RESIDENT Gauge "process_resident_memory_bytes" []
        "Resident memory size in bytes.";
    PROCESS_CPU Counter "process_cpu_seconds_total" []
        "Total user and system CPU time spent in seconds.";
    PROCESS_OPEN_FDS Gauge "process_open_fds" []
        "Number of open file descriptors.";
    PROCESS_MAX_FDS Gauge "process_max_fds" []
        "Maximum number of open file descriptors.";
}

macro_rules! shared_label_families {
    ($labels:expr; $($ident:ident $kind:ident $name:literal $help:literal;)*) => {
        $(pub(crate) const $ident: Family =
            Family { name: $name, help: $help, kind: Kind::$kind, labels: $labels };)*
    };
}

shared_label_families! { REQUEST_LABELS;
    REQUESTS Counter "istio_requests_total" "Requests.";
    REQUEST_DURATION Histogram "istio_request_duration_milliseconds" "How long requests took, in milliseconds.";
    REQUEST_BYTES Histogram "istio_request_bytes" "Sizes of requests, headers and body.";
    RESPONSE_BYTES Histogram "istio_response_bytes" "Sizes of answers, headers and body.";
    REQUEST_MESSAGES Counter "istio_request_messages_total" "gRPC messages that clients sent.";
    RESPONSE_MESSAGES Counter "istio_response_messages_total" "gRPC messages that servers sent.";
}

/// Everything that a series of requests shows.
pub(crate) const OF_REQUESTS: [&Family; 6] =
    [&REQUESTS, &REQUEST_DURATION, &REQUEST_BYTES, &RESPONSE_BYTES, &REQUEST_MESSAGES, &RESPONSE_MESSAGES];

families! {
    CLUSTER_CLASSES Counter "envoy_cluster_upstream_rq_xx" ["cluster_name", "workload", "response_code_class"]
        "Answers of a cluster to a client workload, by class of status.";
}

shared_label_families! { CLUSTER_LABELS;
    CLUSTER_REQUESTS Counter "envoy_cluster_upstream_rq_total" "Requests sent to a cluster, each try on its own.";
    CLUSTER_COMPLETED Counter "envoy_cluster_upstream_rq_completed" "Requests that the cluster answered.";
    CLUSTER_PENDING Counter "envoy_cluster_upstream_rq_pending_total" "Requests that waited for a connection.";
    CLUSTER_PENDING_OVERFLOW Counter "envoy_cluster_upstream_rq_pending_overflow"
        "Requests that were refused because too many waited for a connection (http1MaxPendingRequests).";
    CLUSTER_ACTIVE_OVERFLOW Counter "envoy_cluster_upstream_rq_active_overflow"
        "Requests that were refused because too many were outstanding (http2MaxRequests).";
    CLUSTER_RETRY Counter "envoy_cluster_upstream_rq_retry" "Requests that were tried again.";
    CLUSTER_RETRY_OVERFLOW Counter "envoy_cluster_upstream_rq_retry_overflow"
        "Requests that were not tried again because too many were (maxRetries).";
    CLUSTER_TIMEOUT Counter "envoy_cluster_upstream_rq_timeout" "Requests that met the route's timeout.";
    CLUSTER_PER_TRY_TIMEOUT Counter "envoy_cluster_upstream_rq_per_try_timeout" "Tries that met their own timeout.";
    CLUSTER_CONNECTIONS Counter "envoy_cluster_upstream_cx_total" "Connections made to a cluster.";
    CLUSTER_CONNECTION_OVERFLOW Counter "envoy_cluster_upstream_cx_overflow"
        "Times that a connection was wanted beyond the limit (maxConnections).";
    CLUSTER_CONNECT_FAILURE Counter "envoy_cluster_upstream_cx_connect_fail" "Connections that could not be made.";
    CLUSTER_TLS_FAILURE Counter "envoy_cluster_ssl_connection_error"
        "Times that TLS which a policy asks for did not come about.";
    CLUSTER_EJECTED Gauge "envoy_cluster_outlier_detection_ejections_active" "Endpoints that are ejected now.";
    CLUSTER_EJECTIONS Counter "envoy_cluster_outlier_detection_ejections_enforced_total" "Ejections of endpoints.";
    CLUSTER_EJECTION_OVERFLOW Counter "envoy_cluster_outlier_detection_ejections_overflow"
        "Endpoints that were not ejected because too many were (maxEjectionPercent).";
}

shared_label_families! { TCP_LABELS;
    TCP_OPENED Counter "istio_tcp_connections_opened_total" "TCP connections opened.";
    TCP_CLOSED Counter "istio_tcp_connections_closed_total" "TCP connections closed.";
    TCP_FAILED Counter "istio_tcp_connections_failed_total" "TCP connections that were refused or failed.";
    TCP_SENT Counter "istio_tcp_sent_bytes_total" "Bytes that servers sent to clients.";
    TCP_RECEIVED Counter "istio_tcp_received_bytes_total" "Bytes that servers received from clients.";
}
