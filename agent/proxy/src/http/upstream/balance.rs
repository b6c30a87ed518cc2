//! Which endpoint a request goes to (D-6 to D-8, S-16, S-17).

use weft_core::resource::destination_rule::LoadBalancer;

use super::table::Table;

/// Endpoints to choose from, by index.
pub(super) struct Endpoints<'a> {
    /// How many there are.
    pub(super) len: usize,
    /// Which of them may be chosen; `None` is all of them.
    pub(super) available: Option<&'a dyn Fn(usize) -> bool>,
    /// Requests that an endpoint has not answered.
    pub(super) active: &'a dyn Fn(usize) -> u32,
    /// The table of consistent hashing.
    pub(super) table: Option<&'a Table>,
}

impl Endpoints<'_> {
    fn is_available(&self, index: usize) -> bool {
        self.available.is_none_or(|available| available(index))
    }

    fn count(&self) -> usize {
        match self.available {
            None => self.len,
            Some(available) => (0..self.len).filter(|index| available(*index)).count(),
        }
    }

    /// The `at`th of those that are available.
    fn nth(&self, at: usize) -> Option<usize> {
        match self.available {
            None => (at < self.len).then_some(at),
            Some(available) => (0..self.len).filter(|index| available(*index)).nth(at),
        }
    }
}

/// What a choice depends on besides the endpoints.
pub(super) struct Draw<'a> {
    /// Answers a number below its argument.
    pub(super) random: &'a mut dyn FnMut(u64) -> u64,
    /// The next turn of ROUND_ROBIN.
    pub(super) turn: &'a dyn Fn() -> usize,
    /// The request's hash, where it has what is hashed (E33: otherwise any endpoint does).
    pub(super) hash: Option<u64>,
}

/// Chooses an endpoint that is available; `None` when none is.
pub(super) fn choose(
    balancer: &LoadBalancer,
    endpoints: &Endpoints<'_>,
    draw: &mut Draw<'_>,
) -> Option<usize> {
    match balancer {
        LoadBalancer::LeastRequest => least_request(endpoints, draw),
        LoadBalancer::RoundRobin => {
            let count = endpoints.count();
            endpoints.nth((draw.turn)().checked_rem(count)?)
        }
        // PASSTHROUGH has no endpoints to choose from; where it has, any will do.
        LoadBalancer::Random | LoadBalancer::Passthrough => any_of(endpoints, draw),
        LoadBalancer::ConsistentHash { .. } => match (draw.hash, endpoints.table) {
            (Some(hash), Some(table)) => table.find(hash, &|index| endpoints.is_available(index)),
            (Some(_) | None, Some(_) | None) => any_of(endpoints, draw),
        },
    }
}

fn below(draw: &mut Draw<'_>, count: usize) -> usize {
    usize::try_from((draw.random)(count as u64)).unwrap_or(0)
}

fn any_of(endpoints: &Endpoints<'_>, draw: &mut Draw<'_>) -> Option<usize> {
    let count = endpoints.count();
    if count == 0 {
        return None;
    }
    endpoints.nth(below(draw, count))
}

/// Of two different ones the one with fewer open requests.
fn least_request(endpoints: &Endpoints<'_>, draw: &mut Draw<'_>) -> Option<usize> {
    let count = endpoints.count();
    if count < 2 {
        return endpoints.nth(0);
    }
    let one = below(draw, count);
    // Skips the first one, so that the two always differ.
    let other = below(draw, count - 1);
    let other = other + usize::from(other >= one);
    let (one, other) = (endpoints.nth(one)?, endpoints.nth(other)?);
    Some(if (endpoints.active)(other) < (endpoints.active)(one) { other } else { one })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use proptest::prelude::*;
    use weft_core::resource::destination_rule::{HashAlgorithm, HashKey};

    use super::*;

    fn consistent() -> LoadBalancer {
        LoadBalancer::ConsistentHash {
            key: HashKey::Header(Arc::from("user")),
            algorithm: HashAlgorithm::Ring { minimum_size: 1024 },
        }
    }

    fn random(mut state: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below.max(1)
        }
    }

    fn pick(
        balancer: &LoadBalancer,
        load: &[u32],
        mask: u32,
        random: &mut dyn FnMut(u64) -> u64,
    ) -> Option<usize> {
        let addresses: Vec<_> = (0..load.len() as u8).map(|last| ([10, 0, 0, last], 80).into()).collect();
        let table = Table::new(HashAlgorithm::Ring { minimum_size: 64 }, &addresses);
        let available = |index: usize| mask & (1 << index) != 0;
        let endpoints = Endpoints {
            len: load.len(),
            available: Some(&available),
            active: &|index| load[index],
            table: Some(&table),
        };
        let turn = Cell::new(0);
        let next = || turn.replace(turn.get() + 1);
        let hash = Some(random(u64::MAX));
        choose(balancer, &endpoints, &mut Draw { random, turn: &next, hash })
    }

    #[test]
    fn round_robin_is_exact() {
        let endpoints = Endpoints { len: 3, available: None, active: &|_| 0, table: None };
        let turn = Cell::new(usize::MAX - 1);
        let next = || turn.replace(turn.get().wrapping_add(1));
        let mut counts = [0; 3];
        for _ in 0..300 {
            let mut draw = Draw { random: &mut |_| 0, turn: &next, hash: None };
            counts[choose(&LoadBalancer::RoundRobin, &endpoints, &mut draw).unwrap()] += 1;
        }
        // The counter passes its end once, which shifts the turn by one at most.
        assert!(counts.iter().all(|count| (99..=101).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_busy_endpoint_is_chosen_by_nobody_who_sees_another() {
        let mut random = random(7);
        for _ in 0..200 {
            assert_ne!(pick(&LoadBalancer::LeastRequest, &[0, 9, 0], 0b111, &mut random), Some(1));
        }
        assert_eq!(pick(&LoadBalancer::LeastRequest, &[0, 9, 0], 0b010, &mut random), Some(1));
    }

    #[test]
    fn equal_load_spreads_evenly() {
        let mut random = random(11);
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[pick(&LoadBalancer::LeastRequest, &[4, 4, 4], 0b111, &mut random).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn without_a_hash_any_endpoint_does() {
        let table = Table::new(HashAlgorithm::Ring { minimum_size: 64 }, &[([10, 0, 0, 1], 80).into()]);
        let endpoints = Endpoints { len: 2, available: None, active: &|_| 0, table: Some(&table) };
        let mut seen = [false; 2];
        let mut random = random(3);
        for _ in 0..64 {
            let mut draw = Draw { random: &mut random, turn: &|| 0, hash: None };
            seen[choose(&consistent(), &endpoints, &mut draw).unwrap()] = true;
        }
        assert_eq!(seen, [true, true]);
    }

    proptest! {
        /// An endpoint is chosen exactly when one is available, and only one that is.
        #[test]
        fn only_what_is_available_is_chosen(
            load in proptest::collection::vec(0..5_u32, 0..10),
            mask in any::<u32>(),
            seed in any::<u64>(),
            which in 0..5_usize,
        ) {
            let balancer = [
                LoadBalancer::LeastRequest,
                LoadBalancer::RoundRobin,
                LoadBalancer::Random,
                LoadBalancer::Passthrough,
                consistent(),
            ][which].clone();
            let chosen = pick(&balancer, &load, mask, &mut random(seed));
            let available = |index: usize| index < load.len() && mask & (1 << index) != 0;
            prop_assert_eq!(chosen.is_some(), (0..load.len()).any(available));
            prop_assert!(chosen.is_none_or(available));
        }
    }
}
