//! Puts the plugin on the node and takes it off again, however often.
//!
//! What a file was before is kept beside it (`NAME.weft-original`; runtimes read only `.conf`, `.conflist` and
//! `.json`), so that the node is afterwards, byte for byte, as it was.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde_json::Value;
use weft_cni::rules::{self, Rules};

use super::conflist::{self, Kind};
use crate::agent::places::write_whole;

/// Name of the binary.
pub(super) const BINARY: &str = conflist::TYPE;
/// Added to the name of a file that keeps what another one was.
const ORIGINAL: &str = "weft-original";

/// Where the plugin is (to be) installed.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    /// The node's plugins.
    pub(crate) bin_dir: PathBuf,
    /// The node's lists.
    pub(crate) conf_dir: PathBuf,
    /// The binary that is copied.
    pub(crate) plugin: PathBuf,
    /// The agent's socket, as the node sees it.
    pub(crate) socket: PathBuf,
}

/// A file of the configuration directory.
struct File {
    path: PathBuf,
    text: Vec<u8>,
    config: Value,
}

impl Installation {
    /// Makes the plugin part of the node's network. Changes nothing where it is already.
    pub(crate) fn install(&self) -> anyhow::Result<()> {
        self.copy_binary()?;
        let files = self.files()?;
        let mut usable = files.iter().filter(|file| conflist::kind(&file.config) != Kind::Other);
        let first = usable.next().with_context(|| {
            format!(
                "{} has no CNI configuration yet: weft-cni is chained as soon as another plugin is installed",
                self.conf_dir.display()
            )
        })?;
        // Where another file has become the first one, ours is no use in the former.
        for file in usable {
            restore(file)?;
        }
        self.chain(first)
    }

    fn chain(&self, file: &File) -> anyhow::Result<()> {
        let about = || format!("weft-cni cannot be chained into {}", file.path.display());
        let Some(list) = conflist::with_plugin(&file.config, &self.entry()).with_context(about)? else {
            return Ok(());
        };
        let text = text_of(&list);
        let target = match conflist::kind(&file.config) {
            Kind::Single => file.path.with_extension("conflist"),
            Kind::List | Kind::Other => file.path.clone(),
        };
        // What we wrote ourselves is not what was before.
        if conflist::without_plugin(&file.config).is_none() {
            write_like(&original_of(&file.path), &file.text, &file.path).with_context(about)?;
        }
        write_like(&target, &text, &file.path).with_context(about)?;
        if target != file.path {
            fs::remove_file(&file.path).with_context(about)?;
        }
        tracing::info!(list = %target.display(), "weft-cni is chained: new pods of the mesh wait until they are enrolled");
        Ok(())
    }

    /// Writes down who is to be held back while there is no agent.
    pub(crate) fn write_rules(&self, rules: &Rules) -> anyhow::Result<()> {
        let path = self.bin_dir.join(rules::FILE);
        let write = || write_whole(&path, &serde_json::to_vec(rules)?);
        write().with_context(|| format!("the rules of weft-cni cannot be written to {}", path.display()))
    }

    /// Takes the plugin off the node; what could not be removed is in the answer.
    pub(crate) fn uninstall(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut note = |failed: anyhow::Error| failures.push(format!("{failed:#}"));
        match self.files() {
            Ok(files) => files.iter().filter_map(|file| restore(file).err()).for_each(&mut note),
            Err(error) => note(error),
        }
        // Last: a list that names a plugin which is not there would fail every pod.
        if failures.is_empty() {
            for name in [BINARY, rules::FILE] {
                failures.extend(remove(&self.bin_dir.join(name)).err().map(|error| format!("{error:#}")));
            }
        }
        failures
    }

    fn entry(&self) -> Value {
        conflist::entry(&self.socket.display().to_string())
    }

    fn copy_binary(&self) -> anyhow::Result<()> {
        let target = self.bin_dir.join(BINARY);
        let binary = fs::read(&self.plugin).with_context(|| {
            format!("the plugin {} cannot be read: give its path with --cni-plugin", self.plugin.display())
        })?;
        if fs::read(&target).is_ok_and(|there| there == binary) {
            return Ok(());
        }
        write_executable(&target, &binary)
            .with_context(|| format!("the plugin cannot be copied to {}", target.display()))
    }

    /// What a runtime would look at, in its order.
    fn files(&self) -> anyhow::Result<Vec<File>> {
        let entries = match fs::read_dir(&self.conf_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(anyhow!(error).context(format!("{} cannot be read", self.conf_dir.display())));
            }
        };
        let mut paths: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|path| is_read(path)).collect();
        paths.sort();
        let parsed = paths.into_iter().filter_map(|path| {
            let text = fs::read(&path).ok()?;
            let config = serde_json::from_slice(&text).ok()?;
            Some(File { path, text, config })
        });
        Ok(parsed.collect())
    }
}

fn is_read(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file()
}

/// Where the content of a file is kept that ours replaced.
fn original_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ORIGINAL);
    path.with_file_name(name)
}

/// Makes a file what it was without our plugin.
fn restore(file: &File) -> anyhow::Result<()> {
    let Some(without) = conflist::without_plugin(&file.config) else { return Ok(()) };
    let about = || format!("weft-cni cannot be taken out of {}", file.path.display());
    for former in former_paths(&file.path) {
        let kept = original_of(&former);
        let Ok(original) = fs::read(&kept) else { continue };
        if is_what_it_was(&original, &without) {
            write_like(&former, &original, &kept).with_context(about)?;
            if former != file.path {
                remove(&file.path)?;
            }
            return remove(&kept);
        }
        // Somebody has written a new one meanwhile.
        remove(&kept)?;
    }
    write_like(&file.path, &text_of(&without), &file.path).with_context(about)
}

/// The names that a list may have had before it was ours: its own, or that of a single plugin.
fn former_paths(path: &Path) -> [PathBuf; 3] {
    [path.to_owned(), path.with_extension("conf"), path.with_extension("json")]
}

/// Whether a list without our plugin says what the kept text says.
fn is_what_it_was(original: &[u8], without: &Value) -> bool {
    let Ok(original) = serde_json::from_slice::<Value>(original) else { return false };
    let list = match conflist::kind(&original) {
        // Our plugin in and out again turns it into a list.
        Kind::Single => conflist::with_plugin(&original, &conflist::entry(""))
            .ok()
            .flatten()
            .and_then(|list| conflist::without_plugin(&list)),
        Kind::List | Kind::Other => Some(original),
    };
    list.as_ref() == Some(without)
}

fn text_of(config: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(config).unwrap_or_default();
    text.push(b'\n');
    text
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(anyhow!(error).context(format!("{} cannot be removed", path.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a file whole, with the mode of another one.
fn write_like(path: &Path, content: &[u8], like: &Path) -> std::io::Result<()> {
    let mode = fs::metadata(like)?.permissions();
    write_whole(path, content)?;
    fs::set_permissions(path, mode)
}

/// Executable before it has its name: a runtime may call it at any moment.
fn write_executable(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let staged = path.with_extension("weft-new");
    fs::write(&staged, content)?;
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))?;
    fs::rename(&staged, path).inspect_err(|_| drop(fs::remove_file(&staged)))
}

#[cfg(test)]
#[path = "installer_tests.rs"]
mod tests;
