//! Large byte buffers, shared by everything on one thread.
//!
//! A connection holds a buffer only while bytes are in it; an idle one holds none. The buffers are never
//! cleared between uses: whoever takes one must read only what it has written.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

/// Size of every buffer, in bytes: sixteen full TLS records with room for headers and one more.
pub(crate) const SIZE: usize = 288 * 1024;

/// Free buffers that a thread keeps.
const KEPT: usize = 12;

/// Bytes that slow readers may make one thread hold before buffers shrink to [`FRUGAL`].
const PRESSURE: usize = 64 * 1024 * 1024;

/// What one read takes while the thread is under pressure, in bytes.
pub(crate) const FRUGAL: usize = 16 * 1024;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A buffer of [`SIZE`] bytes; goes back to the pool of the thread that drops it.
pub(crate) struct Buffer(Box<[u8]>);

impl Buffer {
    /// Takes one from this thread's pool.
    pub(crate) fn take() -> Self {
        let free = FREE.with(|free| free.borrow_mut().pop());
        Self(free.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // While a thread ends its pool may be gone already; the buffer is then simply freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

/// Bytes that a slow reader has not taken yet; counted for the thread.
#[derive(Default)]
pub(crate) struct Held(Box<[u8]>);

impl Held {
    /// Keeps a copy.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        HELD.with(|held| held.set(held.get() + bytes.len()));
        Self(bytes.into())
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let len = self.0.len();
        let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(len)));
    }
}

/// Whether slow readers hold so much that reads must be small.
pub(crate) fn under_pressure() -> bool {
    HELD.with(Cell::get) > PRESSURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_the_pool_is_bounded() {
        let mut first = Buffer::take();
        first[0] = 7;
        let address = first.as_ptr();
        drop(first);
        let again = Buffer::take();
        assert_eq!(again.as_ptr(), address);
        drop((0..KEPT * 2).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert!(FREE.with(|free| free.borrow().len()) <= KEPT);
    }

    #[test]
    fn held_bytes_are_counted_until_they_are_dropped() {
        let held = Held::new(&vec![1; PRESSURE + 1]);
        assert!(under_pressure());
        drop(held);
        assert!(!under_pressure());
    }
}
