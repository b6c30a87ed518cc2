//! How much a message carries.

use std::cell::Cell;

use http::HeaderMap;

/// Bytes, and messages of gRPC, of one direction.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes of names and values.
    head: Cell<u64>,
    body: Cell<u64>,
    messages: Cell<u64>,
    grpc: Cell<bool>,
    /// Bytes until the next message begins, and those of its prefix that have come.
    rest: Cell<u64>,
    prefix: Cell<([u8; 5], usize)>,
}

impl Traffic {
    /// Of a message with these headers.
    pub(super) fn of(headers: &HeaderMap, grpc: bool) -> Self {
        Self { head: Cell::new(size_of_fields(headers)), grpc: Cell::new(grpc), ..Self::default() }
    }

    /// Of a body alone.
    pub(super) fn of_body(grpc: bool) -> Self {
        Self { grpc: Cell::new(grpc), ..Self::default() }
    }

    /// Bytes of the body so far.
    pub(super) fn body(&self) -> u64 {
        self.body.get()
    }

    /// Messages so far.
    pub(super) fn messages(&self) -> u64 {
        self.messages.get()
    }

    /// Counts a part of the body.
    pub(crate) fn add(&self, bytes: &[u8]) {
        self.body.set(self.body.get() + bytes.len() as u64);
        if self.grpc.get() {
            self.count_messages(bytes);
        }
    }

    /// Counts bytes that are no message of anything.
    pub(super) fn add_untold(&self, bytes: u64) {
        self.body.set(self.body.get() + bytes);
    }

    /// A message is a byte, its length in four bytes, and as many bytes.
    fn count_messages(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skip = usize::try_from(self.rest.get()).unwrap_or(usize::MAX).min(bytes.len());
            self.rest.set(self.rest.get() - skip as u64);
            bytes = bytes.get(skip..).unwrap_or_default();
            let (mut prefix, mut have) = self.prefix.get();
            while let (Some((byte, rest)), Some(place)) = (bytes.split_first(), prefix.get_mut(have)) {
                *place = *byte;
                have += 1;
                bytes = rest;
            }
            if have == prefix.len() {
                let [_, a, b, c, d] = prefix;
                self.messages.set(self.messages.get() + 1);
                self.rest.set(u64::from(u32::from_be_bytes([a, b, c, d])));
                have = 0;
            }
            self.prefix.set((prefix, have));
        }
    }

    /// Bytes of head and body.
    pub(super) fn total(&self) -> u64 {
        self.head.get() + self.body.get()
    }
}

/// Bytes of names and values.
fn size_of_fields(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_grpc_are_counted_however_they_are_cut() {
        let stream = [&[0, 0, 0, 0, 3][..], b"abc", &[1, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[7; 256]].concat();
        for step in [1, 2, 5, 7, stream.len()] {
            let traffic = Traffic::of(&HeaderMap::new(), true);
            stream.chunks(step).for_each(|part| traffic.add(part));
            assert_eq!((traffic.messages(), traffic.body()), (3, stream.len() as u64), "{step}");
        }
    }
}
