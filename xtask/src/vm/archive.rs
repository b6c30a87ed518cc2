//! A file system in memory as the kernel reads it at boot: `cpio`, format `newc` (`initramfs-buffer-format`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const TRAILER: &str = "TRAILER!!!";

/// What is packed so far.
pub(super) struct Archive {
    bytes: Vec<u8>,
    present: BTreeSet<PathBuf>,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), present: BTreeSet::new() }
    }

    /// A directory, with those above it.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        let ancestors: Vec<&Path> = path.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        for path in ancestors.into_iter().rev() {
            if self.present.insert(path.to_owned()) {
                self.entry(path, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// A file, with the directories above it; a path that is there already stays as it is.
    pub(super) fn file(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        if self.present.insert(path.to_owned()) {
            self.entry(path, FILE | mode, content)?;
        }
        Ok(())
    }

    /// A program of this machine where it is here, with its libraries.
    pub(super) fn program(&mut self, path: &Path) -> Result<()> {
        self.libraries(path)?;
        self.copy(path)
    }

    /// The libraries that a program loads.
    pub(super) fn libraries(&mut self, program: &Path) -> Result<()> {
        // Of a program without libraries it says so, and fails.
        let output = Command::new("ldd").arg(program).output().context("ldd cannot be run")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        libraries.map(Path::new).try_for_each(|library| self.copy(library))
    }

    fn copy(&mut self, path: &Path) -> Result<()> {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let relative: PathBuf = path.components().filter(|part| *part != Component::RootDir).collect();
        self.file(&relative, &content, 0o755)
    }

    /// The whole.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(Path::new(TRAILER), 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let number = u32::try_from(self.present.len())?;
        let (size, name_size) = (u32::try_from(content.len())?, u32::try_from(name.len() + 1)?);
        // Number, mode, owner, group, links, time, size, four device numbers, length of the name, check sum.
        let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_where_the_kernel_looks_for_them() {
        let mut archive = Archive::new();
        archive.file(Path::new("a/b"), b"content", 0o644).unwrap();
        archive.directory(Path::new("a")).unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let at: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(at.len(), 3, "the directory once, the file, the end: {text:?}");
        assert!(at.iter().all(|at| at % 4 == 0), "{at:?}");
        assert!(text.contains("content") && text.contains(TRAILER));
    }
}
