//! Two agents of one node that do not know of each other.

use serde_json::Value;
use weft_lab::AgentOptions;
use weft_netns_tests::puppet::Role;
use weft_netns_tests::{Family, Mesh, eventually};

use crate::{PATHS, PUPPET};

/// State and reason of a pod, as an agent sees it.
fn state_of(status: &Value, pod: &str) -> (String, String) {
    let workloads = status["workloads"].as_array().unwrap();
    let found = workloads.iter().find(|workload| workload["pod"] == format!("shop/{pod}"));
    let text = |key: &str| found.and_then(|workload| workload[key].as_str()).unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

/// Connections travel as they should, and carry what they are given.
fn traffic_flows(mesh: &Mesh) {
    let mut client = mesh.puppet("client");
    for (pod, path) in PATHS {
        for family in [Family::V4, Family::V6] {
            let connection = mesh.connect_by(&mut client, &family.connect(mesh.target(family, pod)), path);
            assert_eq!(client.exchange(connection, 50_000), Ok(50_000), "{pod} {family:?}");
            client.close(connection);
        }
    }
}

#[test]
fn what_one_agent_steers_another_one_leaves_alone() {
    let Some(mut mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet)).into();
    let pods = ["client", "other", "near", "seven"];
    let options = AgentOptions { apart: true, ..AgentOptions::default() };
    let second = mesh.lab().spawn_agent("a", &options).unwrap();
    eventually("the second agent is there", || second.readiness().is_ok());
    let is_refused = |mesh: &Mesh| {
        let status = mesh.status_of(&second);
        pods.iter().all(|pod| {
            let (state, reason) = state_of(&status, pod);
            state == "failed" && reason.contains("another --pin-dir")
        })
    };
    eventually("the second agent refuses what the first one has", || is_refused(&mesh));
    let status = mesh.status_of(&second);
    let earlier: Vec<_> = status["kernel"]["earlier"].as_array().unwrap().iter().collect();
    assert!(earlier.len() == 2 && earlier[0].as_str().unwrap().starts_with("out4 at connect4"), "{status}");
    traffic_flows(&mesh);

    // Its pins hold the pods, until somebody says that they shall not.
    mesh.agent_mut("a").kill();
    assert!(is_refused(&mesh), "{}", mesh.status_of(&second));
    mesh.lab().clean_up_node("a").unwrap();
    second.wait_enrolled(&pods.map(|pod| format!("shop/{pod}")).each_ref().map(String::as_str)).unwrap();
    assert_eq!(mesh.status_of(&second)["kernel"].get("earlier"), None);
    traffic_flows(&mesh);
    drop(servers);
}
