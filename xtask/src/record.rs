//! What a real istiod says, as fixtures of the tests that compare it with us.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::build::{cargo, root, target_dir};
use crate::{ebpf, k8s, setup};

#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// Write nothing, and fail where something would change.
    #[arg(long)]
    check: bool,
}

/// Writes the fixtures, or compares them.
pub(crate) fn run(args: &RecordArgs) -> Result<bool> {
    setup::machine()?;
    record(args.check)
}

fn record(check: bool) -> Result<bool> {
    k8s::build()?;
    k8s::istiod()?;
    cargo(&["build", "--quiet", "--locked", "-p", "weft-kubernetes-tests", "--bin", "record"])?;
    let mut command = Command::new(target_dir()?.join("debug/record"));
    command.arg("--fixtures").arg(root()?.join("tests/interop/fixtures"));
    command.arg("--crds").arg(root()?.join("deploy/crds"));
    command.args(check.then_some("--check"));
    Ok(command.status().context("record cannot be run")?.success())
}

/// Tests against a running istiod: its CA with our agents, our CA with its clients, and that it still says what is
/// recorded.
///
/// # Errors
/// Something that this needs cannot be had.
pub(crate) fn test() -> Result<bool> {
    ebpf::build()?;
    k8s::build()?;
    k8s::istiod()?;
    cargo(&["build", "--quiet", "--locked", "-p", "weft", "--bins"])?;
    let peers = cargo(&["test", "--locked", "-p", "weft-kubernetes-tests", "--test", "ca", "istiod"]);
    let recorded = record(true)?;
    peers.context("istiod as a peer")?;
    ensure!(recorded, "istiod says something else than what is recorded");
    Ok(true)
}
