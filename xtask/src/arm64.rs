//! Everything compiles for arm64, and what needs no kernel of its own runs there.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build::{ARM64_PAGES, cargo_command};
use crate::{ebpf, setup};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Everything that is installed on nodes, with its tests, and whether those ask nothing of the kernel that an emulator
/// of user space could not answer.
const CRATES: [(&str, bool); 10] = [
    ("weft-ebpf-common", true),
    ("weft-core", true),
    ("weft-control", true),
    ("weft-identity", true),
    ("weft-telemetry", true),
    ("weft-tls", true),
    ("weft-kernel", false),
    ("weft-proxy", false),
    ("weft-cni", true),
    ("weft", false),
];

#[derive(Debug, Args)]
pub(crate) struct CheckArm64Args {
    /// Also run the unit tests of the crates that need no kernel of their own, under QEMU.
    #[arg(long)]
    run: bool,
}

pub(crate) fn run(args: &CheckArm64Args) -> Result<bool> {
    setup::arm64()?;
    add_target()?;
    ebpf::build()?;
    cargo(&[packages("check", &CRATES.map(|(name, _)| name)), vec!["--all-targets"]].concat())?;
    println!("everything compiles for {TARGET}");
    if args.run {
        let emulated = CRATES.into_iter().filter(|(_, emulated)| *emulated);
        let emulated: Vec<&str> = emulated.map(|(name, _)| name).collect();
        cargo(&[packages("test", &emulated), vec!["--lib", "--bins"]].concat())?;
        println!("the tests of {} pass on it", emulated.join(", "));
    }
    Ok(true)
}

fn packages<'a>(command: &'a str, packages: &[&'a str]) -> Vec<&'a str> {
    let packages = packages.iter().flat_map(|package| ["-p", package]);
    [command, "--quiet", "--locked", "--target", TARGET].into_iter().chain(packages).collect()
}

fn add_target() -> Result<()> {
    if setup::find("rustup").is_none() {
        // A toolchain without rustup has the target or says itself that it has not.
        return Ok(());
    }
    if !setup::succeeds("rustup", &["target", "add", TARGET]) {
        bail!("the standard library for {TARGET} is missing: rustup target add {TARGET}");
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    let mut cargo: Command = cargo_command(args)?;
    cargo
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64-static -L /usr/aarch64-linux-gnu")
        .env("CC_aarch64_unknown_linux_gnu", LINKER)
        .env(ARM64_PAGES.0, ARM64_PAGES.1);
    let status = cargo.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("`cargo {}` failed", args.join(" "));
    }
    Ok(())
}
