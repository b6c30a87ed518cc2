//! Every metric family of the agent: name, help, labels. The text is part of the contract with dashboards.

use crate::scrape::{Family, Kind};

/// Labels of a TCP series, in the order in which [`crate::TcpLabels`] renders them (M-3).
pub(crate) const TCP_LABELS: &[&str] = &[
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
    "response_flags",
    "connection_security_policy",
];

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
        "Connections that the mesh refused, by reason and by the policy that decided.";
    DRY_RUN Counter "weft_dry_run_total" ["policy", "outcome"]
        "What dry-run policies would have answered.";
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
    BUILD_INFO Gauge "weft_build_info" ["version"]
        "1, with the version of the agent.";
    WORKLOADS Gauge "weft_workloads" ["state"]
        "Pods of this node that belong to the mesh, by state.";
    CONNECTIONS_OPEN Gauge "weft_connections_open" ["namespace", "pod"]
        "Connections that the proxy holds open for a pod, both directions.";
    CONFIG_REVISION Gauge "weft_config_revision" []
        "Revision of the configuration in force; counts up with every change.";
    CONFIG_AGE Gauge "weft_config_age_seconds" []
        "Seconds since the configuration in force was compiled.";
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

macro_rules! tcp_families {
    ($($ident:ident $name:literal $help:literal;)*) => {
        $(pub(crate) const $ident: Family =
            Family { name: $name, help: $help, kind: Kind::Counter, labels: TCP_LABELS };)*
    };
}

tcp_families! {
    TCP_OPENED "istio_tcp_connections_opened_total" "TCP connections opened.";
    TCP_CLOSED "istio_tcp_connections_closed_total" "TCP connections closed.";
    TCP_FAILED "istio_tcp_connections_failed_total" "TCP connections that were refused or failed.";
    TCP_SENT "istio_tcp_sent_bytes_total" "Bytes that servers sent to clients.";
    TCP_RECEIVED "istio_tcp_received_bytes_total" "Bytes that servers received from clients.";
}
