//! `deploy/weft.yaml` and what lies beside it: the chart with its own values, rendered by Helm's engine.
//!
//! The chart is the one source. People without Helm apply the files, `weft install` has them built in, and
//! a test renders them again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::build::{root, target_dir};
use crate::k8s::find_or_install_go;

#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    /// Only compare; a file that differs is bad news.
    #[arg(long)]
    check: bool,
}

/// A file that is a rendering of the chart.
struct Manifest {
    path: &'static str,
    what: &'static str,
    /// Flags of the renderer.
    flags: &'static [&'static str],
    /// Of which objects it consists; none means all.
    kind: Option<&'static str>,
}

const MANIFESTS: &[Manifest] = &[
    Manifest {
        path: "deploy/weft.yaml",
        what: "Weft for a cluster: kubectl apply -f weft.yaml",
        flags: &["-set", "createNamespace=true"],
        kind: None,
    },
    Manifest {
        path: "deploy/alerts.yaml",
        what: "Alerts, for the Prometheus operator: kubectl apply -f alerts.yaml",
        flags: &[
            "-set",
            "prometheusRule.enabled=true",
            "-api-version",
            "monitoring.coreos.com/v1/PrometheusRule",
        ],
        kind: Some("PrometheusRule"),
    },
    Manifest {
        path: "deploy/monitors.yaml",
        what: "What to scrape, for the Prometheus operator: kubectl apply -f monitors.yaml",
        flags: &["-set", "podMonitor.enabled=true", "-api-version", "monitoring.coreos.com/v1/PodMonitor"],
        kind: Some("PodMonitor"),
    },
];

/// Writes or compares the files; false when a comparison found a difference.
///
/// # Errors
/// Go is missing, the chart cannot be rendered, or a file cannot be written.
pub(crate) fn run(args: &ManifestArgs) -> Result<bool> {
    let renderer = build_renderer()?;
    let mut good = true;
    for manifest in MANIFESTS {
        let path = root()?.join(manifest.path);
        let text = manifest.text(&renderer)?;
        if !args.check {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            eprintln!("{} is not what `cargo xtask manifests` writes", manifest.path);
            good = false;
        }
    }
    Ok(good)
}

impl Manifest {
    fn text(&self, renderer: &Path) -> Result<String> {
        let rendered = render(renderer, self.flags)?;
        let documents = rendered.split("---\n").filter(|document| !document.trim().is_empty());
        let wanted: Vec<&str> = documents.filter(|document| self.has(document)).collect();
        ensure!(!wanted.is_empty(), "the chart has nothing for {}", self.path);
        let header =
            format!("# {}\n# Written by `cargo xtask manifests` from helm/weft: change that.\n", self.what);
        Ok(wanted.into_iter().fold(header, |text, document| text + "---\n" + document))
    }

    fn has(&self, document: &str) -> bool {
        self.kind.is_none_or(|kind| document.lines().any(|line| line == format!("kind: {kind}")))
    }
}

/// Builds the renderer; Go's own cache makes that quick from the second time on.
///
/// # Errors
/// Go is missing or cannot build it.
fn build_renderer() -> Result<PathBuf> {
    let (go, _) = find_or_install_go()?;
    let to = target_dir()?.join("helm/weft-helm");
    let status = Command::new(go)
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"])
        .arg(&to)
        .arg(".")
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .current_dir(root()?.join("tests/helm"))
        .status()
        .context("go cannot be run")?;
    ensure!(status.success(), "the renderer of charts cannot be built");
    Ok(to)
}

fn render(renderer: &Path, flags: &[&str]) -> Result<String> {
    let out = Command::new(renderer)
        .args(flags)
        .args(["template", "deploy/helm/weft"])
        .current_dir(root()?)
        .output();
    let out = out.with_context(|| format!("{} cannot be run", renderer.display()))?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr).trim());
    String::from_utf8(out.stdout).context("the rendering is no text")
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
