//! Who is the agent of a state directory: the one that holds its lock (ruling 13).

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::Hello;
use super::taking::{self, Taken};
use super::wire::Wire;

/// Where an agent can be asked to make room, in its state directory.
pub(in super::super) const SOCKET: &str = "handover.sock";
/// How long an agent that cannot be asked may take to end.
const ENDING: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What a new agent finds.
#[derive(Debug)]
pub(in super::super) enum Seat {
    /// No other agent runs. The lock goes with the process.
    Free(File),
    /// Another agent runs that can be asked.
    Occupied,
}

impl Seat {
    /// Takes the lock, or finds out whom to ask for it. Waits for an agent that is about to end.
    pub(in super::super) fn find(directory: &Path) -> anyhow::Result<Self> {
        wait(directory, |path| Wire::connect(path).is_ok().then_some(Self::Occupied), Self::Free)
    }

    /// What the agent that runs hands over; if it has ended meanwhile, there is only the lock to be taken. Blocks.
    pub(in super::super) fn take(directory: &Path, hello: &Hello) -> anyhow::Result<Result<Taken, File>> {
        let ask = |path: &Path| Some(taking::take(Wire::connect(path).ok()?, hello).map(Ok));
        wait(directory, ask, |lock| Ok(Err(lock)))?
    }
}

/// Tries both ways until one leads somewhere.
fn wait<T>(
    directory: &Path,
    mut ask: impl FnMut(&Path) -> Option<T>,
    free: impl Fn(File) -> T,
) -> anyhow::Result<T> {
    let (file, socket) = (open(directory)?, directory.join(SOCKET));
    let deadline = Instant::now() + ENDING;
    loop {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(free(file));
        }
        if let Some(answer) = ask(&socket) {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!(
                "another agent uses the state directory {} and does not make room: give this one its own with \
                 --state-dir",
                directory.display()
            );
        }
        std::thread::sleep(PAUSE);
    }
}

fn open(directory: &Path) -> anyhow::Result<File> {
    let path: PathBuf = directory.join("lock");
    let mut options = File::options();
    // Never through a link that somebody laid there.
    options.write(true).create(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options.open(&path).with_context(|| format!("{} cannot be made", path.display()))
}
