//! The container image, made without a container engine: one layer, packed by `tar`.
//!
//! In it are the binaries, the shared libraries that `weft` is linked to (glibc looks up names with parts of
//! itself that it cannot do without, so it is not linked statically), licence notices and the list of what all
//! of it is made of. `weft-cni` is static: it runs on the node, not in the image. The `Dockerfile` runs this
//! module too, so that both ways give the same files.

mod libraries;
mod notices;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::build::{cargo, cargo_command, root, target_dir};
use crate::ebpf;

/// Repository of the image, as the manifests name it.
const REPOSITORY: &str = "docker.io/weft/weft";
/// Where licence notices and the list of parts are.
const DOCUMENTS: &str = "usr/share/doc/weft";

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Binaries of the development profile: slower ones, which are there already.
    #[arg(long)]
    dev: bool,
    /// Stop when the folder with the image's files is complete.
    #[arg(long)]
    files_only: bool,
}

/// How the binaries are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    Dev,
    Release,
}

/// Builds the image of `cargo xtask image`.
///
/// # Errors
/// A build fails, or a tool that packs the image is missing.
pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    let built = match (args.files_only, args.dev) {
        (true, true) => files(Profile::Dev)?,
        (true, false) => files(Profile::Release)?,
        (false, true) => build()?,
        (false, false) => pack(&files(Profile::Release)?)?,
    };
    println!("{}", built.display());
    Ok(())
}

/// Builds the image that tests run, of the development profile: a docker-archive with the tags `dev` and the
/// version, at the path that is returned.
///
/// # Errors
/// A build fails, or a tool that packs the image is missing.
pub(crate) fn build() -> Result<PathBuf> {
    pack(&files(Profile::Dev)?)
}

/// Everything that is in the image, as a folder.
fn files(profile: Profile) -> Result<PathBuf> {
    let weft = build_weft(profile)?;
    let plugin = build_plugin(profile)?;
    let image = target_dir()?.join("image/files");
    if image.exists() {
        fs::remove_dir_all(&image).with_context(|| format!("cannot empty {}", image.display()))?;
    }
    for folder in ["usr/bin", DOCUMENTS, "etc", "tmp", "run", "var/run"] {
        fs::create_dir_all(image.join(folder))?;
    }
    install_stripped(&weft, &image.join("usr/bin/weft"))?;
    install_stripped(&plugin, &image.join("usr/bin/weft-cni"))?;
    let libraries = libraries::install(&weft, &image)?;
    // The name service of glibc asks this file in which order to ask; `weft` has the one user that it needs.
    fs::write(image.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    fs::write(image.join("etc/passwd"), "root:x:0:0::/:\nweft:x:65532:65532::/:\n")?;
    fs::write(image.join("etc/group"), "root:x:0:\nweft:x:65532:\n")?;
    let documents = image.join(DOCUMENTS);
    fs::copy(root()?.join("LICENSE"), documents.join("LICENSE"))?;
    notices::write(&documents, &libraries)?;
    Ok(image)
}

fn build_weft(profile: Profile) -> Result<PathBuf> {
    ebpf::build()?;
    let mut args = vec!["build", "--quiet", "--locked", "-p", "weft"];
    args.extend(profile.flag());
    cargo(&args)?;
    Ok(target_dir()?.join(profile.folder()).join("weft"))
}

/// Built statically, in a folder of its own: with other flags cargo would build everything again.
fn build_plugin(profile: Profile) -> Result<PathBuf> {
    let target = host_target()?;
    let folder = target_dir()?.join("static");
    let mut command =
        cargo_command(&["build", "--quiet", "--locked", "-p", "weft-cni", "--target", &target])?;
    command.args(profile.flag()).arg("--target-dir").arg(&folder);
    // Needed even where the workspace's own settings name a linker: flags given here replace those.
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let status = command.stdout(std::io::stderr()).status().context("cargo cannot be run")?;
    ensure!(status.success(), "the CNI plugin cannot be built");
    Ok(folder.join(target).join(profile.folder()).join("weft-cni"))
}

impl Profile {
    fn flag(self) -> Option<&'static str> {
        match self {
            Self::Dev => None,
            Self::Release => Some("--release"),
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// The platform that the compiler runs on and builds for.
pub(crate) fn host_target() -> Result<String> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let out = rustc.arg("-vV").current_dir(root()?).output().context("rustc cannot be run")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not name its host")
}

/// Copies a binary without its debug information, which is most of it.
fn install_stripped(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("--strip-debug").arg("-o").args([to, from]).status();
    match status {
        Ok(status) if status.success() => {}
        // Larger, and as good.
        Ok(_) | Err(_) => {
            fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

/// Packs the files as a docker-archive, which `docker load` and `ctr images import` read.
fn pack(image: &Path) -> Result<PathBuf> {
    let folder = image.parent().context("the image's folder has no parent")?.to_owned();
    let layer = folder.join("layer.tar");
    tar(&layer, image, &["."])?;
    let config = config(&sha256(&layer)?)?;
    fs::write(folder.join("config.json"), serde_json::to_vec(&config)?)?;
    let version = version()?;
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [format!("{REPOSITORY}:{version}"), format!("{REPOSITORY}:dev")],
        "Layers": ["layer.tar"],
    }]);
    fs::write(folder.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    let archive = folder.join("weft.tar");
    tar(&archive, &folder, &["manifest.json", "config.json", "layer.tar"])?;
    fs::remove_file(&layer)?;
    Ok(archive)
}

fn config(layer: &str) -> Result<serde_json::Value> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no image is made for {other}: x86-64 and arm64 are supported"),
    };
    let version = version()?;
    Ok(json!({
        "architecture": architecture,
        "os": "linux",
        // The same files give the same image.
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/usr/bin/weft"],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "weft",
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    }))
}

/// The version of all our packages: xtask has the same one.
fn version() -> Result<String> {
    let manifest = fs::read_to_string(root()?.join("Cargo.toml"))?;
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = "));
    Ok(version.context("Cargo.toml has no version")?.trim_matches('"').to_owned())
}

/// Packs files so that the archive depends on their content alone.
fn tar(archive: &Path, folder: &Path, files: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--create", "--format=ustar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"]);
    command.args(["--numeric-owner", "--mode=u+rw,go=rX", "--file"]).arg(archive);
    command.arg("--directory").arg(folder).args(files);
    let status = command.stdin(Stdio::null()).status().context("tar cannot be run")?;
    ensure!(status.success(), "{} cannot be packed: {status}", archive.display());
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let out = Command::new("sha256sum").arg(file).output().context("sha256sum cannot be run")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let digest = text.split(' ').next().filter(|digest| digest.len() == 64);
    digest.map(str::to_owned).with_context(|| format!("no digest of {}", file.display()))
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
