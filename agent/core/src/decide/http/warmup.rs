//! Slow start of new endpoints, and how many retries may be under way (D-9, D-19).

use std::time::Duration;

use crate::resource::destination_rule::{RetryBudget, Warmup};

impl Warmup {
    /// The part of its share that an endpoint of this age gets, above 0 and at most 1: as Envoy has it, the part of
    /// the time that has passed, bent by `aggression`, and the minimum at least.
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.duration {
            return 1.0;
        }
        let age = age.max(Duration::from_secs(1)).as_secs_f64();
        let passed = (age / self.duration.as_secs_f64()).min(1.0);
        let aggression = f64::from(self.aggression.max(1)) / 1000.0;
        let minimum = f64::from(self.minimum.0) / 1_000_000.0;
        passed.powf(aggression.recip()).max(minimum).clamp(f64::MIN_POSITIVE, 1.0)
    }
}

impl RetryBudget {
    /// How many retries may be under way while `outstanding` requests are.
    pub fn limit(&self, outstanding: u32) -> u32 {
        let share = u64::from(outstanding) * u64::from(self.share.0) / 1_000_000;
        u32::try_from(share).unwrap_or(u32::MAX).max(self.minimum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resource::virtual_service::PerMillion;

    fn warmup(minimum: u32, aggression: u32) -> Warmup {
        Warmup { duration: Duration::from_secs(100), minimum: PerMillion(minimum), aggression }
    }

    #[test]
    fn shares_grow_with_age() {
        for (minimum, aggression, age, factor) in [
            (100_000, 1000, 0, 0.1),
            (100_000, 1000, 5, 0.1),
            (100_000, 1000, 50, 0.5),
            (100_000, 1000, 100, 1.0),
            (100_000, 1000, 1000, 1.0),
            (0, 1000, 0, 0.01),
            (0, 2000, 25, 0.5),
            (0, 500, 50, 0.25),
        ] {
            let found = warmup(minimum, aggression).factor(Duration::from_secs(age));
            assert!((found - factor).abs() < 1e-9, "{minimum} {aggression} {age}: {found}");
        }
    }

    #[test]
    fn budgets_follow_what_is_outstanding() {
        let budget = RetryBudget { share: PerMillion(200_000), minimum: 3 };
        assert_eq!(
            [0, 3, 15, 19, 20, 1000].map(|outstanding| budget.limit(outstanding)),
            [3, 3, 3, 3, 4, 200]
        );
        let none = RetryBudget { share: PerMillion(0), minimum: 0 };
        assert_eq!(none.limit(u32::MAX), 0);
        let all = RetryBudget { share: PerMillion::ALL, minimum: 3 };
        assert_eq!(all.limit(u32::MAX), u32::MAX);
    }

    proptest! {
        #[test]
        fn factors_are_shares_and_never_fall(
            seconds in 0..1_000_000_u64,
            minimum in 0..=1_000_000_u32,
            aggression in 0..1_000_000_u32,
            one in 0..2_000_000_u64,
            other in 0..2_000_000_u64,
        ) {
            let duration = Duration::from_secs(seconds);
            let warmup = Warmup { duration, minimum: PerMillion(minimum), aggression };
            let (young, old) = (one.min(other), one.max(other));
            let young = warmup.factor(Duration::from_millis(young));
            let old = warmup.factor(Duration::from_millis(old));
            prop_assert!(young > 0.0 && young <= old && old <= 1.0);
        }
    }
}
