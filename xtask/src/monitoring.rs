//! Tests of dashboards and alerts: what they ask Prometheus for exists, and Prometheus understands it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::build::root;
use crate::setup::{apt_install, find};

const RULES: &str = "deploy/helm/weft/rules/weft.rules.yaml";

/// A question for Prometheus, and where it stands.
struct Question {
    place: String,
    expression: String,
}

fn questions() -> Vec<Question> {
    let mut all = Vec::new();
    for board in boards() {
        let place = board.file_name().unwrap().to_string_lossy().into_owned();
        let json: Value = serde_json::from_slice(&fs::read(&board).unwrap()).unwrap();
        for panel in json["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().unwrap().to_owned();
                all.push(Question { place: format!("{place}: {}", panel["title"]), expression });
            }
        }
    }
    let rules = fs::read_to_string(root().unwrap().join(RULES)).unwrap();
    for expression in rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        all.push(Question { place: RULES.to_owned(), expression: expression.to_owned() });
    }
    all
}

fn boards() -> Vec<PathBuf> {
    let folder = root().unwrap().join("deploy/dashboards");
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Names of series in an expression, without what Prometheus adds to those of histograms.
fn names(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c| !is_part(c));
    let ours = words
        .filter(|word| ["weft_", "istio_", "envoy_", "process_"].iter().any(|own| word.starts_with(own)));
    ours.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

/// Names that stand as literals in the program's own code, where families are declared.
fn declared(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            declared(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            into.extend(code.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
}

#[test]
fn what_dashboards_and_alerts_ask_for_is_exported() {
    let mut known = BTreeSet::new();
    for part in ["telemetry", "weft"] {
        declared(&root().unwrap().join("agent").join(part).join("src"), &mut known);
    }
    let questions = questions();
    assert!(questions.len() > 60, "{} questions", questions.len());
    for Question { place, expression } in questions {
        for name in names(&expression) {
            assert!(known.contains(&name), "{place}: nobody exports {name}");
        }
    }
}

#[test]
fn dashboards_have_what_grafana_needs() {
    let mut uids = BTreeSet::new();
    for path in boards() {
        let board: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(uids.insert(board["uid"].as_str().unwrap().to_owned()), "{}", path.display());
        let mut ids = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}: ids are unique", path.display());
            let place = &panel["gridPos"];
            assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24);
            let is_row = panel["type"] == "row";
            assert!(is_row || !panel["description"].as_str().unwrap().is_empty(), "{}", panel["title"]);
        }
    }
    assert_eq!(uids.len(), 3);
}

/// `promtool`, or a word that its tests are left out.
fn promtool(test: &str) -> Option<PathBuf> {
    /// Packages are installed by one at a time.
    static LOOKING: Mutex<()> = Mutex::new(());
    let _looking = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = find("promtool") {
        return Some(found);
    }
    // Only there: the package starts a server, which nobody wants on his own machine.
    if std::env::var_os("CI").is_some() {
        assert!(apt_install(&["prometheus"]), "promtool is missing, and cannot be installed");
        return find("promtool");
    }
    println!("SKIPPED {test}: promtool is missing; apt-get install prometheus");
    None
}

fn run(promtool: &Path, args: &[&str]) {
    let out = Command::new(promtool).args(args).current_dir(root().unwrap()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "promtool {args:?}: {text}");
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    let Some(promtool) = promtool("alerts_fire_when_they_should_and_not_before") else { return };
    run(&promtool, &["check", "rules", RULES]);
    run(&promtool, &["test", "rules", "tests/alerts/weft.test.yaml"]);
}

#[test]
fn prometheus_understands_every_panel() {
    let Some(promtool) = promtool("prometheus_understands_every_panel") else { return };
    let mut rules = "groups:\n- name: panels\n  rules:\n".to_owned();
    for (index, question) in questions().iter().enumerate() {
        let expression = question.expression.replace("$__rate_interval", "5m").replace("$node", ".*");
        let expression = expression.replace("$namespace", "shop").replace("$workload", ".*");
        rules += &format!("  - record: panel:{index}\n    expr: {}\n", Value::String(expression));
    }
    let folder = std::env::temp_dir().join(format!("weft-panels-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("panels.yaml");
    fs::write(&file, rules).unwrap();
    run(&promtool, &["check", "rules", file.to_str().unwrap()]);
    fs::remove_dir_all(folder).unwrap();
}
