use std::time::Instant;

use super::*;
use crate::{ClusterEvent, Limits, Metrics};

fn workload(name: &str, version: &str) -> Arc<WorkloadLabels> {
    Arc::new(WorkloadLabels {
        workload: format!("{name}-{version}").into(),
        namespace: "books".into(),
        principal: format!("spiffe://cluster.local/ns/books/sa/{name}").into(),
        app: name.into(),
        version: version.into(),
        canonical_service: name.into(),
        canonical_revision: version.into(),
    })
}

fn labels(reporter: Reporter) -> RequestLabels {
    RequestLabels {
        reporter,
        source: Some(workload("productpage", "v1")),
        source_principal: Some("spiffe://cluster.local/ns/books/sa/productpage".into()),
        destination: Some(workload("reviews", "v2")),
        destination_principal: Some("spiffe://cluster.local/ns/books/sa/reviews".into()),
        service: "reviews.books.svc.cluster.local".into(),
        service_name: "reviews".into(),
        service_namespace: "books".into(),
        protocol: RequestProtocol::Http,
        security: SecurityPolicy::Unknown,
    }
}

fn sample() -> RequestSample {
    RequestSample {
        status: 200,
        grpc_status: None,
        flags: "-",
        duration: Duration::from_micros(1_500),
        request_bytes: 300,
        response_bytes: 4_000,
        request_messages: 0,
        response_messages: 0,
    }
}

fn values(text: &str, start: &str) -> Vec<u64> {
    let lines = text.lines().filter(|line| line.starts_with(start));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn renders_requests_of_both_protocols() {
    let metrics = Metrics::new();
    let source = metrics.http(&labels(Reporter::Source));
    source.record(&sample());
    source.record(&RequestSample { duration: Duration::from_millis(5_000), ..sample() });
    source.record(&RequestSample { status: 0, flags: "DC", ..sample() });
    let grpc = RequestLabels {
        protocol: RequestProtocol::Grpc,
        security: SecurityPolicy::MutualTls,
        ..labels(Reporter::Destination)
    };
    metrics.http(&grpc).record(&RequestSample {
        grpc_status: Some(14),
        request_messages: 3,
        response_messages: 1,
        ..sample()
    });
    insta::assert_snapshot!(metrics.render());
}

#[test]
fn renders_a_cluster_under_envoys_names() {
    let metrics = Metrics::new();
    let counters = metrics.cluster("books/productpage-v1", "outbound|9080||ratings.books.svc.cluster.local");
    let events = [
        ClusterEvent::Request,
        ClusterEvent::Pending,
        ClusterEvent::PendingOverflow,
        ClusterEvent::ActiveOverflow,
        ClusterEvent::Retry,
        ClusterEvent::RetryOverflow,
        ClusterEvent::Timeout,
        ClusterEvent::PerTryTimeout,
        ClusterEvent::Connection,
        ClusterEvent::ConnectionOverflow,
        ClusterEvent::ConnectFailure,
        ClusterEvent::EjectionOverflow,
    ];
    for (at, event) in events.into_iter().enumerate() {
        (0..=at).for_each(|_| counters.count(event));
    }
    [200, 204, 503, 0, 999].into_iter().for_each(|status| counters.completed(status));
    counters.ejected();
    counters.ejected();
    counters.returned();
    insta::assert_snapshot!(metrics.render());
}

#[test]
fn a_value_on_a_bound_is_below_it() {
    let histogram = Histogram::default();
    [0, 500, 501, 3_600_000_000, 3_600_000_001, u64::MAX].into_iter().for_each(|it| histogram.observe(it));
    let counts: Vec<u64> = histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
    assert_eq!((counts[0], counts[1], counts[18], counts[19]), (2, 1, 1, 2));
    assert_eq!(counts.len(), 20);
    assert_eq!(histogram.count(), 6);
}

#[test]
fn handles_of_the_same_labels_count_together_from_any_thread() {
    let metrics = Metrics::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let series = metrics.http(&labels(Reporter::Source));
                (0..1_000).for_each(|at| series.record(&RequestSample { status: 200 + at % 2, ..sample() }));
            });
        }
    });
    assert_eq!(values(&metrics.render(), "istio_requests_total"), [2_000, 2_000]);
}

#[test]
fn an_application_that_invents_statuses_does_not_grow_the_agent() {
    let metrics = Metrics::with_limits(Limits { request_series: 40, ..Limits::default() });
    let series = metrics.http(&labels(Reporter::Source));
    (100..600).for_each(|status| series.record(&RequestSample { status, ..sample() }));
    let other = metrics.http(&labels(Reporter::Destination));
    (100..600).for_each(|status| other.record(&RequestSample { status, ..sample() }));
    let text = metrics.render();
    let counts = values(&text, "istio_requests_total");
    assert_eq!(counts.len(), 40 + 2, "32 of one series, 8 of the other, and a rest for each reporter");
    assert_eq!(counts.iter().sum::<u64>(), 1_000, "nothing is lost but labels");
    assert!(text.contains("response_code=\"unknown\""));
    assert!(text.contains("weft_metric_series_overflow_total 960"));
}

#[test]
fn peers_beyond_the_limit_share_one_series() {
    let metrics = Metrics::with_limits(Limits { request_series: 3, ..Limits::default() });
    for at in 0..10 {
        let labels = RequestLabels { service_name: format!("s{at}").into(), ..labels(Reporter::Source) };
        metrics.http(&labels).record(&sample());
    }
    let counts = values(&metrics.render(), "istio_requests_total");
    assert!(counts.len() <= 3, "{counts:?}");
    assert_eq!(counts.iter().sum::<u64>(), 10);
}

fn to_unknown(source: &str) -> RequestLabels {
    RequestLabels {
        source: Some(workload(source, "v1")),
        destination: None,
        service: "unknown".into(),
        service_name: "PassthroughCluster".into(),
        service_namespace: "unknown".into(),
        ..labels(Reporter::Source)
    }
}

#[test]
fn a_pod_that_invents_hosts_leaves_room_for_others() {
    let idle = Duration::from_secs(60);
    let metrics = Metrics::with_limits(Limits { request_series: 300, idle, ..Limits::default() });
    let record =
        |source: &str, host: &str| metrics.http_to_unknown(to_unknown(source), host).record(&sample());
    (0..1_000).for_each(|at| record("greedy", &format!("h{at}.example.com")));
    // One that has its series keeps it.
    record("greedy", "h7.example.com");
    record("greedy", &"x".repeat(10_000));
    record("modest", "api.example.com");
    record("modest", &format!("{}:8080", "y".repeat(253)));
    record("modest", &"z".repeat(261));
    let text = metrics.render();
    let of = |workload: &str, host: &str| {
        let labels = format!("source_workload=\"{workload}-v1\"");
        let service = format!("destination_service=\"{host}");
        let is_wanted = |line: &&str| {
            line.starts_with("istio_requests_total") && line.contains(&labels) && line.contains(&service)
        };
        text.lines()
            .filter(is_wanted)
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .collect()
    };
    let counts: Vec<u64> = of("greedy", "h");
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (100, 101));
    assert_eq!(of("greedy", "unknown\""), [901], "nothing is lost but labels");
    assert_eq!(of("modest", "api.example.com\""), [1]);
    assert_eq!(of("modest", "yyy"), [1]);
    assert_eq!(of("modest", "unknown\""), [1], "a host is not as long");
    assert!(text.contains("weft_metric_series_overflow_total 902"));
    let start = Instant::now();
    metrics.sweep(start);
    metrics.sweep(start + idle * 2);
    record("greedy", "new.example.com");
    assert!(metrics.render().contains("destination_service=\"new.example.com\""), "old hosts make room");
}

#[test]
fn idle_series_make_room_for_new_ones() {
    let idle = Duration::from_secs(60);
    let metrics = Metrics::with_limits(Limits { request_series: 2, idle, ..Limits::default() });
    let held = metrics.http(&labels(Reporter::Source));
    held.record(&sample());
    let start = Instant::now();
    metrics.sweep(start);
    metrics.sweep(start + idle * 2);
    assert_eq!(values(&metrics.render(), "istio_requests_total"), [1], "a connection holds it");
    drop(held);
    metrics.sweep(start + idle * 4);
    assert!(values(&metrics.render(), "istio_requests_total").is_empty());
    let fresh = metrics.http(&labels(Reporter::Destination));
    fresh.record(&sample());
    fresh.record(&RequestSample { status: 404, ..sample() });
    assert_eq!(values(&metrics.render(), "istio_requests_total"), [1, 1]);
}

#[test]
fn clusters_beyond_the_limit_are_counted_together() {
    let metrics = Metrics::with_limits(Limits { clusters: 1, ..Limits::default() });
    for name in ["a", "b", "c"] {
        metrics.cluster("books/page", name).count(ClusterEvent::PendingOverflow);
    }
    let counts = values(&metrics.render(), "envoy_cluster_upstream_rq_pending_overflow{");
    assert_eq!(counts.iter().sum::<u64>(), 3);
    assert_eq!(counts.len(), 2);
}

#[test]
fn what_is_large_is_written_in_pieces() {
    let metrics = Metrics::new();
    for at in 0..450 {
        let labels = RequestLabels { service_name: format!("s{at:03}").into(), ..labels(Reporter::Source) };
        metrics.http(&labels).record(&sample());
    }
    metrics.on_scrape(Box::new(|sink| sink.set(&families::PROCESS_CPU, &[], 7.0)));
    let pieces: Vec<_> = metrics.pieces().collect();
    let of_duration = |piece: &&String| piece.contains("istio_request_duration_milliseconds_count{");
    let samples =
        |piece: &String| piece.lines().filter(|line| line.starts_with("istio_request_dura")).count();
    let sizes = pieces.iter().filter(of_duration).map(samples);
    let lines_of_one = 20 + 2;
    assert_eq!(sizes.collect::<Vec<_>>(), [200 * lines_of_one, 200 * lines_of_one, 50 * lines_of_one]);
    let text = pieces.concat();
    let heads: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(heads.is_sorted(), "{heads:?}");
    assert_eq!(heads.iter().filter(|head| head.contains("istio_requests_total")).count(), 1);
    assert_eq!(text.matches("# HELP istio_request_bytes ").count(), 1);
    let samples: Vec<_> = text.lines().filter(|line| line.starts_with("istio_requests_total")).collect();
    assert_eq!(samples.len(), 450);
    assert!(samples.is_sorted());
    assert!(text.contains("\nprocess_cpu_seconds_total 7\n"));
    assert_eq!(text, metrics.render());
}
