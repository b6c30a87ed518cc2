//! `weft bug-report`: everything that helps to find a fault, in one file, without secrets.

mod archive;
mod cluster;
mod node;
mod redact;

use std::path::PathBuf;

use clap::Args;

use super::{Ended, Target, TargetOptions};
use archive::Archive;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: TargetOptions,
    /// Only the agent of this node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The file that is written [default: weft-bug-report-TIME.tar.gz].
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Lines of each log, counted from its end.
    #[arg(long, value_name = "N", default_value_t = 5000)]
    tail: u32,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let root = jiff::Timestamp::now().strftime("weft-bug-report-%Y%m%dT%H%M%SZ").to_string();
    let path = options.file.clone().unwrap_or_else(|| format!("{root}.tar.gz").into());
    // Without an API server there is nothing to report, and no file is left behind.
    let target = options.target.target()?;
    let mut archive = Archive::create(&path, &root)?;
    archive.json("versions.json", serde_json::json!({"weft": env!("CARGO_PKG_VERSION")}))?;
    match &target {
        Target::Cluster(cluster) => {
            cluster::gather(cluster, options.node.as_deref(), options.tail, &mut archive)?;
        }
        Target::Socket(socket) => node::gather(socket, &mut archive)?,
    }
    let missing = archive.failures().to_vec();
    archive.finish()?;
    for failure in &missing {
        eprintln!("missing: {}", redact::text(failure));
    }
    println!("{}", path.display());
    eprintln!(
        "Tokens, keys, passwords and Secrets were taken out; look through it all the same before you pass it on: \
         `tar -tzf {}`.",
        path.display()
    );
    Ok(if missing.is_empty() { Ended::Fine } else { Ended::BadNews })
}
