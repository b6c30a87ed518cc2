//! `weft cleanup`: works without a running agent (ruling 12).

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use weft_core::resource::NamespacedName;
use weft_kernel::{CleanupReport, Datapath};

use super::{Ended, OutputOption};
use crate::agent::cni::InstallOptions;
use crate::agent::datapath_options::DatapathOptions;
use crate::agent::own_files;
use crate::output;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Only this pod, as NAMESPACE/NAME.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,
    /// The node whose agent left it, for defaults that name it.
    #[arg(long, value_name = "NAME", default_value = "")]
    node: String,
    #[command(flatten)]
    datapath: DatapathOptions,
    #[command(flatten)]
    cni: InstallOptions,
    #[command(flatten)]
    output: OutputOption,
}

#[derive(Debug, Serialize)]
struct Cleaned {
    links: usize,
    maps: usize,
    namespaces: usize,
    failures: Vec<String>,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let pod = options.pod.as_deref().map(parse_pod).transpose()?;
    let config = options.datapath.resolve(&options.node, false)?.config;
    // First of all: new pods are not to be held back by a plugin that nobody answers.
    let plugin = options.cni.installation(None, "".into()).filter(|_| pod.is_none());
    let mut kept = plugin.map(|plugin| plugin.uninstall()).unwrap_or_default();
    let CleanupReport { links, maps, namespaces, mut failures } =
        Datapath::cleanup(&config, pod.as_ref()).context("nothing could be removed")?;
    failures.append(&mut kept);
    if pod.is_none() {
        own_files::remove_directories(options.datapath.proc(), &[]);
    }
    let cleaned = Cleaned { links, maps, namespaces, failures };
    let bad = !cleaned.failures.is_empty();
    output::print(options.output.output, &cleaned, render)?;
    Ok(if bad { Ended::BadNews } else { Ended::Fine })
}

fn parse_pod(text: &str) -> anyhow::Result<NamespacedName> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(NamespacedName::new(namespace, name))
        }
        Some(_) | None => bail!("--pod {text}: write NAMESPACE/NAME"),
    }
}

fn render(cleaned: &Cleaned) -> String {
    let mut out = format!(
        "{} links detached, {} maps unpinned, {} network namespaces restored\n",
        cleaned.links, cleaned.maps, cleaned.namespaces
    );
    for failure in &cleaned.failures {
        out += &format!("FAILED: {failure}\n");
    }
    out
}
