//! Lines of text that a thread of their own writes: who has something to say never waits for the output.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines that wait to be written before ordinary ones are lost.
pub(crate) const QUEUE: usize = 8_192;
/// Room beyond that for urgent ones alone.
const RESERVE: usize = 2_048;
/// Bytes that wait to be written before ordinary lines are lost; urgent ones have a quarter more. Applications
/// choose what their paths and headers say, so that a number of lines alone is no limit.
pub(crate) const QUEUE_BYTES: usize = 8 << 20;
/// Lines that are written with one system call, and their bytes: fewer lines where these are reached.
pub(crate) const BATCH: usize = 64;
pub(crate) const BATCH_BYTES: usize = 64 << 10;

/// Lines that are written together.
#[derive(Debug, Default)]
struct Batch {
    text: Vec<u8>,
    lines: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.lines >= BATCH || self.text.len() >= BATCH_BYTES
    }
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Of all batches.
    lines: usize,
    bytes: usize,
    /// Emptied memory for the next batch.
    spare: Vec<u8>,
    /// The writer has taken lines that it has not finished writing.
    writing: bool,
    /// No handle is left: write what there is, then end.
    closed: bool,
}

impl Queue {
    fn add(&mut self, line: &[u8]) {
        if self.batches.back().is_none_or(Batch::is_full) {
            let text = std::mem::take(&mut self.spare);
            self.batches.push_back(Batch { text, lines: 0 });
        }
        if let Some(batch) = self.batches.back_mut() {
            batch.text.extend_from_slice(line);
            batch.lines += 1;
        }
        self.lines += 1;
        self.bytes += line.len();
    }

    fn next(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.lines -= batch.lines;
        self.bytes -= batch.text.len();
        Some(batch)
    }
}

/// What handles and writer share. The lock is held for a copy of one line or to take a batch, never while lines are
/// written; a channel would not let urgent lines have room of their own.
#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    written: Condvar,
    lost: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the writer when the last handle goes.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// The way to an output. Cheap to clone; never blocks the caller, whatever the output does.
#[derive(Clone)]
pub struct Lines {
    handle: Arc<Handle>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

impl Lines {
    /// Starts the thread `name`, which writes to an output. A few lines wait so long for more to be written with.
    pub fn to(name: &str, output: Box<dyn Write + Send>, gather: Duration) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            written: Condvar::new(),
            lost: AtomicU64::new(0),
        });
        let theirs = shared.clone();
        let started =
            std::thread::Builder::new().name(name.into()).spawn(move || write_all(&theirs, output, gather));
        if let Err(error) = started {
            tracing::error!(%error, "{name} has no thread to write it: its lines are lost");
            shared.lock().closed = true;
        }
        Self { handle: Arc::new(Handle { shared }) }
    }

    /// Queues a line, with its end. When the queue is full it is lost; urgent ones have some room of their own.
    pub fn push(&self, line: &[u8], urgent: bool) {
        let shared = &self.handle.shared;
        let mut queue = shared.lock();
        let (room, bytes) =
            if urgent { (QUEUE + RESERVE, QUEUE_BYTES / 4 * 5) } else { (QUEUE, QUEUE_BYTES) };
        if queue.closed || queue.lines >= room || queue.bytes >= bytes {
            drop(queue);
            shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.add(line);
        // The writer sleeps only when it found nothing, or until a batch is whole: one system call for a batch, not for
        // a line.
        let wake = (queue.lines == 1 && !queue.writing) || queue.lines == BATCH;
        drop(queue);
        if wake {
            shared.changed.notify_one();
        }
    }

    /// Lines that were lost because the queue was full or the output failed.
    pub fn lost(&self) -> u64 {
        self.handle.shared.lost.load(Ordering::Relaxed)
    }

    /// Blocks until everything queued so far is written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let shared = &self.handle.shared;
        let queue = shared.lock();
        let busy = |queue: &mut Queue| !queue.closed && (queue.writing || queue.lines > 0);
        drop(shared.written.wait_timeout_while(queue, limit, busy));
    }
}

/// The writer's thread.
fn write_all(shared: &Shared, mut output: Box<dyn Write + Send>, limit: Duration) {
    let mut written = Vec::new();
    while let Some(Batch { text, lines }) = take(shared, written, limit) {
        if output.write_all(&text).and_then(|()| output.flush()).is_err() {
            shared.lost.fetch_add(lines as u64, Ordering::Relaxed);
        }
        written = text;
    }
}

/// Waits for lines and takes a batch; none means the end. The memory of what was `written` before is used again.
fn take(shared: &Shared, mut written: Vec<u8>, limit: Duration) -> Option<Batch> {
    written.clear();
    written.shrink_to(2 * BATCH_BYTES);
    let mut queue = shared.lock();
    queue.spare = written;
    queue.writing = false;
    if queue.lines == 0 {
        shared.written.notify_all();
    }
    let idle = |queue: &mut Queue| queue.lines == 0 && !queue.closed;
    queue = shared.changed.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
    queue = gather(shared, queue, limit);
    let batch = queue.next();
    queue.writing = batch.is_some();
    batch
}

/// Lets lines come together before the first one is written. Waking a thread costs the connection that does it more than
/// writing its line: with ten milliseconds it happens a hundred times a second at most.
fn gather<'a>(shared: &Shared, mut queue: MutexGuard<'a, Queue>, limit: Duration) -> MutexGuard<'a, Queue> {
    // Nobody need wake us meanwhile but for the end and a batch that is whole.
    queue.writing = true;
    let few = |queue: &mut Queue| queue.lines < BATCH && !queue.closed;
    let waited = shared.changed.wait_timeout_while(queue, limit, few);
    waited.unwrap_or_else(PoisonError::into_inner).0
}
