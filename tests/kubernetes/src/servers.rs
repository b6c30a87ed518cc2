//! The programs, or word that they are missing.

use std::path::PathBuf;

use anyhow::{Result, bail};
use weft_lab::{KUBERNETES_PROGRAMS, kubernetes_servers};

const BUILD: &str = "cargo xtask k8s";

/// The directory of the servers. `None` when they were not built, which has been printed as a skipped test
/// then.
///
/// # Errors
/// They are missing, and `CI` is set or `KUBEBUILDER_ASSETS` says where they should be.
pub fn servers() -> Result<Option<PathBuf>> {
    let Some(dir) = kubernetes_servers()? else {
        if std::env::var_os("CI").is_some() {
            bail!("the Kubernetes servers are missing; build them with `{BUILD}`");
        }
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("kubernetes");
        println!("SKIPPED {test}: the Kubernetes servers are missing; build them with `{BUILD}`");
        return Ok(None);
    };
    let missing: Vec<&str> =
        KUBERNETES_PROGRAMS.iter().take(2).copied().filter(|name| !dir.join(name).is_file()).collect();
    if !missing.is_empty() {
        bail!("{} has no {} (KUBEBUILDER_ASSETS says to look there)", dir.display(), missing.join(", "));
    }
    Ok(Some(dir))
}
