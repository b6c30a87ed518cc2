//! Images without a registry and without an engine: archives as `ctr images import` reads them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use weft_lab::{output, run};

/// What holds the namespaces of a pod.
pub(super) const PAUSE: &str = "docker.io/weft-tests/pause:1";

/// What is to be in an image of one layer.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    /// `docker.io/NAME:TAG`.
    pub tag: &'a str,
    /// Static programs: where they are, and their path inside.
    pub programs: &'a [(&'a Path, &'a str)],
    /// What runs when the pod does not say.
    pub command: &'a [&'a str],
}

impl Image<'_> {
    /// Writes the archive into a directory and gives its path.
    ///
    /// # Errors
    /// A program is missing, or `tar` fails.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let name = self.tag.replace(['/', ':'], "-");
        let work = dir.join(format!("image-{name}"));
        let root = work.join("root");
        for inside in ["bin", "tmp", "etc", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(inside))?;
        }
        for (from, to) in self.programs {
            let to = root.join(to.trim_start_matches('/'));
            fs::copy(from, &to).with_context(|| format!("{} cannot be copied", from.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        }
        tar(&work.join("layer.tar"), &root, &["."])?;
        fs::remove_dir_all(&root)?;
        let sum = output("sha256sum", &[&work.join("layer.tar").display().to_string()])?;
        let sum = sum.split(' ').next().context("sha256sum prints a sum")?;
        fs::write(work.join("config.json"), self.config(sum).to_string())?;
        let manifest = json!([{ "Config": "config.json", "RepoTags": [self.tag], "Layers": ["layer.tar"] }]);
        fs::write(work.join("manifest.json"), manifest.to_string())?;
        let archive = dir.join(format!("{name}.tar"));
        tar(&archive, &work, &["manifest.json", "config.json", "layer.tar"])?;
        fs::remove_dir_all(&work)?;
        Ok(archive)
    }

    fn config(&self, layer: &str) -> serde_json::Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Cmd": self.command, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        })
    }
}

fn tar(archive: &Path, dir: &Path, files: &[&str]) -> Result<()> {
    let (archive, dir) = (archive.display().to_string(), dir.display().to_string());
    run("tar", &[&["--create", "--numeric-owner", "--file", &archive, "--directory", &dir], files].concat())
}

/// Debian's static busybox.
fn busybox() -> PathBuf {
    "/bin/busybox".into()
}

/// The pause image: it sleeps.
pub(super) fn pause(dir: &Path) -> Result<PathBuf> {
    let programs = [(busybox(), "/bin/sleep")];
    let programs: Vec<(&Path, &str)> = programs.iter().map(|(from, to)| (from.as_path(), *to)).collect();
    Image { tag: PAUSE, programs: &programs, command: &["/bin/sleep", "2147483647"] }.write(dir)
}
