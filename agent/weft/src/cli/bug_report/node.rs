//! What is known on one machine: of its agent, and of the machine itself.

use std::path::Path;

use serde_json::Value;

use super::super::{check, client};
use super::Archive;

/// Files of the machine that say how it is set up.
const FILES: [&str; 4] = ["/proc/version", "/proc/cmdline", "/proc/self/mountinfo", "/etc/os-release"];
/// Where an agent gives its metrics unless it is told otherwise.
const METRICS: &str = "127.0.0.1:15020";

pub(super) fn gather(socket: &Path, archive: &mut Archive) -> anyhow::Result<()> {
    for (name, path) in [("status.json", "/status"), ("dump.json", "/dump")] {
        let answer = client::get(socket, path);
        match answer.and_then(|text| Ok(serde_json::from_str::<Value>(&text)?)) {
            Ok(value) => archive.json(name, value)?,
            Err(error) => archive.failed(name, &error),
        }
    }
    match client::get_tcp(METRICS, "/metrics") {
        Ok(text) => archive.text("metrics.txt", &text)?,
        Err(error) => archive.failed("metrics.txt", &error),
    }
    let report = check::of_node();
    archive.text("check.txt", &check::text(&report))?;
    for path in FILES {
        let name = format!("machine/{}", path.trim_start_matches('/').replace('/', "-"));
        match std::fs::read_to_string(path) {
            Ok(text) => archive.text(&name, &text)?,
            Err(error) => archive.failed(path, &error.into()),
        }
    }
    Ok(())
}
