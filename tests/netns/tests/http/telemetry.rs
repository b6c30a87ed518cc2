//! What metrics and access log say about requests.

use std::net::SocketAddr;

use serde_json::Value;
use weft_netns_tests::eventually;

use crate::site::{Site, WEB};

#[test]
fn each_request_is_counted_once_by_each_side() {
    let Some(site) = Site::new() else { return };
    for (service, node) in [("near", "a"), ("far", "b")] {
        let answer = site.ask(service, &["--count", "25", "--path", "/counted"]);
        assert!(answer.all_good(), "{}", answer.0);
        for (reporter, node, security) in [("source", "a", "unknown"), ("destination", node, "")] {
            let labels = [
                ("reporter", reporter),
                ("source_workload", "client"),
                ("source_workload_namespace", "shop"),
                ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
                ("source_canonical_service", "client"),
                ("destination_workload", service),
                ("destination_version", service),
                ("destination_service", &format!("{service}.shop.svc.cluster.local")),
                ("destination_service_name", service),
                ("destination_service_namespace", "shop"),
                ("request_protocol", "http"),
                ("response_code", "200"),
                ("response_flags", "-"),
            ];
            let value = |name: &str| site.mesh.metric(node, name, &labels);
            // The server's side may count after the client has its answer.
            eventually("all requests are counted", || value("istio_requests_total") >= 25.0);
            assert_eq!(value("istio_requests_total"), 25.0, "{service} {reporter}");
            assert_eq!(value("istio_request_duration_milliseconds_count"), 25.0);
            assert!(value("istio_response_bytes_sum") >= 25.0 * 100.0);
            if !security.is_empty() {
                let metrics = site.mesh.agent(node).metrics().unwrap();
                let mut series = metrics.select("istio_requests_total", &labels);
                assert!(series.all(|sample| sample.labels["connection_security_policy"] == security));
            }
        }
    }
    let tls = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    assert_eq!(site.mesh.metric("b", "istio_requests_total", &tls), 25.0, "between nodes there is mTLS");
}

#[test]
fn the_access_log_has_istios_keys() {
    let Some(site) = Site::new() else { return };
    let own = ["--header", "user-agent: lab", "--header", "x-request-id: 7"];
    for (service, node, path) in [("near", "a", "node"), ("far", "b", "hbone")] {
        let target = format!("/logged/{service}?x=1");
        assert!(site.ask(service, &[&["--path", &target], &own[..]].concat()).all_good());
        let line = |node: &str, direction: &str| {
            site.mesh.log_line(node, &format!("a line about {target}, {direction}"), |line: &Value| {
                line["path"] == target && line["direction"] == direction
            })
        };
        let outbound = line("a", "outbound");
        assert_eq!(outbound["method"], "GET", "{outbound}");
        assert_eq!(outbound["protocol"], "HTTP/1.1");
        assert_eq!(outbound["response_code"], 200);
        assert_eq!(outbound["response_flags"], "-");
        assert_eq!(outbound["response_code_details"], "via_upstream");
        assert_eq!(outbound["user_agent"], "lab");
        assert_eq!(outbound["request_id"], "7");
        assert_eq!(outbound["authority"], format!("{service}:{WEB}"));
        assert_eq!(outbound["upstream_cluster"], format!("outbound|9080||{service}.shop.svc.cluster.local"));
        assert_eq!(outbound["upstream_host"], format!("{}:{WEB}", site.mesh.pod(service).ipv4()));
        assert_eq!(outbound["route_name"], "default");
        assert_eq!(outbound["mesh_path"], path);
        let inbound = line(node, "inbound");
        assert_eq!(inbound["upstream_cluster"], "inbound|9080||", "{inbound}");
        assert_eq!(inbound["source_principal"], "spiffe://cluster.local/ns/shop/sa/client", "{inbound}");
        assert_eq!(inbound["destination_pod"], format!("shop/{service}"), "{inbound}");
        assert_eq!(inbound["mesh_path"], path, "{inbound}");
        let client = site.mesh.pod("client").ipv4().to_string();
        for line in [&outbound, &inbound] {
            let local: SocketAddr = line["upstream_local_address"].as_str().unwrap().parse().unwrap();
            assert_eq!(local.ip().to_string(), client, "a tunnel begins in the client's pod as well: {line}");
            assert_ne!(local.port(), 0, "{line}");
        }
    }
}

/// L-5: a format of one's own, with headers of the request and of the answer.
#[test]
fn the_access_log_can_have_another_form() {
    let Some(site) = Site::new() else { return };
    let format = r#"{"what": "%REQ(:METHOD)% %REQ_WITHOUT_QUERY(:PATH)%", "team": "%REQ(X-TEAM)%", "code": "%RESPONSE_CODE%", "by": "%RESP(SERVER)%", "side": "%TRAFFIC_DIRECTION%", "odd": "%WEATHER%"}"#;
    let settings = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: weft, namespace: weft-system}}\ndata:\n  mesh: |\n    \
         accessLogFile: /dev/stdout\n    accessLogEncoding: JSON\n    accessLogFormat: '{format}'\n"
    );
    site.settled(|| site.mesh.write("mesh.yaml", &settings));
    let told = ["--path", "/told?token=1", "--header", "x-team: blue"];
    assert!(site.ask("near", &told).all_good());
    let line = site.mesh.log_line("a", "a line in the new form", |line: &Value| {
        line["what"] == "GET /told" && line["side"] == "outbound"
    });
    assert_eq!(
        (&line["team"], &line["code"], &line["odd"]),
        (&"blue".into(), &200.into(), &Value::Null),
        "{line}"
    );
    assert_eq!(line["by"], "envoy", "{line}");
}
