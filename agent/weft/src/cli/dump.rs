//! `weft dump`.

use clap::Args;
use serde_json::Value;

use super::cluster::ClusterDump;
use super::{Ended, OutputOption, Target, TargetOptions, client};
use crate::output;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: TargetOptions,
    /// Only the agent of this node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    output: OutputOption,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let complete = match options.target.target()? {
        Target::Socket(socket) => {
            let dump: Value = serde_json::from_str(&client::get(&socket, "/dump")?)?;
            output::print(options.output.output, &dump, render)?;
            true
        }
        Target::Cluster(cluster) => {
            let dump = ClusterDump::ask(&cluster, options.node.as_deref())?;
            output::print(options.output.output, &dump, |dump| dump.render(render))?;
            dump.is_complete()
        }
    };
    Ok(if complete { Ended::Fine } else { Ended::BadNews })
}

/// The most asked-for part for people; the rest is in JSON and YAML.
fn render(dump: &Value) -> String {
    let text = |value: &Value, key: &str| match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(true)) => "yes".into(),
        Some(Value::Bool(false)) => "no".into(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        Some(Value::Null | Value::Number(_) | Value::Object(_)) | None => "-".into(),
    };
    let list = |key: &str| dump.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let workloads = list("workloads");
    let workloads =
        workloads.iter().map(|pod| ["pod", "ips", "node", "principal", "in_mesh"].map(|key| text(pod, key)));
    let services = list("services");
    let services = services.iter().map(|service| ["service", "host", "vips"].map(|key| text(service, key)));
    let local = list("local");
    let local = local.iter().map(|pod| {
        let mode = pod.pointer("/peer_authentication/mode").and_then(Value::as_str).unwrap_or("-");
        let policies = pod.get("policies").and_then(Value::as_array).map_or(0, Vec::len);
        [text(pod, "pod"), text(pod, "netns"), mode.to_owned(), policies.to_string()]
    });
    let hosts = list("hosts");
    let hosts = hosts.iter().map(|host| {
        let services = host.get("virtual_services").and_then(Value::as_array).cloned().unwrap_or_default();
        let name = |service: &Value| {
            let part = |key| service.pointer(key).and_then(Value::as_str).unwrap_or_default();
            format!("{}/{}", part("/object/namespace"), part("/object/name"))
        };
        [text(host, "host"), services.iter().map(name).collect::<Vec<_>>().join(",")]
    });
    let rules = list("destination_rules");
    let rules =
        rules.iter().map(|rule| ["host", "namespace", "load_balancer", "subsets"].map(|key| text(rule, key)));
    let list_of_problems = list("problems");
    let problems = list_of_problems.iter().map(|problem| {
        let object = problem.get("object").filter(|object| !object.is_null());
        let object =
            object.map(|object| ["kind", "namespace", "name"].map(|key| text(object, key)).join("/"));
        let [severity, code, message] = ["severity", "code", "message"].map(|key| text(problem, key));
        [severity, code, object.unwrap_or_else(|| "-".into()), message]
    });
    format!(
        "{}\n{}\n{}\n{}\n{}\n{}",
        output::table(["POD", "IPS", "NODE", "PRINCIPAL", "IN MESH"], workloads),
        output::table(["SERVICE", "HOST", "VIPS"], services),
        output::table(["HOST", "VIRTUAL SERVICES"], hosts),
        output::table(["HOST", "NAMESPACE", "LOAD BALANCER", "SUBSETS"], rules),
        output::table(["LOCAL POD", "NETNS", "MTLS", "POLICIES"], local),
        output::table(["SEVERITY", "CODE", "OBJECT", "PROBLEM"], problems),
    )
}
