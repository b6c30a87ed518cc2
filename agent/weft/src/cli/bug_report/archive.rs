//! The file of a bug report: a gzipped tar, readable by its owner only.

use std::fs::{File, OpenOptions};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::redact;

/// Writes the parts of a report as they come. Everything that goes in passes through [`redact`].
pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<BufWriter<File>>>,
    /// The one directory in the archive.
    root: PathBuf,
    now: u64,
    failures: Vec<String>,
}

impl Archive {
    /// A new file; an old one is never overwritten.
    pub(super) fn create(path: &Path, root: &str) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| {
            format!("the report cannot be written to {}; name another file with --file", path.display())
        })?;
        let gzip = GzEncoder::new(BufWriter::new(file), Compression::default());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self { tar: tar::Builder::new(gzip), root: root.into(), now, failures: Vec::new() })
    }

    /// Text: a log, metrics.
    pub(super) fn text(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        self.append(name, redact::text(text).as_bytes())
    }

    /// Objects of the API, or an answer of an agent.
    pub(super) fn json(&mut self, name: &str, mut value: Value) -> anyhow::Result<()> {
        redact::object(&mut value);
        self.append(name, serde_json::to_string_pretty(&value)?.as_bytes())
    }

    /// Something that could not be had: the report says so.
    pub(super) fn failed(&mut self, what: &str, error: &anyhow::Error) {
        self.failures.push(format!("{what}: {error:#}"));
    }

    /// What could not be had so far.
    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        if !self.failures.is_empty() {
            let failures = self.failures.join("\n");
            self.text("missing.txt", &failures)?;
        }
        let file = self.tar.into_inner()?.finish()?;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        Ok(self.tar.append_data(&mut header, self.root.join(name), bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_can_be_unpacked_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.tar.gz");
        let mut archive = Archive::create(&path, "report").unwrap();
        archive.text("logs/agent.log", "started\npassword=hunter2\n").unwrap();
        archive
            .json("objects/secret.json", serde_json::json!({"kind": "Secret", "data": {"a": "hunter2"}}))
            .unwrap();
        archive.failed("metrics of a", &anyhow::anyhow!("refused, token=hunter2"));
        archive.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut unpacked = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut files = BTreeMap::new();
        for entry in unpacked.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(name, text);
        }
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["report/logs/agent.log", "report/missing.txt", "report/objects/secret.json"]);
        assert!(files["report/missing.txt"].contains("metrics of a: refused"));
        assert!(files.values().all(|text| !text.contains("hunter2")), "{files:?}");
    }

    #[test]
    fn nothing_is_overwritten() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Archive::create(file.path(), "report").err().unwrap();
        assert!(error.to_string().contains("--file"), "{error}");
    }
}
