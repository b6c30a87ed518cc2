//! The socket file: private to its owner, and replaced only when nobody listens on it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::IdentityError;

/// A listening socket whose file disappears with it.
pub(super) struct Bound {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// The file of a socket; removed when dropped, unless another socket has taken the name since.
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}

/// Listens on `path`, mode 0600. Must be called within a runtime.
pub(super) fn bind(path: &Path) -> Result<Bound, IdentityError> {
    prepare_parent(path)?;
    refuse_taken(path)?;
    bind_private(path)
        .map_err(|error| internal(format!("the socket {} cannot be made: {error}", path.display())))
}

/// The directory of the socket: whoever can write there can take the CA's place.
fn prepare_parent(path: &Path) -> Result<(), IdentityError> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Err(internal(format!("the socket path {} must be absolute", path.display())));
    };
    let failed = |error: io::Error| {
        internal(format!("the directory {} of the CSR socket is not usable: {error}", parent.display()))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    let metadata = fs::metadata(parent).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own && metadata.uid() != 0 {
        return Err(internal(format!(
            "the directory {} of the CSR socket belongs to user {}, who could take the CA's place; use one of \
             user {own}",
            parent.display(),
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(internal(format!(
            "the directory {0} of the CSR socket has mode {1:04o}, so that others could take the CA's place; \
             run `chmod 700 {0}`",
            parent.display(),
            metadata.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Refuses a name that is in use: by a process that listens, or by a file that is no socket.
fn refuse_taken(path: &Path) -> Result<(), IdentityError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(internal(format!("the socket {} cannot be looked up: {error}", path.display())));
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(internal(format!("{} exists and is no socket; remove it", path.display())));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        // Nobody listens: what a killed process left behind.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(internal(format!("the socket {} cannot be tried: {error}", path.display()))),
        Ok(_) => Err(internal(format!("another process already serves {}", path.display()))),
    }
}

/// Binds under a temporary name, restricts it and moves it into place, so that the socket is at no moment
/// open to others and a left-over is replaced atomically.
fn bind_private(path: &Path) -> io::Result<Bound> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    let metadata = fs::symlink_metadata(&temporary)?;
    fs::rename(&temporary, path)?;
    let file = SocketFile { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) };
    Ok(Bound { listener, file })
}

fn internal(reason: String) -> IdentityError {
    IdentityError::Internal(reason)
}
