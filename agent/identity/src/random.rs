//! Randomness from the TLS provider, so that the crate needs no generator of its own.

use crate::tls;

/// Fills `bytes` with random bytes.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), String> {
    tls::provider()
        .secure_random
        .fill(bytes)
        .map_err(|_| "the system's random number generator failed".to_owned())
}

/// A factor in `1 - spread ..= 1 + spread`. Without randomness it is 1: timers stay right, only not spread.
pub(crate) fn jitter(spread: f64) -> f64 {
    let mut bytes = [0; 4];
    match fill(&mut bytes) {
        Ok(()) => 1.0 + spread * (2.0 * f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX) - 1.0),
        Err(_) => 1.0,
    }
}

/// A number in `0.0 ..= 1.0`.
pub(crate) fn fraction() -> f64 {
    (jitter(0.5) - 0.5).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_in_its_range_and_varies() {
        let factors: Vec<f64> = (0..100).map(|_| jitter(0.2)).collect();
        assert!(factors.iter().all(|factor| (0.8..=1.2).contains(factor)), "{factors:?}");
        assert!(factors.iter().any(|factor| *factor != factors[0]));
    }
}
