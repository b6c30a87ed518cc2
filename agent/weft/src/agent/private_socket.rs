//! Unix sockets that nobody but ourselves can reach.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::UnixListener;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens for streams at a path (ruling 10). A socket that nobody serves any more is replaced; one that is served
/// is an error.
pub(super) fn claim(path: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        anyhow::bail!("another agent answers at the admin socket {}", path.display());
    }
    replace(path)
}

/// The same in place of an agent that still serves those who have reached it.
pub(super) fn replace(path: &Path) -> anyhow::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::from(listen_in_place(path, SocketType::STREAM)?);
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Listens at a path in place of whoever did so before: whoever connects finds one of them at any time.
pub(super) fn listen_in_place(path: &Path, kind: SocketType) -> anyhow::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        crate::controller::make_private_directory(parent)?;
    }
    let staged = path.with_extension("new");
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("the old socket {} cannot be removed", staged.display()));
        }
        Ok(()) | Err(_) => {}
    }
    listen_and_move(&staged, path, kind)
        .with_context(|| format!("the socket {} cannot be made", path.display()))
}

fn listen_and_move(staged: &Path, path: &Path, kind: SocketType) -> std::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // Linux gives the file the socket's own mode, so it is 0600 from its first moment. A umask would do the same,
    // and to every file that another thread makes meanwhile.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(staged)?)?;
    listen(&socket, BACKLOG)?;
    std::fs::rename(staged, path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_ours_alone_and_replaces_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = claim(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(claim(&path).is_err(), "somebody answers there");
        drop(first);
        assert!(claim(&path).is_ok(), "nobody answers there any more");
    }

    #[test]
    fn files_that_others_make_meanwhile_keep_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, made) = (dir.path().join("admin.sock"), dir.path().join("made"));
        std::thread::scope(|scope| {
            let sockets = scope.spawn(|| {
                for _ in 0..500 {
                    listen_in_place(&path, SocketType::STREAM).unwrap();
                }
            });
            while !sockets.is_finished() {
                crate::controller::make_private_directory(&made).unwrap();
                let mode = std::fs::metadata(&made).unwrap().permissions().mode() & 0o7777;
                assert_eq!(mode, 0o700);
                std::fs::remove_dir(&made).unwrap();
            }
        });
    }
}
