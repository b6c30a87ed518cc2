use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

const RESULT: &str = r#"{ "cniVersion":"1.0.0", "interfaces":[{"name":"eth0","sandbox":"/n/x","mac":"00:11"}],
  "ips":[{"interface":0,"address":"10.244.1.7/24","gateway":"10.244.1.1"}], "z":1, "a":1.50 }"#;

/// A directory with rules for namespace `shop`, and perhaps an agent that gives one answer.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(rules::FILE), r#"{"namespaces":["shop","weft-system"]}"#).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn agent(&self, answer: &'static str) -> JoinHandle<Request> {
        let listener = UnixListener::bind(self.path("cni.sock")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            serde_json::from_str(&line).unwrap()
        })
    }

    fn environment(&self, command: &str, namespace: &str) -> Environment {
        Environment {
            command: command.into(),
            container_id: "abc123".into(),
            netns: "/var/run/netns/cni-1".into(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web-1;K8S_POD_UID=u-1;K8S_POD_INFRA_CONTAINER_ID=abc123"
            ),
            rules: self.path(rules::FILE),
        }
    }

    fn config(&self, more: &str) -> String {
        let socket = self.path("cni.sock");
        format!(
            r#"{{"cniVersion":"1.0.0","name":"k8s","type":"weft-cni","timeoutSeconds":1,"socket":{socket:?}{more}}}"#
        )
    }

    fn call(&self, command: &str, namespace: &str) -> Reply {
        let config = self.config(&format!(r#","prevResult":{RESULT}"#));
        run(&self.environment(command, namespace), config.as_bytes())
    }
}

fn error(reply: &Reply) -> (u64, String) {
    assert!(!reply.success);
    let value: Value = serde_json::from_str(&reply.output).unwrap();
    assert_eq!(
        value["cniVersion"].as_str().map(|version| VERSIONS.contains(&version)),
        Some(true),
        "{value}"
    );
    (
        value["code"].as_u64().unwrap(),
        format!("{}; {}", value["msg"].as_str().unwrap(), value["details"].as_str().unwrap()),
    )
}

#[test]
fn an_enrolled_pod_gets_the_result_unchanged() {
    let world = World::new();
    let agent = world.agent("{\"outcome\":\"enrolled\"}\n");
    assert_eq!(world.call("ADD", "shop"), Reply::success(RESULT));
    let request = agent.join().unwrap();
    assert_eq!(request.command, Command::Add);
    assert_eq!((request.namespace.as_str(), request.pod.as_str()), ("shop", "web-1"));
    assert_eq!(request.uid.as_deref(), Some("u-1"));
    assert_eq!(request.netns, "/var/run/netns/cni-1");
    assert_eq!(request.ips, ["10.244.1.7".parse::<std::net::IpAddr>().unwrap()]);
    assert!(request.patience_ms > 0);
}

#[test]
fn a_failure_says_why_and_may_be_tried_again() {
    let world = World::new();
    let agent = world.agent("{\"outcome\":\"failed\",\"reason\":\"no such address\"}\n");
    let (code, text) = error(&world.call("ADD", "elsewhere"));
    agent.join().unwrap();
    assert_eq!(code, 11);
    assert!(text.contains("shop/web-1") || text.contains("elsewhere/web-1"), "{text}");
    assert!(text.contains("no such address"), "{text}");
}

#[test]
fn without_an_agent_only_the_mesh_is_closed() {
    let world = World::new();
    let (code, text) = error(&world.call("ADD", "shop"));
    assert_eq!(code, 11);
    assert!(text.contains("kubectl -n weft-system get pods"), "{text}");
    assert_eq!(world.call("ADD", "elsewhere"), Reply::success(RESULT));
    // Listed, but it would be a deadlock.
    assert_eq!(world.call("ADD", "weft-system"), Reply::success(RESULT));
    assert_eq!(world.call("ADD", "kube-system"), Reply::success(RESULT));
}

#[test]
fn an_agent_that_comes_back_in_time_is_waited_for() {
    let world = World::new();
    let socket = world.path("cni.sock");
    let config = world
        .config(&format!(r#","prevResult":{RESULT}"#))
        .replace("\"timeoutSeconds\":1", "\"timeoutSeconds\":30");
    std::thread::scope(|scope| {
        let call = scope.spawn(|| run(&world.environment("ADD", "shop"), config.as_bytes()));
        // The first one dies in the middle of the question.
        drop(UnixListener::bind(&socket).unwrap().accept().unwrap());
        std::fs::remove_file(&socket).unwrap();
        let agent = world.agent("{\"outcome\":\"enrolled\"}\n");
        assert_eq!(call.join().unwrap(), Reply::success(RESULT));
        agent.join().unwrap();
    });
}

#[test]
fn a_sandbox_of_no_pod_is_let_through() {
    let world = World::new();
    let environment = Environment { args: String::new(), ..world.environment("ADD", "shop") };
    let config = world.config(&format!(r#","prevResult":{RESULT}"#));
    assert_eq!(run(&environment, config.as_bytes()), Reply::success(RESULT));
}

#[test]
fn going_always_succeeds() {
    let world = World::new();
    assert_eq!(world.call("DEL", "shop"), Reply::success(""));
    assert_eq!(world.call("STATUS", "shop"), Reply::success(""));
    assert_eq!(world.call("GC", "shop"), Reply::success(""));
    assert_eq!(world.call("CHECK", "shop"), Reply::success(""));
    for command in ["DEL", "GC", "STATUS"] {
        for garbage in [&b""[..], b"\xff\xff", b"[]", b"{\"cniVersion\":[]}"] {
            assert_eq!(run(&world.environment(command, "shop"), garbage), Reply::success(""));
        }
    }
    assert_eq!(
        run(&Environment { command: "DEL".into(), ..Environment::default() }, b"{}"),
        Reply::success("")
    );
}

#[test]
fn collecting_garbage_tells_what_exists() {
    let world = World::new();
    let agent = world.agent("{\"outcome\":\"done\"}\n");
    let config = world.config(r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"},{"containerID":"b","ifname":"eth0"}]"#);
    assert_eq!(run(&world.environment("GC", "shop"), config.as_bytes()), Reply::success(""));
    let request = agent.join().unwrap();
    assert_eq!((request.command, request.keep), (Command::Gc, vec!["a".to_owned(), "b".to_owned()]));
}

#[test]
fn versions_are_told() {
    let reply = run(
        &Environment { command: "VERSION".into(), ..Environment::default() },
        br#"{"cniVersion":"0.4.0"}"#,
    );
    let value: Value = serde_json::from_str(&reply.output).unwrap();
    assert_eq!(value["cniVersion"], "0.4.0");
    assert_eq!(value["supportedVersions"].as_array().unwrap().len(), VERSIONS.len());
    assert!(run(&Environment { command: "VERSION".into(), ..Environment::default() }, b"").success);
}

#[test]
fn what_is_wrong_is_said_in_the_form_of_the_cni() {
    let world = World::new();
    let add = world.environment("ADD", "shop");
    let with = |config: &str| error(&run(&add, config.as_bytes()));
    assert_eq!(with("").0, 7);
    assert_eq!(with("{\"prevResult\":").0, 7);
    assert_eq!(with(&world.config("")).0, 7);
    assert_eq!(with(&world.config(",\"prevResult\":null")).0, 7);
    assert_eq!(with(&world.config(",\"prevResult\":[1]")).0, 7);
    let newer = run(
        &add,
        world.config(&format!(",\"prevResult\":{RESULT}")).replacen("1.0.0", "9.0.0", 1).as_bytes(),
    );
    assert_eq!(serde_json::from_str::<Value>(&newer.output).unwrap()["code"], 1);
    let nameless = Environment { container_id: String::new(), ..add.clone() };
    let config = world.config(&format!(",\"prevResult\":{RESULT}"));
    assert_eq!(error(&run(&nameless, config.as_bytes())).0, 4);
    assert_eq!(error(&run(&Environment::default(), b"")).0, 4);
}

#[test]
fn an_agent_that_talks_nonsense_is_as_good_as_none() {
    for answer in ["\n", "hello\n", "{\"outcome\":\"maybe\"}\n", "{"] {
        let world = World::new();
        let agent = world.agent(answer);
        assert_eq!(world.call("ADD", "elsewhere"), Reply::success(RESULT), "{answer:?}");
        agent.join().unwrap();
    }
    let world = World::new();
    let agent = world.agent("nonsense\n");
    assert_eq!(error(&world.call("ADD", "shop")).0, 11);
    agent.join().unwrap();
}

#[test]
fn the_rules_lie_beside_the_binary() {
    let rules = Environment::of_process().rules;
    assert_eq!(rules.file_name(), Some(std::ffi::OsStr::new(rules::FILE)));
    assert_eq!(rules.parent(), std::env::current_exe().unwrap().parent().map(Path::new));
}
