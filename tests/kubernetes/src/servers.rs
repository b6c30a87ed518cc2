//! The programs, or word that they are missing.

use std::path::PathBuf;

use anyhow::{Result, bail};
use weft_lab::{ISTIOD, KUBERNETES, kubernetes_servers};

/// The directory of the servers. `None` when they were not built, which has been printed as a skipped test
/// then.
///
/// # Errors
/// They are missing, and `CI` is set or `KUBEBUILDER_ASSETS` says where they should be.
pub fn servers() -> Result<Option<PathBuf>> {
    let Some(dir) = kubernetes_servers()? else {
        let (title, command) = (KUBERNETES.title, KUBERNETES.command);
        if std::env::var_os("CI").is_some() {
            bail!("{title} are missing; build them with `{command}`");
        }
        println!("SKIPPED {}: {title} are missing; build them with `{command}`", test());
        return Ok(None);
    };
    let missing: Vec<&str> =
        KUBERNETES.programs.iter().take(2).copied().filter(|name| !dir.join(name).is_file()).collect();
    if !missing.is_empty() {
        bail!("{} has no {} (KUBEBUILDER_ASSETS says to look there)", dir.display(), missing.join(", "));
    }
    Ok(Some(dir))
}

/// The binary of istiod. `None` when it was not built, which has been printed as a skipped test then, in CI too:
/// what it says is recorded in fixtures, and `cargo xtask test-cluster --istiod` asks it anew.
///
/// # Errors
/// The source cannot be read.
pub(crate) fn istiod() -> Result<Option<PathBuf>> {
    let built = ISTIOD.built()?;
    if built.is_none() {
        println!("SKIPPED {}: {} is missing; build it with `{}`", test(), ISTIOD.title, ISTIOD.command);
    }
    Ok(built.map(|dir| dir.join(ISTIOD.binary)))
}

fn test() -> String {
    std::thread::current().name().unwrap_or("kubernetes").to_owned()
}
