//! Heads of HTTP/2 frames (RFC 9113, section 4.1), as much as it takes to tell payload from the rest.

/// Length of a head.
pub(super) const HEAD: usize = 9;

/// Kinds (section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Flags.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;

/// A head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of the frame behind the head.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn encode(self) -> [u8; HEAD] {
        let [_, high, middle, low] = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [high, middle, low, self.kind, self.flags, s0, s1, s2, s3]
    }

    fn decode([high, middle, low, kind, flags, s0, s1, s2, s3]: [u8; HEAD]) -> Self {
        Self {
            length: (usize::from(high) << 16) | (usize::from(middle) << 8) | usize::from(low),
            kind,
            flags,
            // The highest bit is reserved and ignored.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }
}

/// A head that arrives piece by piece.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Partial {
    bytes: [u8; HEAD],
    got: usize,
}

impl Partial {
    /// Takes what it needs from the front of `from`; the head once it is complete.
    pub(super) fn take(&mut self, from: &mut &[u8]) -> Option<Head> {
        let missing = self.bytes.get_mut(self.got..).unwrap_or_default();
        let (now, later) = from.split_at(missing.len().min(from.len()));
        missing.iter_mut().zip(now).for_each(|(to, byte)| *to = *byte);
        self.got += now.len();
        *from = later;
        (self.got == HEAD).then(|| {
            self.got = 0;
            Head::decode(self.bytes)
        })
    }
}

/// A WINDOW_UPDATE (section 6.9).
pub(super) fn window_update(stream: u32, increment: u32) -> [u8; HEAD + 4] {
    let mut frame = [0; HEAD + 4];
    let (head, value) = frame.split_at_mut(HEAD);
    head.copy_from_slice(&Head { length: 4, kind: WINDOW_UPDATE, flags: 0, stream }.encode());
    value.copy_from_slice(&increment.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn heads_come_back_however_they_are_cut(
            length in 0usize..1 << 24, kind: u8, flags: u8, stream in 0u32..1 << 31, cut in 0usize..=HEAD
        ) {
            let head = Head { length, kind, flags, stream };
            let bytes = head.encode();
            let (front, back) = bytes.split_at(cut);
            let (mut front, mut back) = (front, back);
            let mut partial = Partial::default();
            let early = partial.take(&mut front);
            let found = early.or_else(|| partial.take(&mut back));
            prop_assert_eq!(found, Some(head));
        }
    }
}
