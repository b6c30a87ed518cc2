//! What the command line says about a cluster that is well: through the API server, from a machine that is no node.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::poll_until;

use super::SHOP;
use crate::suite::LIMIT;

/// Every command that asks the agents, by way of exec.
pub(super) fn ask(cluster: &Cluster) -> Result<()> {
    poll_until(LIMIT, || status(cluster))?;
    explain(cluster)?;
    dump(cluster)?;
    check(cluster)?;
    bug_report(cluster)
}

/// What a command prints; it must end with one of these.
fn weft(cluster: &Cluster, args: &[&str], codes: &[i32]) -> Result<String> {
    let program = std::env::current_exe()?.with_file_name("weft");
    let kubeconfig = cluster.plane().kubeconfig();
    let output = Command::new(&program).args(args).arg("--kubeconfig").arg(kubeconfig).output();
    let output = output.with_context(|| format!("{} cannot be run", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ended = output.status.code().is_some_and(|code| codes.contains(&code));
    ensure!(ended, "{args:?}: {}: {}{text}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// What a command prints as JSON; it must end with one of these codes.
pub(super) fn weft_json(cluster: &Cluster, args: &[&str], codes: &[i32]) -> Result<Value> {
    let text = weft(cluster, &[args, &["-o", "json"]].concat(), codes)?;
    serde_json::from_str(&text).with_context(|| format!("{args:?} does not print JSON: {text}"))
}

/// What stands at a path; null where nothing does.
fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

fn texts<'v>(list: &'v Value, key: &str) -> Vec<&'v str> {
    list.as_array().into_iter().flatten().filter_map(|item| item.get(key)?.as_str()).collect()
}

fn status(cluster: &Cluster) -> Result<()> {
    let status = weft_json(cluster, &["status", "-n", SHOP], &[0])?;
    let nodes = texts(at(&status, "/nodes"), "node");
    ensure!(nodes == ["one", "two"], "not all nodes answer: {status}");
    let pods: Vec<&Value> = at(&status, "/nodes")
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| node.get("workloads")?.as_array())
        .flatten()
        .collect();
    let enrolled = pods.iter().any(|pod| at(pod, "/pod") == "shop/client" && at(pod, "/state") == "enrolled");
    ensure!(enrolled, "shop/client is not told as enrolled: {status}");
    let one = weft_json(cluster, &["status", "--node", "two"], &[0])?;
    ensure!(texts(at(&one, "/nodes"), "node") == ["two"], "one node was asked for: {one}");
    Ok(())
}

fn explain(cluster: &Cluster) -> Result<()> {
    let ends =
        ["explain", "--from", "shop/client", "--to", "http://web:8080/", "-H", "authorization: secret"];
    let answers = [
        weft_json(cluster, &ends, &[0])?,
        weft_json(cluster, &[&ends[..], &["--from-cluster"]].concat(), &[0])?,
    ];
    for answer in &answers {
        ensure!(at(answer, "/source/pod") == "shop/client", "another source: {answer}");
        ensure!(!at(answer, "/steps").as_array().context("steps")?.is_empty(), "no steps: {answer}");
    }
    let verdicts = answers.each_ref().map(|answer| at(answer, "/verdict").clone());
    let [agent, objects] = verdicts;
    ensure!(agent == objects, "the agent says {agent} and the objects say {objects}");
    Ok(())
}

fn dump(cluster: &Cluster) -> Result<()> {
    let dump = weft_json(cluster, &["dump"], &[0])?;
    ensure!(texts(at(&dump, "/nodes"), "node") == ["one", "two"], "not all nodes answer");
    let workloads = at(&dump, "/nodes/0/dump/workloads");
    ensure!(texts(workloads, "pod").contains(&"shop/client"), "the dump lacks a pod: {workloads}");
    Ok(())
}

fn check(cluster: &Cluster) -> Result<()> {
    let report = weft_json(cluster, &["check"], &[0, 1])?;
    let checks: Vec<&Value> = at(&report, "/groups")
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group.get("checks")?.as_array())
        .flatten()
        .collect();
    for (name, times) in [
        ("daemonset", 1),
        ("controller", 1),
        ("ca-service", 1),
        ("ca-secret", 1),
        ("webhook", 1),
        ("agents-answer", 1),
        ("agents-version", 1),
        ("certificates", 1),
        ("agent-ready", 2),
        ("kernel-features", 2),
        ("cgroup2", 2),
        ("cni-chain", 2),
    ] {
        let found: Vec<&Value> = checks.iter().copied().filter(|check| at(check, "/name") == name).collect();
        let well = found.iter().all(|check| at(check, "/outcome") == "ok");
        ensure!(found.len() == times && well, "{name}: {found:?}");
    }
    let errors: Vec<_> = checks.iter().filter(|check| at(check, "/outcome") == "error").collect();
    ensure!(errors.is_empty(), "the cluster is well, but: {errors:?}");
    Ok(())
}

fn bug_report(cluster: &Cluster) -> Result<()> {
    let file = cluster.plane().dir().join("bug-report.tar.gz");
    weft(cluster, &["bug-report", "--file", &file.display().to_string()], &[0, 1])?;
    let names = Command::new("tar").arg("-tzf").arg(&file).output()?;
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    for part in
        ["agents/one/status.json", "agents/two/dump.json", "agents/one/metrics.txt", "logs/weft-agent-"]
    {
        ensure!(names.contains(part), "{part} is missing among {names}");
    }
    let text = Command::new("tar").arg("-xzOf").arg(&file).output()?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(!text.contains("PRIVATE KEY"), "a private key is in the report");
    Ok(())
}
