//! Tests of the checks of the cluster.

use super::*;

fn info(git_version: &str, minor: &str) -> Info {
    Info { git_version: git_version.into(), major: "1".into(), minor: minor.into(), ..Info::default() }
}

#[test]
fn old_versions_are_told() {
    assert_eq!(version(&info("v1.36.0", "36")).outcome, Outcome::Ok);
    assert_eq!(version(&info("v1.30.4-gke.1", "30+")).outcome, Outcome::Ok);
    let old = version(&info("v1.29.9", "29"));
    assert!(old.outcome == Outcome::Error && old.message.contains("v1.29.9"), "{old:?}");
    assert_eq!(version(&info("odd", "")).outcome, Outcome::Ok);
}

#[test]
fn clocks_may_differ_a_little() {
    let seconds = |seconds, ahead| clock(Duration::from_secs(seconds), ahead, "this machine");
    assert_eq!(seconds(1, true).outcome, Outcome::Ok);
    let warning = seconds(30, true);
    assert!(warning.outcome == Outcome::Warning && warning.message.contains("30 s ahead of"), "{warning:?}");
    let error = seconds(600, false);
    assert!(error.outcome == Outcome::Error && error.message.contains("600 s behind"), "{error:?}");
}

#[test]
fn what_is_denied_is_named() {
    let answers = |answers: &[Option<bool>]| {
        let named = answers.iter().enumerate().map(|(at, answer)| (format!("need {at}"), *answer));
        access("may-ask", named.collect())
    };
    assert_eq!(answers(&[Some(true), Some(true)]).outcome, Outcome::Ok);
    assert_eq!(answers(&[None, None]).outcome, Outcome::Skipped);
    let denied = answers(&[Some(true), Some(false), None, Some(false)]);
    assert!(denied.outcome == Outcome::Error && denied.message.contains("need 1, need 3:"), "{denied:?}");
    let exec = TO_ASK.iter().find(|need| need.subresource.is_some()).unwrap();
    assert_eq!(spelt(exec, "weft-system"), "create pods/exec in weft-system");
}

#[test]
fn missing_definitions_are_a_warning() {
    let all: BTreeSet<String> = GROUPS.iter().map(|(group, _)| (*group).to_owned()).collect();
    assert_eq!(definitions(&all).outcome, Outcome::Ok);
    let some = definitions(&["networking.istio.io".to_owned()].into());
    assert!(some.outcome == Outcome::Warning && some.message.contains("PeerAuthentication"), "{some:?}");
}

#[test]
fn nodes_that_cannot_be_served_are_named() {
    let node = |name: &str, os: &str, arch: &str, kernel: &str| -> Node {
        let info = serde_json::json!({
            "architecture": arch, "operatingSystem": os, "kernelVersion": kernel, "bootID": "",
            "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
            "osImage": "", "systemUUID": "",
        });
        serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "status": {"nodeInfo": info}}))
            .unwrap()
    };
    let good = [node("a", "linux", "amd64", "6.1.0"), node("w", "windows", "amd64", "10.0.20348")];
    assert_eq!(nodes(&good), [Check::ok("nodes", "All 1 Linux nodes have a kernel that is new enough.")]);
    let bad = nodes(&[node("a", "linux", "s390x", "6.1.0"), node("b", "linux", "arm64", "4.19.0")]);
    assert!(bad[0].message.contains("Node a") && bad[0].message.contains("s390x"), "{bad:?}");
    assert!(bad[1].message.contains("Node b") && bad[1].message.contains("4.19.0"), "{bad:?}");
    assert_eq!(nodes(&[])[0].outcome, Outcome::Warning);
}
