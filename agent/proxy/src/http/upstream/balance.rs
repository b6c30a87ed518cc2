//! Which endpoint a request goes to (D-6 to D-8, S-16, S-17).

use weft_core::resource::destination_rule::LoadBalancer;

use super::table::Table;

/// Endpoints to choose from, by index.
pub(super) struct Endpoints<'a> {
    /// How many there are.
    pub(super) len: usize,
    /// The only ones to choose from; `None` is all.
    pub(super) among: Option<&'a [u32]>,
    /// Which of them may be chosen; `None` is all of them.
    pub(super) available: Option<&'a dyn Fn(usize) -> bool>,
    /// Requests that an endpoint has not answered.
    pub(super) active: &'a dyn Fn(usize) -> u32,
    /// The part of its share that an endpoint gets, where some are new (D-9).
    pub(super) warmth: Option<&'a dyn Fn(usize) -> f64>,
    /// The table of consistent hashing.
    pub(super) table: Option<&'a Table>,
}

impl Endpoints<'_> {
    fn may_be_chosen(&self, index: usize) -> bool {
        let own = |among: &[u32]| u32::try_from(index).is_ok_and(|index| among.binary_search(&index).is_ok());
        self.is_available(index) && self.among.is_none_or(own)
    }

    fn is_available(&self, index: usize) -> bool {
        self.available.is_none_or(|available| available(index))
    }

    /// Those that there are, whether they may be chosen or not.
    fn size(&self) -> usize {
        self.among.map_or(self.len, <[u32]>::len)
    }

    fn at(&self, place: usize) -> Option<usize> {
        match self.among {
            None => (place < self.len).then_some(place),
            Some(among) => among.get(place).map(|index| *index as usize),
        }
    }

    fn count(&self) -> usize {
        if self.available.is_none() {
            return self.size();
        }
        (0..self.size()).filter_map(|place| self.at(place)).filter(|index| self.is_available(*index)).count()
    }

    /// The `place`th of those that are available.
    fn nth(&self, place: usize) -> Option<usize> {
        if self.available.is_none() {
            return self.at(place);
        }
        let all = (0..self.size()).filter_map(|place| self.at(place));
        all.filter(|index| self.is_available(*index)).nth(place)
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
        LoadBalancer::RoundRobin => round_robin(endpoints, draw),
        // PASSTHROUGH has no endpoints to choose from; where it has, any will do.
        LoadBalancer::Random | LoadBalancer::Passthrough => any_of(endpoints, draw),
        LoadBalancer::ConsistentHash { .. } => match (draw.hash, endpoints.table) {
            (Some(hash), Some(table)) => table.find(hash, &|index| endpoints.may_be_chosen(index)),
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

/// One after the other; one that is new lets some of its turns pass.
fn round_robin(endpoints: &Endpoints<'_>, draw: &mut Draw<'_>) -> Option<usize> {
    let count = endpoints.count();
    let next = |draw: &mut Draw<'_>| endpoints.nth((draw.turn)().checked_rem(count)?);
    warm(endpoints, draw, &next)
}

/// Draws until one is taken: each as often as it is warm, compared with the warmest.
fn warm(
    endpoints: &Endpoints<'_>,
    draw: &mut Draw<'_>,
    next: &dyn Fn(&mut Draw<'_>) -> Option<usize>,
) -> Option<usize> {
    /// One in so many is the least share that is kept exactly.
    const DRAWS: usize = 128;
    /// Shares are compared with numbers below this.
    const SCALE: u32 = 1 << 20;
    let mut chosen = next(draw)?;
    let Some(warmth) = endpoints.warmth else { return Some(chosen) };
    let all = (0..endpoints.size()).filter_map(|place| endpoints.at(place));
    let warmest = all.filter(|index| endpoints.is_available(*index)).map(warmth).fold(0.0, f64::max);
    for _ in 0..DRAWS {
        let drawn = u32::try_from((draw.random)(SCALE.into())).unwrap_or(SCALE);
        if f64::from(drawn) / f64::from(SCALE) * warmest < warmth(chosen) {
            break;
        }
        chosen = next(draw)?;
    }
    Some(chosen)
}

/// Of two different ones the one with fewer open requests.
fn least_request(endpoints: &Endpoints<'_>, draw: &mut Draw<'_>) -> Option<usize> {
    let count = endpoints.count();
    if count < 2 {
        return endpoints.nth(0);
    }
    if endpoints.warmth.is_some() {
        return least_of_warm(endpoints, draw, count);
    }
    let one = below(draw, count);
    // Skips the first one, so that the two always differ.
    let other = below(draw, count - 1);
    let other = other + usize::from(other >= one);
    let (one, other) = (endpoints.nth(one)?, endpoints.nth(other)?);
    Some(if (endpoints.active)(other) < (endpoints.active)(one) { other } else { one })
}

/// Both are drawn by their warmth, and may be the same: an endpoint that gets a tenth of its share is drawn once where
/// the others are drawn ten times.
fn least_of_warm(endpoints: &Endpoints<'_>, draw: &mut Draw<'_>, count: usize) -> Option<usize> {
    let any = |draw: &mut Draw<'_>| endpoints.nth(below(draw, count));
    let (one, other) = (warm(endpoints, draw, &any)?, warm(endpoints, draw, &any)?);
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

    fn alike(len: usize) -> Endpoints<'static> {
        Endpoints { len, among: None, available: None, active: &|_| 0, warmth: None, table: None }
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
            among: None,
            available: Some(&available),
            active: &|index| load[index],
            warmth: None,
            table: Some(&table),
        };
        let turn = Cell::new(0);
        let next = || turn.replace(turn.get() + 1);
        let hash = Some(random(u64::MAX));
        choose(balancer, &endpoints, &mut Draw { random, turn: &next, hash })
    }

    #[test]
    fn round_robin_is_exact() {
        let endpoints = Endpoints { table: None, ..alike(3) };
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
        let endpoints = Endpoints { table: Some(&table), ..alike(2) };
        let mut seen = [false; 2];
        let mut random = random(3);
        for _ in 0..64 {
            let mut draw = Draw { random: &mut random, turn: &|| 0, hash: None };
            seen[choose(&consistent(), &endpoints, &mut draw).unwrap()] = true;
        }
        assert_eq!(seen, [true, true]);
    }

    #[test]
    fn new_endpoints_get_their_part_of_a_share() {
        for balancer in [LoadBalancer::RoundRobin, LoadBalancer::LeastRequest] {
            let warmth = |index: usize| if index == 0 { 0.1 } else { 1.0 };
            let endpoints = Endpoints { warmth: Some(&warmth), ..alike(3) };
            let turn = Cell::new(0);
            let next = || turn.replace(turn.get() + 1);
            let mut random = random(5);
            let mut counts = [0; 3];
            for _ in 0..21_000 {
                let mut draw = Draw { random: &mut random, turn: &next, hash: None };
                counts[choose(&balancer, &endpoints, &mut draw).unwrap()] += 1;
            }
            let near = |count: i32, wanted: i32| (count - wanted).abs() < wanted / 5;
            let shares = near(counts[0], 1000) && near(counts[1], 10_000) && near(counts[2], 10_000);
            assert!(shares, "{balancer:?}: {counts:?}");
        }
    }

    #[test]
    fn where_all_are_equally_new_all_get_the_same() {
        let endpoints = Endpoints { warmth: Some(&|_| 0.000_001), ..alike(3) };
        let turn = Cell::new(0);
        let next = || turn.replace(turn.get() + 1);
        let mut counts = [0; 3];
        for _ in 0..300 {
            let mut draw = Draw { random: &mut |below| below / 2, turn: &next, hash: None };
            counts[choose(&LoadBalancer::RoundRobin, &endpoints, &mut draw).unwrap()] += 1;
        }
        assert_eq!(counts, [100; 3]);
    }

    #[test]
    fn only_members_of_the_group_are_chosen() {
        let addresses: Vec<_> = (0..6_u8).map(|last| ([10, 0, 0, last], 80).into()).collect();
        let table = Table::new(HashAlgorithm::Ring { minimum_size: 64 }, &addresses);
        for balancer in
            [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin, LoadBalancer::Random, consistent()]
        {
            let mut random = random(9);
            let mut seen = [0; 6];
            let turn = Cell::new(0);
            let next = || turn.replace(turn.get() + 1);
            for user in 0..300_u64 {
                let available = |index: usize| index != 3;
                let available: &dyn Fn(usize) -> bool = &available;
                let endpoints = Endpoints {
                    among: Some(&[1, 3, 4]),
                    available: (user % 2 == 0).then_some(available),
                    table: Some(&table),
                    ..alike(6)
                };
                let hash = Some(user.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let mut draw = Draw { random: &mut random, turn: &next, hash };
                let chosen = choose(&balancer, &endpoints, &mut draw).unwrap();
                assert!(chosen != 3 || user % 2 == 1, "{balancer:?}");
                seen[chosen] += 1;
            }
            assert!([1, 3, 4].iter().all(|at| seen[*at] > 0), "{balancer:?}: {seen:?}");
            assert_eq!(seen.iter().sum::<i32>(), seen[1] + seen[3] + seen[4], "{balancer:?}: {seen:?}");
        }
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
