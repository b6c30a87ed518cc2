use proptest::prelude::*;

use super::*;

fn workload(name: &str) -> Arc<WorkloadLabels> {
    Arc::new(WorkloadLabels {
        workload: name.into(),
        namespace: "shop".into(),
        principal: format!("spiffe://cluster.local/ns/shop/sa/{name}").into(),
        app: name.into(),
        version: "v1".into(),
        canonical_service: name.into(),
        canonical_revision: "latest".into(),
    })
}

fn labels(reporter: Reporter) -> TcpLabels {
    TcpLabels {
        reporter,
        source: Some(workload("cart")),
        source_principal: Some("spiffe://cluster.local/ns/shop/sa/cart".into()),
        destination: Some(workload("stock")),
        destination_principal: Some("spiffe://cluster.local/ns/shop/sa/stock".into()),
        service: "stock.shop.svc.cluster.local".into(),
        service_name: "stock".into(),
        service_namespace: "shop".into(),
        flags: "-",
        security: SecurityPolicy::MutualTls,
    }
}

#[test]
fn renders_every_family() {
    let metrics = Metrics::new();
    let series = metrics.tcp(&labels(Reporter::Destination));
    series.opened();
    series.closed();
    series.add_received(10);
    series.add_sent(2_000_000_000_000);
    for reporter in [Reporter::Source, Reporter::Destination] {
        let denied = TcpLabels { flags: "DENY", source: None, source_principal: None, ..labels(reporter) };
        metrics.failed(&denied, "authorization", Some("ns[shop]-policy[stock]-rule[0]"));
    }
    let forged = TcpLabels { flags: "DENY", destination: None, ..labels(Reporter::Source) };
    metrics.failed(&forged, "forged_source", None);
    let broken = TcpLabels { flags: "UF", security: SecurityPolicy::Unknown, ..labels(Reporter::Source) };
    metrics.failed(&broken, "connect", None);
    metrics.refused("handshake_limit", None);
    metrics.dry_run("ns[shop]-policy[try]", "deny");
    metrics.audited("ns[shop]-policy[watch]-rule[0]");
    metrics.policy_cut();
    metrics.panicked();
    metrics.tunnel_opened();
    metrics.on_scrape(Box::new(|sink| {
        sink.set(&families::BUILD_INFO, &["0.1.0"], 1.0);
        sink.set(&families::WORKLOADS, &["enrolled"], 3.0);
        sink.set(&families::WORKLOADS, &["failed"], 0.0);
        sink.set(&families::CERTIFICATE_EXPIRY, &["cluster.local/ns/shop/sa/cart"], -1.5);
    }));
    insta::assert_snapshot!(metrics.render());
}

#[test]
fn proxied_and_direct_flows_share_a_series() {
    let metrics = Metrics::new();
    metrics.tcp(&labels(Reporter::Source)).opened();
    metrics.tcp(&labels(Reporter::Source)).add(TcpDelta { opened: 4, ..TcpDelta::default() });
    let text = metrics.render();
    let lines: Vec<&str> =
        text.lines().filter(|line| line.starts_with("istio_tcp_connections_opened")).collect();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].ends_with(" 5"), "{lines:?}");
}

#[test]
fn a_series_stays_while_it_is_held_or_changes() {
    let idle = Duration::from_secs(60);
    let metrics = Metrics::with_limits(Limits { idle, ..Limits::default() });
    let held = metrics.tcp(&labels(Reporter::Source));
    held.opened();
    let start = Instant::now();
    metrics.sweep(start);
    metrics.sweep(start + idle * 2);
    assert!(metrics.render().contains("istio_tcp_connections_opened_total"), "an open connection holds it");

    held.closed();
    drop(held);
    metrics.sweep(start + idle * 3);
    assert!(
        metrics.render().contains("istio_tcp_connections_closed_total"),
        "it changed since the last sweep"
    );
    metrics.sweep(start + idle * 5);
    assert!(!metrics.render().contains("istio_tcp"), "idle for longer than allowed");
}

#[test]
fn series_of_workloads_that_are_gone_are_dropped() {
    let metrics = Metrics::new();
    metrics.tcp(&labels(Reporter::Source)).opened();
    metrics.tcp(&TcpLabels { destination: Some(workload("gone")), ..labels(Reporter::Source) }).opened();
    metrics.retain(|labels| labels.destination.as_ref().is_none_or(|labels| &*labels.workload != "gone"));
    let text = metrics.render();
    assert!(text.contains("destination_workload=\"stock\""));
    assert!(!text.contains("destination_workload=\"gone\""));
}

#[test]
fn beyond_the_limit_nothing_is_lost_but_the_labels() {
    let metrics = Metrics::with_limits(Limits { tcp_series: 2, ..Limits::default() });
    for name in ["a", "b", "c", "d", "a"] {
        metrics.tcp(&TcpLabels { service_name: name.into(), ..labels(Reporter::Source) }).opened();
    }
    let text = metrics.render();
    let counts: Vec<u64> = text
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(counts.len(), 3);
    assert_eq!(counts.iter().sum::<u64>(), 5);
    assert!(text.contains("weft_metric_series_overflow_total 2"));
}

/// Reads one sample line as a scraper does: name, labels, value.
fn parse(line: &str) -> (Vec<(String, String)>, String) {
    let (_, mut rest) = line.split_once('{').unwrap();
    let mut found = Vec::new();
    while !rest.starts_with('}') {
        let (name, after) = rest.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        found.push((name.trim_start_matches(',').to_owned(), value));
        rest = &after[end + 1..];
    }
    (found, rest[1..].trim().to_owned())
}

proptest! {
    #[test]
    fn any_label_value_survives_the_text_format(value in "\\PC*|[\"\\\\\n{},= ]{1,20}") {
        let metrics = Metrics::new();
        metrics.refused("authorization", Some(&value));
        let text = metrics.render();
        let lines: Vec<&str> = text.split('\n').filter(|line| line.starts_with("weft_refused_total{")).collect();
        prop_assert_eq!(lines.len(), 1);
        let (labels, count) = parse(lines[0]);
        prop_assert_eq!(labels, vec![
            ("reason".to_owned(), "authorization".to_owned()),
            ("policy".to_owned(), value),
        ]);
        prop_assert_eq!(count, "1");
    }
}
