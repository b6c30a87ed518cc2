//! Bytes that show loss, repetition and reordering.

/// Length after which the pattern repeats: a prime, so that it never falls into step with buffers.
const PERIOD: usize = 65_521;

/// An endless sequence of bytes, the same for everybody.
#[derive(Debug)]
pub struct Pattern {
    twice: Vec<u8>,
}

impl Default for Pattern {
    fn default() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut once = Vec::with_capacity(2 * PERIOD);
        for _ in 0..PERIOD {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            once.push((state >> 32) as u8);
        }
        once.extend_from_within(..);
        Self { twice: once }
    }
}

impl Pattern {
    /// Up to `limit` bytes that stand at `offset`; never empty unless `limit` is 0.
    pub fn at(&self, offset: u64, limit: usize) -> &[u8] {
        let start = usize::try_from(offset % PERIOD as u64).unwrap_or(0);
        self.twice.get(start..start + limit.min(PERIOD)).unwrap_or_default()
    }

    /// Whether `bytes` are those that stand at `offset`; at most one period.
    pub fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        self.at(offset, bytes.len()) == bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_or_changed_piece_does_not_match() {
        let pattern = Pattern::default();
        let piece = pattern.at(1_000_000, 4096).to_vec();
        assert!(pattern.matches(1_000_000, &piece));
        assert!(!pattern.matches(1_000_001, &piece));
        assert!(pattern.matches(1_000_000 + PERIOD as u64, &piece));
    }
}
