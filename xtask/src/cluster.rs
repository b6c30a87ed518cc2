//! Tests of Weft in a real cluster: two nodes with kubelet and containerd, our image, our manifest.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::build::{cargo, cargo_command, root, target_dir};
use crate::test::{Counts, parse_result};
use crate::{ebpf, image, k8s, record, setup};

#[derive(Debug, Args)]
pub(crate) struct TestClusterArgs {
    /// Nodes that have cgroup2 and nothing else.
    #[arg(long)]
    cgroup2_only: bool,
    /// Start the cluster and keep it until the end of standard input, instead of testing.
    #[arg(long)]
    hold: bool,
    /// Test against a real istiod instead: its CA and ours, and that the recorded fixtures are what it says.
    #[arg(long, conflicts_with_all = ["cgroup2_only", "hold", "filters"])]
    istiod: bool,
    /// Only steps whose name contains one of these.
    filters: Vec<String>,
}

/// Prepares and tests; true when nothing has failed.
pub(crate) fn run(args: &TestClusterArgs) -> Result<bool> {
    setup::machine()?;
    if args.istiod {
        return record::test();
    }
    let mut words: Vec<String> = Vec::new();
    words.extend(args.cgroup2_only.then(|| "--cgroup2-only".to_owned()));
    words.extend(args.hold.then(|| "--hold".to_owned()));
    words.extend(args.filters.iter().cloned());
    if args.hold {
        return Ok(command(&words)?.status().context("cluster-tests cannot be run")?.success());
    }
    Ok(counted(&words)?.failed == 0)
}

/// Prepares and tests on both kinds of nodes.
///
/// # Errors
/// Something that the cluster needs cannot be had.
pub(crate) fn stage() -> Result<Counts> {
    let mut counts = counted(&[])?;
    counts.add(counted(&["--cgroup2-only".to_owned()])?);
    Ok(counts)
}

fn counted(words: &[String]) -> Result<Counts> {
    let mut child = command(words)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cluster-tests cannot be run")?;
    let output = child.stdout.take().context("the output was asked for")?;
    let mut counts = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        counts = parse_result(&line).or(counts);
        println!("{line}");
    }
    let status = child.wait()?;
    let counts = counts.with_context(|| format!("the tests have not come to their end ({status})"))?;
    ensure!(status.success() == (counts.failed == 0), "the tests ended with {status}");
    Ok(counts)
}

/// Builds everything and gives the command that tests.
fn command(words: &[String]) -> Result<Command> {
    setup::nodes()?;
    ebpf::build()?;
    k8s::build()?;
    cargo(&["build", "--quiet", "--locked", "-p", "weft-lab", "-p", "weft-kubernetes-tests", "--bins"])?;
    let peer = static_peer()?;
    let image = image::build()?;
    let mut command = Command::new(target_dir()?.join("debug/cluster-tests"));
    command.arg("--image").arg(image).arg("--manifest").arg(root()?.join("deploy/weft.yaml"));
    command.arg("--peer").arg(peer).args(words);
    Ok(command)
}

/// `lab-peer` for images that have no libraries, in a directory of its own: with other flags cargo would build
/// everything again.
fn static_peer() -> Result<PathBuf> {
    let target = image::host_target()?;
    let folder = target_dir()?.join("static");
    let mut command =
        cargo_command(&["build", "--quiet", "--locked", "-p", "weft-lab", "--bins", "--target", &target])?;
    command.arg("--target-dir").arg(&folder);
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let status = command.stdout(std::io::stderr()).status().context("cargo cannot be run")?;
    ensure!(status.success(), "lab-peer cannot be built");
    Ok(folder.join(target).join(Path::new("debug/lab-peer")))
}
