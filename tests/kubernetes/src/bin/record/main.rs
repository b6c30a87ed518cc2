//! Records what a real istiod makes of YAML of ours, as fixtures of `tests/interop`: tests need no istiod then.
#![allow(clippy::indexing_slicing, reason = "what a JSON value lacks is null")]

mod prune;
mod sidecars;
mod world;
mod ztunnel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions, Istiod, IstiodBinary, IstiodOptions};
use weft_lab::Scope;

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the fixtures.
    #[arg(long)]
    fixtures: PathBuf,
    /// The directory of Istio's definitions.
    #[arg(long)]
    crds: PathBuf,
    /// Write nothing, and fail where something would change.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match record(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn record(args: &Args) -> Result<()> {
    let Some(binary) = IstiodBinary::find()? else { bail!("without istiod nothing can be recorded") };
    let mut files = Files::new(args, &binary)?;
    ztunnel::record(&Recorder::start(args, &binary)?, &mut files).context("policies of ztunnel")?;
    sidecars::record(&Recorder::start(args, &binary)?, &mut files).context("configuration of sidecars")?;
    files.finish()
}

/// An API server with Istio's kinds, and what starts istiod beside it.
struct Recorder<'a> {
    binary: &'a IstiodBinary,
    plane: ControlPlane,
    scope: Scope,
    fixtures: &'a Path,
}

impl<'a> Recorder<'a> {
    fn start(args: &'a Args, binary: &'a IstiodBinary) -> Result<Self> {
        let plane = ControlPlane::start(ControlPlaneOptions::default())?;
        let plane = plane.context("without an API server nothing can be recorded")?;
        let crds = args.crds.display().to_string();
        plane.kubectl(&["apply", "--server-side", "-f", &crds])?;
        plane.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"])?;
        Ok(Self { binary, plane, scope: Scope::new()?, fixtures: &args.fixtures })
    }

    /// An istiod that has read everything.
    fn istiod(&self, mesh: &str) -> Result<Istiod> {
        let options =
            IstiodOptions { root_namespace: "istio-system", trusted_accounts: "istio-system/ztunnel", mesh };
        Istiod::start(self.binary, &self.plane, &self.scope, &options)
    }

    /// Runs a client against it.
    fn ask(&self, istiod: &Istiod, command: &str, args: &[&str]) -> Result<Value> {
        let address = istiod.xds_address().to_string();
        let answer = self.binary.ask(&[&[command, "--address", &address], args].concat());
        answer.with_context(|| istiod.log())
    }

    /// Applies a file of the fixtures.
    fn apply(&self, path: &Path) -> Result<()> {
        let file = path.display().to_string();
        self.plane.kubectl(&["apply", "--server-side", "-f", &file]).map(drop)
    }

    fn delete(&self, path: &Path) -> Result<()> {
        let file = path.display().to_string();
        self.plane.kubectl(&["delete", "-f", &file]).map(drop)
    }
}

/// The files that are written, or compared.
struct Files {
    check: bool,
    recorded_from: Value,
    changed: Vec<String>,
    number: usize,
}

impl Files {
    fn new(args: &Args, binary: &IstiodBinary) -> Result<Self> {
        let versions = binary.ask(&["version"])?;
        let by = "cargo xtask record";
        let recorded_from = json!({"program": "istiod", "versions": versions, "by": by});
        Ok(Self { check: args.check, recorded_from, changed: Vec::new(), number: 0 })
    }

    /// Writes an object with a word about where it is from.
    fn put(&mut self, path: &Path, mut content: Value) -> Result<()> {
        if let Value::Object(fields) = &mut content {
            fields.insert("recorded_from".to_owned(), self.recorded_from.clone());
        }
        let text = format!("{}\n", serde_json::to_string_pretty(&content)?);
        self.number += 1;
        if fs::read_to_string(path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        self.changed.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        if !self.check {
            fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let changed = self.changed.join(", ");
        ensure!(
            self.changed.is_empty() || !self.check,
            "istiod says something else than what is recorded; see `cargo xtask record`: {changed}"
        );
        println!("{} fixtures are as istiod says; changed: {}", self.number, self.changed.len());
        Ok(())
    }
}

/// The files of a directory that end in `.yaml`, sorted.
fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("{} cannot be read", directory.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "{} has no YAML", directory.display());
    Ok(files)
}
