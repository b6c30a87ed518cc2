//! The CA's two files: read only when nobody else could read or replace them, written once.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CaError;

const KEY: &str = "root-key.pem";
const CERT: &str = "root-cert.pem";

/// Group and others may neither read nor write.
const PRIVATE: u32 = 0o077;
/// Group and others may not write.
const NOT_WRITABLE: u32 = 0o022;

/// Contents of the CA's directory.
pub(super) struct Stored {
    pub(super) key_path: PathBuf,
    pub(super) key_pem: String,
    pub(super) cert_path: PathBuf,
    pub(super) cert_pem: String,
}

/// Loads both files, or writes what `create` makes (key, certificate) when there is neither.
pub(super) fn load_or_create(
    dir: &Path,
    create: impl FnOnce() -> Result<(String, String), CaError>,
) -> Result<Stored, CaError> {
    prepare_dir(dir)?;
    let (key_path, cert_path) = (dir.join(KEY), dir.join(CERT));
    match (exists(&key_path)?, exists(&cert_path)?) {
        (true, true) => {}
        (false, false) => {
            let (key_pem, cert_pem) = create()?;
            write_new(dir, &key_path, &key_pem, 0o600)?;
            write_new(dir, &cert_path, &cert_pem, 0o644)?;
        }
        (true, false) => return Err(half(&key_path, &cert_path)),
        (false, true) => return Err(half(&cert_path, &key_path)),
    }
    Ok(Stored {
        key_pem: read(&key_path, PRIVATE, "chmod 600")?,
        cert_pem: read(&cert_path, NOT_WRITABLE, "chmod 644")?,
        key_path,
        cert_path,
    })
}

fn prepare_dir(dir: &Path) -> Result<(), CaError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.map_err(|error| failed("the CA's directory", dir, "cannot be created", &error))?;
    let metadata =
        fs::metadata(dir).map_err(|error| failed("the CA's directory", dir, "cannot be read", &error))?;
    check_owner("the CA's directory", dir, &metadata)?;
    check_mode("the CA's directory", dir, &metadata, NOT_WRITABLE, "chmod 700")
}

fn exists(path: &Path) -> Result<bool, CaError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("the CA's file", path, "cannot be looked up", &error)),
    }
}

fn half(present: &Path, missing: &Path) -> CaError {
    CaError::Internal(format!(
        "the CA has {} but not {}; restore the missing file from a backup, or remove the other one to begin \
         with a new root that no running agent trusts yet",
        present.display(),
        missing.display()
    ))
}

/// Writes a file that appears complete or not at all, and never takes another's place: a link fails where
/// a rename would overwrite, for example when two controllers start at the same time.
fn write_new(dir: &Path, path: &Path, content: &str, mode: u32) -> Result<(), CaError> {
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let written = write_and_link(&temporary, path, content, mode).and_then(|()| File::open(dir)?.sync_all());
    // Best effort: after the link the temporary name is only a second name of the same file.
    let removed = fs::remove_file(&temporary);
    written.and(removed).map_err(|error| failed("the CA's file", path, "cannot be written", &error))
}

fn write_and_link(temporary: &Path, path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::hard_link(temporary, path)
}

/// Reads a file after checking the opened file itself, so that it cannot be exchanged in between.
fn read(path: &Path, forbidden: u32, remedy: &str) -> Result<String, CaError> {
    let unreadable = |error: io::Error| failed("the CA's file", path, "cannot be read", &error);
    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    check_owner("the CA's file", path, &metadata)?;
    check_mode("the CA's file", path, &metadata, forbidden, remedy)?;
    let mut content = String::new();
    file.read_to_string(&mut content).map_err(unreadable)?;
    Ok(content)
}

fn check_owner(what: &str, path: &Path, metadata: &fs::Metadata) -> Result<(), CaError> {
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() == own || metadata.uid() == 0 {
        return Ok(());
    }
    Err(CaError::Internal(format!(
        "{what} {} belongs to user {}, who could replace the root; it must belong to user {own} (this process)",
        path.display(),
        metadata.uid()
    )))
}

fn check_mode(
    what: &str,
    path: &Path,
    metadata: &fs::Metadata,
    forbidden: u32,
    remedy: &str,
) -> Result<(), CaError> {
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(CaError::Internal(format!(
        "{what} {0} has mode {mode:04o}, so that others than its owner can {1} it; run `{remedy} {0}`",
        path.display(),
        if mode & NOT_WRITABLE & forbidden == 0 { "read" } else { "change" },
    )))
}

fn failed(what: &str, path: &Path, verb: &str, error: &io::Error) -> CaError {
    CaError::Internal(format!("{what} {} {verb}: {error}", path.display()))
}
