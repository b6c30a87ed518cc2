//! Builds the servers of a real Kubernetes: `tests/kubernetes/servers` → `target/k8s/<key>-<version of Go>`, and
//! istiod: `tests/kubernetes/istiod` → `target/istiod/<key>-<version of Go>`.
//!
//! A build takes four or five minutes on two processors, so it is kept twice: in the target directory, and in a
//! directory of the user that a fresh clone finds by the same key.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use weft_lab::{GoModule, ISTIOD, KUBERNETES, kubernetes_servers};

use crate::setup;

/// What Kubernetes' go.mod asks for.
const OLDEST_GO: (u32, u32) = (1, 26);
/// Of Kubernetes, in go.mod.
const MODULE: &str = "k8s.io/kubernetes";

#[derive(Debug, Args)]
pub(crate) struct K8sArgs {
    /// Build istiod, which only `test-cluster --istiod` and `record` need, and print its directory.
    #[arg(long)]
    istiod: bool,
}

/// Builds them and prints the directory, for `KUBEBUILDER_ASSETS`.
pub(crate) fn run(args: &K8sArgs) -> Result<bool> {
    let built = if args.istiod { istiod() } else { build() };
    println!("{}", built?.display());
    Ok(true)
}

/// Gives the directory of the servers, and builds them when there is none.
///
/// # Errors
/// Go is missing or too old and cannot be installed (the text says what to do), or the build fails.
pub(crate) fn build() -> Result<PathBuf> {
    if let Some(present) = kubernetes_servers()? {
        ensure!(
            present.join("kube-apiserver").is_file(),
            "KUBEBUILDER_ASSETS is {}, which has no kube-apiserver; unset it, and they are built here",
            present.display()
        );
        return Ok(present);
    }
    make(&KUBERNETES, &kubernetes_flags()?)
}

/// Gives the directory of istiod, and builds it when there is none.
///
/// # Errors
/// As those of [`build`].
pub(crate) fn istiod() -> Result<PathBuf> {
    match ISTIOD.built()? {
        Some(present) => Ok(present),
        None => make(&ISTIOD, "-s -w"),
    }
}

fn make(module: &GoModule, flags: &str) -> Result<PathBuf> {
    let (go, version) = find_or_install_go()?;
    let caches = module.caches();
    let name = format!("{}-{version}", module.source_key()?);
    let own = caches.first().context("there is a target directory")?.join(&name);
    eprintln!("Building {} into {} (the first time takes about five minutes) …", module.title, own.display());
    compile(module, &go, flags, &own)?;
    for cache in caches.iter().skip(1) {
        // Only a convenience: the user's directory may be read-only.
        if let Err(e) = publish(module, &own.join(module.binary), &cache.join(&name)) {
            eprintln!("{} is not kept in {}: {e:#}", module.binary, cache.display());
        }
    }
    Ok(own)
}

/// Tells the servers which version they are.
fn kubernetes_flags() -> Result<String> {
    let version = kubernetes_version()?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let flags = [
        "-s -w".to_owned(),
        format!("-X k8s.io/component-base/version.gitVersion={version}"),
        format!("-X k8s.io/component-base/version.gitMajor={major}"),
        format!("-X k8s.io/component-base/version.gitMinor={minor}"),
        format!("-X k8s.io/client-go/pkg/version.gitVersion={version}"),
    ];
    Ok(flags.join(" "))
}

fn compile(module: &GoModule, go: &Path, flags: &str, to: &Path) -> Result<()> {
    let fresh = unfinished(to);
    fs::create_dir_all(&fresh).with_context(|| format!("{} cannot be made", fresh.display()))?;
    let binary = fresh.join(module.binary);
    let mut command = Command::new("nice");
    command.args(["-n", "10"]).arg(go).args([
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        flags,
        "-o",
    ]);
    command.arg(&binary).arg(".").current_dir(module.source());
    command.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
    let status = command.stdout(std::io::stderr()).status().context("nice cannot be run")?;
    ensure!(status.success(), "the Go build failed ({status})");
    let published = publish(module, &binary, to);
    let _ = fs::remove_dir_all(&fresh);
    published
}

/// Makes the directory with the binary and a link for each program; whoever looks sees all of it or nothing.
fn publish(module: &GoModule, binary: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    let fresh = unfinished(to).with_extension("links.new");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    // A second name costs nothing; between file systems it must be a copy.
    fs::hard_link(binary, fresh.join(module.binary))
        .or_else(|_| fs::copy(binary, fresh.join(module.binary)).map(drop))
        .with_context(|| format!("{} cannot be written", fresh.display()))?;
    for program in module.programs {
        symlink(module.binary, fresh.join(program))?;
    }
    fs::rename(&fresh, to).with_context(|| format!("{} cannot be written", to.display()))
}

/// Where a build goes on. The end of the name says that it is none yet.
fn unfinished(to: &Path) -> PathBuf {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    to.with_file_name(format!("{name}.{}.new", std::process::id()))
}

fn kubernetes_version() -> Result<String> {
    let path = KUBERNETES.source().join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    required_version(&text, MODULE).with_context(|| format!("{} does not require {MODULE}", path.display()))
}

/// Version of a module in the text of a go.mod.
fn required_version(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == module).then(|| words.next().map(str::to_owned))?
    })
}

/// Go and its version, as `go1.26.8`.
pub(crate) fn find_or_install_go() -> Result<(PathBuf, String)> {
    if let Some(found) = find_go() {
        return Ok(found);
    }
    let (major, minor) = OLDEST_GO;
    let package = format!("golang-{major}.{minor}-go");
    let installed = setup::apt_install(&[&package]) || setup::apt_install(&["golang-go"]);
    if let Some(found) = find_go().filter(|_| installed) {
        return Ok(found);
    }
    bail!(
        "Go {major}.{minor} or newer is needed for the Kubernetes servers, and no package of this system has it; \
         install it from https://go.dev/dl (tar -C /usr/local -xzf go{major}.{minor}.*.tar.gz), or set \
         KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kubectl"
    )
}

fn find_go() -> Option<(PathBuf, String)> {
    let (major, minor) = OLDEST_GO;
    let usual = ["/usr/local/go/bin/go".to_owned(), format!("/usr/lib/go-{major}.{minor}/bin/go")];
    let candidates = setup::find("go").into_iter().chain(usual.into_iter().map(PathBuf::from));
    candidates.filter(|path| path.is_file()).find_map(|path| {
        let out = Command::new(&path)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let version = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        (go_version(&version)? >= OLDEST_GO).then_some((path, version))
    })
}

/// `go1.26.8` is 1.26.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(go_version("devel"), None);
        let text = "require (\n\tk8s.io/kubectl v0.36.3\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(required_version(text, MODULE).as_deref(), Some("v1.36.3"));
    }

    #[test]
    fn the_version_of_the_module_is_known() {
        assert!(kubernetes_version().unwrap().starts_with("v1."));
    }

    #[test]
    fn a_build_is_published_whole() {
        let dir = std::env::temp_dir().join(format!("weft-k8s-publish-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (binary, to) = (dir.join("built"), dir.join("out"));
        fs::write(&binary, "x").unwrap();
        publish(&KUBERNETES, &binary, &to).unwrap();
        for program in KUBERNETES.programs {
            assert_eq!(fs::read_to_string(to.join(program)).unwrap(), "x");
        }
        publish(&KUBERNETES, &binary, &to).unwrap();
        let names: Vec<_> = fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names.len(), 2, "nothing unfinished stays: {names:?}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
