//! Settings of the host that a lab changes for its time, and how they come back.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const RESTORE_FILE: &str = "restore-sysctl";

fn path_of(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

/// Sets host-wide settings; what they were before is first written to the lab's directory.
pub(crate) fn set_for_a_while(run_dir: &Path, settings: &[(&str, &str)]) -> Result<()> {
    let mut before = String::new();
    for (key, _) in settings {
        let value =
            fs::read_to_string(path_of(key)).with_context(|| format!("sysctl {key} cannot be read"))?;
        before.push_str(&format!("{key}={}\n", value.trim()));
    }
    fs::write(run_dir.join(RESTORE_FILE), before)?;
    for (key, value) in settings {
        fs::write(path_of(key), value).with_context(|| format!("sysctl {key} cannot be set to {value:?}"))?;
    }
    Ok(())
}

/// Puts back what [`set_for_a_while`] wrote down.
pub(crate) fn restore(run_dir: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(run_dir.join(RESTORE_FILE)) else { return Ok(()) };
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        fs::write(path_of(key), value)
            .with_context(|| format!("sysctl {key} cannot be set back to {value:?}"))?;
    }
    Ok(())
}
