//! Doing something inside a network namespace.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `action` on a thread of its own that lives in the namespace; sockets made there stay there.
pub fn within<T: Send>(netns: &Path, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("{} cannot be opened", netns.display()))?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("{} cannot be entered", netns.display()))?;
            action()
        });
        inside.join().unwrap_or_else(|_| Err(anyhow!("the action in {} panicked", netns.display())))
    })
}
