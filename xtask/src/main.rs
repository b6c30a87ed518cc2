//! Developer commands, run as `cargo xtask COMMAND`.
//!
//! `demo` shows the mesh on one machine, `test` runs every test, `bench` measures; `lint`, `build` and
//! `build-ebpf` are the parts that one wants alone. What a command needs and does not find, it installs, or
//! it prints the command that does.
#![forbid(unsafe_code)]

mod arm64;
mod bench;
mod build;
mod cluster;
mod conformance;
mod crd;
mod demo;
#[cfg(test)]
mod documents;
mod ebpf;
mod image;
mod k8s;
mod lint;
mod manifests;
#[cfg(test)]
mod monitoring;
mod record;
mod setup;
mod signals;
mod source_length;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Weft")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the mesh: two nodes, real pods, real traffic, and what happened to it.
    Demo(demo::DemoArgs),
    /// Run all tests; FILTERS are passed to the tests' own selection.
    Test(test::TestArgs),
    /// Run the tests of the kernel's half on another kernel, in a virtual machine.
    TestKernel(vm::TestKernelArgs),
    /// Check that everything compiles for arm64, and run there what an emulator can run.
    CheckArm64(arm64::CheckArm64Args),
    /// Test in a real cluster of two nodes, in namespaces of its own.
    TestCluster(cluster::TestClusterArgs),
    /// Print the performance table.
    Bench(bench::BenchArgs),
    /// Check format, lints, documentation, dependencies and lengths.
    Lint,
    /// Build everything that demo and bench need, in release mode.
    Build,
    /// Build the kernel programs.
    BuildEbpf,
    /// Build the servers of a real Kubernetes, for the tests; prints their directory.
    K8s(k8s::K8sArgs),
    /// Record what a real istiod makes of the tests' YAML, as fixtures.
    Record(record::RecordArgs),
    /// Write deploy/weft.yaml and its companions: the chart with its own values.
    Manifests(manifests::ManifestArgs),
    /// Build the container image, as a tar that `docker load` and `ctr images import` read.
    Image(image::ImageArgs),
    /// Write the definitions of Istio's kinds into deploy/crds.
    Crd(crd::CrdArgs),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// The contract of the command line, for programs.
    Json,
}

fn main() -> ExitCode {
    signals::remove_labs_when_interrupted();
    match run(&Args::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the news is good.
fn run(command: &Command) -> Result<bool> {
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Test(args) => test::run(args),
        Command::TestCluster(args) => cluster::run(args),
        Command::TestKernel(args) => vm::run(args),
        Command::CheckArm64(args) => arm64::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Lint => lint::run(),
        Command::Build => build::release().map(|_| true),
        Command::BuildEbpf => ebpf::build().map(|()| true),
        Command::K8s(args) => k8s::run(args),
        Command::Crd(args) => crd::run(args),
        Command::Image(args) => image::run(args).map(|()| true),
        Command::Record(args) => record::run(args),
        Command::Manifests(args) => manifests::run(args),
    }
}
