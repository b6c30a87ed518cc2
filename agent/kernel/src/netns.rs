//! Network namespaces: open by path, enter on the current thread, leave again.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use crate::sys;

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    cookie: u64,
    inode: u64,
}

impl Netns {
    /// Opens the namespace bound at `path`.
    ///
    /// # Errors
    /// The path does not exist, is no network namespace, or the kernel has no cookies (before 5.14).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        let mut netns = Self { fd: file.into(), cookie: 0, inode };
        netns.cookie = netns.run(own_cookie)??;
        Ok(netns)
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted, or the kernel has no cookies (before 5.14).
    pub fn current() -> io::Result<Self> {
        let file = File::open(THREAD_NETNS)?;
        let inode = file.metadata()?.ino();
        Ok(Self { fd: file.into(), cookie: own_cookie()?, inode })
    }

    /// The kernel's cookie (`SO_NETNS_COOKIE`, Linux 5.14); never reused.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Inode number of the namespace file.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` on this thread inside the namespace and comes back, also when it panics.
    ///
    /// `work` must not await or hand the thread to a runtime. A pair of switches costs about 2 µs. Calls nest.
    ///
    /// # Errors
    /// Entering failed: `work` has not run. Leaving cannot fail without the thread being lost: it aborts.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let _guard = Entered::enter(self.fd.as_fd())?;
        Ok(work())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

fn own_cookie() -> io::Result<u64> {
    sys::netns_cookie(Socket::new(Domain::UNIX, Type::DGRAM, None)?)
}

/// Where a thread is and has to go back to.
#[derive(Default)]
struct Whereabouts {
    /// The namespace in which the thread lives when it is in none of ours.
    home: Option<OwnedFd>,
    /// Namespaces entered and not yet left; each descriptor is borrowed by a guard further up the stack.
    entered: Vec<RawFd>,
}

thread_local! {
    static WHEREABOUTS: RefCell<Whereabouts> = RefCell::default();
}

/// Leaves the namespace when dropped.
struct Entered;

impl Entered {
    fn enter(netns: BorrowedFd<'_>) -> io::Result<Self> {
        WHEREABOUTS.with_borrow_mut(|whereabouts| {
            if whereabouts.home.is_none() {
                whereabouts.home = Some(File::open(THREAD_NETNS)?.into());
            }
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            whereabouts.entered.push(netns.as_raw_fd());
            Ok(Self)
        })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = WHEREABOUTS.with_borrow_mut(|whereabouts| {
            whereabouts.entered.pop();
            let back = match (whereabouts.entered.last(), &whereabouts.home) {
                // SAFETY: borrowed by the guard of the enclosing `run`, which is still on this thread's stack.
                (Some(outer), _) => unsafe { BorrowedFd::borrow_raw(*outer) },
                (None, Some(home)) => home.as_fd(),
                (None, None) => return Err(rustix::io::Errno::BADF),
            };
            move_into_link_name_space(back, Some(LinkNameSpaceType::Network))
        });
        if let Err(error) = left {
            // The thread would go on in a pod's namespace and take its connections for the node's.
            tracing::error!(%error, "cannot leave a pod's network namespace");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_namespace_can_be_entered_again_and_again() {
        let here = Netns::current().unwrap();
        let nested = here.run(|| here.run(|| Netns::current().unwrap().cookie()).unwrap()).unwrap();
        assert_eq!(nested, here.cookie());
        assert_ne!(here.inode(), 0);
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Netns::open(file.path()).is_err());
    }

    #[test]
    fn a_panic_inside_leaves_the_thread_where_it_was() {
        let other = std::thread::spawn(|| {
            // SAFETY of the process: only this thread moves, and it ends here.
            #[allow(deprecated, reason = "the replacement is not in every rustix 1.x")]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
            Netns::current().unwrap()
        });
        let other = other.join().unwrap();
        let here = Netns::current().unwrap().cookie();
        let result = std::panic::catch_unwind(|| other.run(|| panic!("inside")));
        assert!(result.is_err());
        assert_eq!(Netns::current().unwrap().cookie(), here);
    }
}
