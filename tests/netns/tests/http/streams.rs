//! Large bodies, HTTP/2, gRPC, WebSocket, and changes while requests run.

use weft_netns_tests::{Family, eventually, value_eventually};

use crate::site::{FAMILIES, GRPC, NEAR_AND_FAR, SUBSETS, Site, WEB};

const GIB: u64 = 1 << 30;

/// The most that a process has ever had resident, in bytes.
fn peak_resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_gibibyte_up_and_down_passes_without_being_kept() {
    let Some(site) = Site::new() else { return };
    let peaks = || ["a", "b"].map(|node| peak_resident(site.mesh.agent(node).pid()));
    for service in NEAR_AND_FAR {
        assert!(site.ask(service, &["--count", "10"]).all_good());
        let before = peaks();
        let limit = ["--timeout-ms", "170000"];
        let down = site.ask(service, &[&["--path", &format!("/down?bytes={GIB}")], &limit[..]].concat());
        assert_eq!((down.status(), &down.0["received_bytes"]), (200, &GIB.into()), "{}", down.0["errors"]);
        let size = GIB.to_string();
        let up = ["--method", "POST", "--path", "/up", "--body-bytes", &size];
        let up = site.ask(service, &[&up, &limit[..]].concat());
        assert_eq!((up.status(), &up.body()["body_bytes"]), (200, &GIB.into()), "{}", up.0);
        for (before, after) in before.into_iter().zip(peaks()) {
            let grown = after.saturating_sub(before);
            assert!(grown < 32 << 20, "the peak grew from {before} to {after} bytes");
        }
    }
}

#[test]
fn http2_and_grpc_keep_their_streams_and_trailers() {
    let Some(site) = Site::new() else { return };
    for (service, family) in NEAR_AND_FAR.into_iter().zip(FAMILIES) {
        let h2 = ["--protocol", "h2", "--path", "/two", "--count", "20"];
        let answer = site.ask_from("client", family, (service, WEB), &h2);
        assert!(answer.all_good(), "{}", answer.0);
        let call = ["--protocol", "h2", "--path", "/shop.Stock/Count", "--grpc", "3"];
        let ask = |more: &[&str]| site.ask_from("client", family, (service, GRPC), &[&call, more].concat());
        let answer = ask(&[]);
        assert_eq!(answer.0["last"]["trailers"]["grpc-status"], "0", "{}", answer.0);
        assert_eq!(answer.0["received_bytes"], 315, "three messages came back");
        let failed = ask(&["--header", "x-grpc-status: 5"]);
        assert_eq!((failed.status(), failed.header("grpc-status")), (200, "5"), "{}", failed.0);
        let labels =
            [("reporter", "source"), ("request_protocol", "grpc"), ("destination_workload", service)];
        let node_a =
            |name: &str, more: (&str, &str)| site.mesh.metric("a", name, &[&labels[..], &[more]].concat());
        // It may be counted after the client has its answer.
        for (family, status, count) in [
            ("istio_requests_total", "0", 1.0),
            ("istio_requests_total", "5", 1.0),
            ("istio_request_messages_total", "0", 3.0),
            ("istio_response_messages_total", "0", 3.0),
        ] {
            let what = format!("{family} of status {status} to {service} is {count}");
            eventually(&what, || node_a(family, ("grpc_response_status", status)) == count);
        }
    }
}

#[test]
fn a_websocket_is_opened_through_the_mesh() {
    let Some(site) = Site::new() else { return };
    for family in FAMILIES {
        for service in NEAR_AND_FAR {
            let args = ["--path", "/chat", "--upgrade", "hello over there"];
            let answer = site.ask_from("client", family, (service, WEB), &args);
            assert_eq!((answer.status(), answer.text()), (101, "hello over there"), "{}", answer.0);
        }
    }
}

#[test]
fn rules_change_under_load_and_no_request_fails() {
    let Some(site) = Site::new() else { return };
    site.mesh.write("subsets.yaml", SUBSETS);
    let all_to = |version: &str| {
        site.routes(
            "reviews",
            &format!("[{{route: [{{destination: {{host: reviews, subset: {version}}}}}]}}]"),
        );
        let few = ["--count", "8"];
        site.ask_until("the change has arrived", "reviews", &few, |answer| answer.of_version(version) == 8);
    };
    all_to("v1");
    let address = site.address(Family::V4, "reviews", WEB);
    let load = ["http", &address, "--host", "reviews", "--until-eof", "--concurrency", "4"];
    let mut load = site.mesh.pod("other").spawn(&load).unwrap();
    for _ in 0..4 {
        ["v2", "v3", "v1"].into_iter().for_each(all_to);
    }
    load.close_stdin();
    let report = value_eventually("the load has ended", || {
        serde_json::from_str::<serde_json::Value>(load.stdout().lines().last()?).ok()
    });
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    assert_eq!(report["statuses"]["200"], report["requests"], "{report}");
    for version in ["v1", "v2", "v3"] {
        assert!(report["versions"][version].as_u64() > Some(0), "{report}");
    }
}
