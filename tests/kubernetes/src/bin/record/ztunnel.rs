//! What a ztunnel is told about policies, case by case: `ztunnel/CASE.yaml` → `ztunnel/CASE.json`.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{Files, Recorder, yaml_files};

pub(crate) fn record(recorder: &Recorder<'_>, files: &mut Files) -> Result<()> {
    let directory = recorder.fixtures.join("ztunnel");
    let world = directory.join("world");
    recorder.apply(&world.join("namespaces.yaml"))?;
    let pods = world.join("pods.yaml");
    recorder.apply(&pods)?;
    let pods = pods.display().to_string();
    recorder.plane.kubectl(&["apply", "--server-side", "--subresource=status", "-f", &pods])?;
    for case in yaml_files(&directory)? {
        // istiod knows all of a case when it is ready, and nothing of the one before.
        recorder.apply(&case)?;
        let istiod = recorder.istiod("")?;
        let answer = recorder.ask(&istiod, "ztunnel", &["--node-name", "node-a"])?;
        recorder.delete(&case)?;
        let told = told(&answer).with_context(|| format!("{} of {answer}", case.display()))?;
        files.put(&case.with_extension("json"), told)?;
    }
    Ok(())
}

/// The policies, and by workload the names of those that select it.
fn told(answer: &Value) -> Result<Value> {
    let mut workloads = Map::new();
    for workload in answer["workloads"].as_array().context("workloads are a list")? {
        let part = |name: &str| workload[name].as_str().context("a workload has a name");
        let key = format!("{}/{}", part("namespace")?, part("name")?);
        let policies = workload.get("authorization_policies").cloned().unwrap_or_else(|| json!([]));
        workloads.insert(key, policies);
    }
    Ok(json!({"policies": answer["policies"], "workloads": workloads}))
}
