//! Tests of the checks of the agents' answers.

use super::*;
use crate::cli::cluster::Unanswered;

fn status(node: &str) -> Status {
    let json = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"), "node": node, "ready": true, "not_ready": null, "break_glass": false,
        "config": {"source": "kubernetes", "revision": "7", "age_ms": 1000, "objects": {}, "problems": 0},
        "workloads": [{"pod": "shop/cart", "ip": [], "principal": "p", "state": "enrolled", "reason": null,
            "connections": 0}],
        "certificates": [{"principal": "p", "not_after": "2026-11-22T04:00:00Z", "error": null}],
        "kernel": {"programs": [], "maps": []},
    });
    serde_json::from_value(json).unwrap()
}

fn at(time: &str) -> SystemTime {
    SystemTime::from(time.parse::<Timestamp>().unwrap())
}

#[test]
fn silent_agents_are_named() {
    let answered = |answers: Vec<(Agent, ())>, silent| Answered { answers, silent };
    assert_eq!(answers(&answered(Vec::new(), Vec::new()), "weft-system").outcome, Outcome::Error);
    let silent = Unanswered { node: "b".into(), pod: "weft-agent-x".into(), error: "refused".into() };
    let check = answers(&answered(Vec::new(), vec![silent]), "weft-system");
    assert!(
        check.outcome == Outcome::Error && check.message.contains("b (weft-agent-x): refused"),
        "{check:?}"
    );
}

#[test]
fn versions_are_compared() {
    let (same, mut other) = (status("a"), status("b"));
    assert_eq!(versions(&[&same, &same], "weft-system").outcome, Outcome::Ok);
    other.version = "9.9.9".into();
    let mixed = versions(&[&same, &other], "weft-system");
    assert!(mixed.outcome == Outcome::Warning && mixed.message.contains("9.9.9 on b"), "{mixed:?}");
    let newer = versions(&[&other], "weft-system");
    assert!(newer.outcome == Outcome::Warning && newer.message.contains("this command is"), "{newer:?}");
}

#[test]
fn pods_that_failed_are_named_with_the_reason() {
    let mut status = status("a");
    assert_eq!(pods(&[&status]).message, "1 pods are in the mesh.");
    status.workloads[0].state = "failed".into();
    status.workloads[0].reason = Some("no such namespace".into());
    let check = pods(&[&status]);
    assert!(
        check.outcome == Outcome::Error && check.message.contains("shop/cart: no such namespace"),
        "{check:?}"
    );
}

#[test]
fn certificates_expire() {
    let mut status = status("a");
    let check = |status: &Status, time: &str| certificates(&[status], "weft-system", at(time));
    assert_eq!(check(&status, "2026-11-21T12:00:00Z").outcome, Outcome::Ok);
    let expired = check(&status, "2026-11-22T12:00:00Z");
    assert!(
        expired.outcome == Outcome::Error && expired.message.contains("p on a has one that has expired"),
        "{expired:?}"
    );
    status.certificates[0].error = Some("the authority does not answer".into());
    let failing = check(&status, "2026-11-22T03:00:00Z");
    assert!(failing.outcome == Outcome::Warning && failing.message.contains("ends in 60 min"), "{failing:?}");
    status.certificates[0].not_after = None;
    assert_eq!(check(&status, "2026-11-22T03:00:00Z").outcome, Outcome::Error);
}

#[test]
fn a_node_tells_its_own_troubles() {
    let mut said = Said {
        status: status("a"),
        node: Err("too old".into()),
        clock: Some((Duration::from_secs(90), true)),
    };
    said.status.ready = false;
    said.status.not_ready = Some("the kernel maps could not be written".into());
    said.status.config.problems = 2;
    let agent =
        Agent { node: "a".into(), pod: "weft-agent-x".into(), container: "agent".into(), not_running: None };
    let group = of_node(&agent, &said);
    let outcomes: Vec<_> = group.checks.iter().map(|check| (check.name.as_str(), check.outcome)).collect();
    assert_eq!(
        outcomes,
        [
            ("agent-ready", Outcome::Error),
            ("configuration", Outcome::Warning),
            ("connect-order", Outcome::Ok),
            ("clock", Outcome::Error),
            ("node", Outcome::Skipped)
        ]
    );
    said.status.break_glass = true;
    assert!(ready(&said.status).message.contains("--break-glass"));
}

#[test]
fn clocks_are_compared_by_the_reports_time() {
    let now = at("2026-11-21T12:00:00Z");
    assert_eq!(apart("2026-11-21T12:00:07Z", now), Some((Duration::from_secs(7), true)));
    assert_eq!(apart("2026-11-21T11:59:00Z", now), Some((Duration::from_secs(60), false)));
    assert_eq!(apart("never", now), None);
}

#[test]
fn an_agent_that_hears_of_nothing_is_told() {
    let mut status = status("a");
    status.config.connected = Some(true);
    assert_eq!(configuration(&status).outcome, Outcome::Ok);
    let kind = serde_json::json!({"kind": "Pod", "connected": false, "synced": true, "age_ms": 90_000,
        "failure": "forbidden", "watch_restarts": 1});
    status.config.freshness = vec![serde_json::from_value(kind).unwrap()];
    let check = configuration(&status);
    assert!(check.outcome == Outcome::Error && check.message.contains("Pod (forbidden)"), "{check:?}");
}

#[test]
fn programs_that_see_connections_first_are_named() {
    let mut status = status("a");
    assert_eq!(order(&status).outcome, Outcome::Ok);
    status.kernel.earlier = vec!["cil_sock4_conne at connect4 (bpftool prog show id 7)".into()];
    let check = order(&status);
    assert!(check.outcome == Outcome::Warning && check.message.contains("cil_sock4_conne"), "{check:?}");
    assert!(check.fix.is_some_and(|fix| fix.contains("hostNamespaceOnly")));
}

#[test]
fn an_agent_that_died_on_this_machine_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    assert_eq!(here(&socket), None);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let group = here(&socket).unwrap();
    assert!(group.checks[0].outcome == Outcome::Error && group.checks[0].message.contains("does not answer"));
}
