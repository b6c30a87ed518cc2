//! Building of what the other commands run.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::ebpf;

/// The workspace.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(Path::to_path_buf).context("xtask is not inside the workspace")
}

/// Cargo's target directory.
pub(crate) fn target_dir() -> Result<PathBuf> {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| Ok(root()?.join("target")), |dir| Ok(PathBuf::from(dir)))
}

/// Builds kernel programs, agent and lab in release mode; gives the directory of the binaries.
pub(crate) fn release() -> Result<PathBuf> {
    ebpf::build()?;
    cargo(&["build", "--quiet", "--release", "--locked", "-p", "weft", "-p", "weft-lab"])?;
    Ok(target_dir()?.join("release"))
}

/// Kernels of arm64 have pages of 4, 16 or 64 KiB, and jemalloc runs only where pages are no larger than it was told.
/// Left alone it believes the machine that builds it.
pub(crate) const ARM64_PAGES: (&str, &str) = ("JEMALLOC_SYS_WITH_LG_PAGE", "16");

/// Cargo in the workspace, with the toolchain that runs us.
pub(crate) fn cargo_command(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set for us by `cargo run`; a cargo that finds them would believe that it builds xtask.
    for variable in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(variable);
    }
    if env::consts::ARCH == "aarch64" {
        command.env(ARM64_PAGES.0, ARM64_PAGES.1);
    }
    command.args(args).current_dir(root()?).stdin(Stdio::null());
    Ok(command)
}

/// Runs cargo; its messages go to our standard error, so that standard output stays ours.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    let status = cargo_command(args)?.stdout(std::io::stderr()).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("`cargo {}` failed", args.join(" "));
    }
    Ok(())
}
