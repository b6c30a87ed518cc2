//! Consistent hashing (D-8): which endpoint a hash belongs to, so that most hashes stay where they were when an
//! endpoint comes or goes.
//!
//! Every agent must build the same table from the same endpoints: nothing here is random, and the order of
//! endpoints does not matter to who owns what.

use std::net::SocketAddr;

use weft_core::resource::destination_rule::HashAlgorithm;

/// Points on the ring for each endpoint, at least: fewer make unequal shares.
const LEAST_POINTS: u64 = 64;
/// Points on a ring, at most, unless every endpoint then had none. Envoy's limit is 8 Mi.
const MOST_POINTS: usize = 1 << 20;
/// Steps of [`Table::find`] that follow the table; then any endpoint that can take the request does.
const STEPS: usize = 64;

/// A table that says for every hash which endpoint it belongs to, by the endpoint's index.
#[derive(Debug)]
pub(super) enum Table {
    /// Points on a ring, sorted.
    Ring(Box<[(u64, u32)]>),
    /// Maglev (NSDI 2016, section 3.4).
    Maglev(Box<[u32]>),
}

/// FNV-1a with the finaliser of SplitMix64, which spreads what differs in few bits.
fn hash_of(addr: &SocketAddr, salt: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ mix(salt);
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    match addr {
        SocketAddr::V4(addr) => eat(&addr.ip().octets()),
        SocketAddr::V6(addr) => eat(&addr.ip().octets()),
    }
    eat(&addr.port().to_be_bytes());
    mix(hash)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

impl Table {
    /// Builds a table for endpoints, each by its place in `addresses`.
    pub(super) fn new(algorithm: HashAlgorithm, addresses: &[SocketAddr]) -> Self {
        match algorithm {
            HashAlgorithm::Ring { minimum_size } => Self::Ring(ring(addresses, minimum_size)),
            HashAlgorithm::Maglev { table_size } => Self::Maglev(maglev(addresses, table_size)),
        }
    }

    /// The endpoint of `hash`: its owner, else the next one that `available` accepts.
    pub(super) fn find(&self, hash: u64, available: &dyn Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(points) => {
                let start = points.partition_point(|(point, _)| *point < hash);
                let (before, after) = points.split_at_checked(start)?;
                let mut around = after.iter().chain(before).map(|(_, index)| *index as usize);
                around.find(|index| available(*index))
            }
            Self::Maglev(entries) => {
                let size = u64::try_from(entries.len()).ok().filter(|size| *size > 0)?;
                let entry = |hash: u64| entries.get(usize::try_from(hash % size).ok()?).copied();
                let mut steps = (0..STEPS as u64)
                    .map_while(|step| entry(if step == 0 { hash } else { mix(hash.wrapping_add(step)) }));
                let found = steps.find(|index| available(*index as usize));
                found
                    .or_else(|| entries.iter().copied().find(|index| available(*index as usize)))
                    .map(|index| index as usize)
            }
        }
    }
}

fn ring(addresses: &[SocketAddr], minimum_size: u64) -> Box<[(u64, u32)]> {
    let each = points_of_each(addresses.len(), minimum_size);
    let of = |(index, addr): (u32, &SocketAddr)| {
        let addr = *addr;
        (0..each).map(move |point| (hash_of(&addr, point), index))
    };
    let mut points: Vec<_> = (0..).zip(addresses).flat_map(of).collect();
    points.sort_unstable();
    points.into_boxed_slice()
}

/// Points of one endpoint. Their number changes in few and large steps: where it does not change, what is on the
/// ring stays there when an endpoint comes or goes.
fn points_of_each(endpoints: usize, minimum_size: u64) -> u64 {
    let most = (MOST_POINTS / endpoints.max(1)).max(1) as u64;
    let mut each = minimum_size.clamp(1, MOST_POINTS as u64);
    let mut served = 4;
    while served < endpoints {
        (each, served) = (each.div_ceil(4), served * 4);
    }
    each.max(LEAST_POINTS).min(most)
}

fn maglev(addresses: &[SocketAddr], table_size: u64) -> Box<[u32]> {
    if addresses.is_empty() {
        return Box::default();
    }
    let size = table_size.max(2);
    let empty = u32::MAX;
    let mut table = vec![empty; usize::try_from(size).unwrap_or(0)];
    let mut left = table.len();
    // Each endpoint has a walk through all entries (the size is a prime); in turn each takes its next free one.
    // Sorted, so that who comes first does not depend on the order in which endpoints are listed.
    let mut walks: Vec<_> = (0..)
        .zip(addresses)
        .map(|(index, addr)| {
            let (at, step) = (hash_of(addr, 0) % size, hash_of(addr, 1) % (size - 1) + 1);
            (*addr, index, at, step)
        })
        .collect();
    walks.sort_unstable();
    while left > 0 {
        for (_, index, at, step) in &mut walks {
            let Some(entry) = next_free(&mut table, at, *step, empty) else { continue };
            *entry = *index;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    table.into_boxed_slice()
}

/// The next free entry on a walk.
fn next_free<'a>(table: &'a mut [u32], at: &mut u64, step: u64, empty: u32) -> Option<&'a mut u32> {
    let size = table.len() as u64;
    let free = loop {
        let here = usize::try_from(*at).ok()?;
        *at = (*at + step) % size;
        if table.get(here).is_some_and(|entry| *entry == empty) {
            break here;
        }
    };
    table.get_mut(free)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RING: HashAlgorithm = HashAlgorithm::Ring { minimum_size: 1024 };
    const MAGLEV: HashAlgorithm = HashAlgorithm::Maglev { table_size: 65537 };

    fn hosts(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|number| SocketAddr::from(([10, 0, 0, number], 9080))).collect()
    }

    fn owner(table: &Table, addresses: &[SocketAddr], hash: u64) -> SocketAddr {
        addresses[table.find(hash, &|_| true).unwrap()]
    }

    #[test]
    fn shares_are_about_equal() {
        for algorithm in [RING, MAGLEV] {
            let addresses = hosts(3);
            let table = Table::new(algorithm, &addresses);
            let mut counts = [0; 3];
            for user in 0..3000 {
                counts[table.find(mix(user), &|_| true).unwrap()] += 1;
            }
            assert!(counts.iter().all(|count| (800..1200).contains(count)), "{algorithm:?}: {counts:?}");
        }
    }

    #[test]
    fn a_fourth_endpoint_takes_a_quarter_from_the_others_and_nothing_else_moves() {
        for (algorithm, stray) in [(RING, 0), (MAGLEV, 400)] {
            let (three, four) = (hosts(3), hosts(4));
            let (before, after) = (Table::new(algorithm, &three), Table::new(algorithm, &four));
            let (mut to_new, mut between_old) = (0, 0);
            for user in (0..10_000).map(mix) {
                let (old, new) = (owner(&before, &three, user), owner(&after, &four, user));
                if new == four[3] {
                    to_new += 1;
                } else if old != new {
                    between_old += 1;
                }
            }
            assert!((2000..3000).contains(&to_new), "{algorithm:?}: {to_new} move");
            // Maglev trades a few moves for equal shares (section 5.3 of the paper).
            assert!(between_old <= stray, "{algorithm:?}: {between_old} move between the old ones");
        }
    }

    #[test]
    fn the_order_of_endpoints_does_not_matter() {
        let (there, mut back) = (hosts(9), hosts(9));
        back.reverse();
        for algorithm in [RING, MAGLEV] {
            let (one, other) = (Table::new(algorithm, &there), Table::new(algorithm, &back));
            assert!((0..1000).map(mix).all(|hash| owner(&one, &there, hash) == owner(&other, &back, hash)));
        }
    }

    #[test]
    fn many_endpoints_make_no_table_beyond_measure() {
        let addresses: Vec<_> =
            (0..20_000_u32).map(|number| SocketAddr::from((number.to_be_bytes(), 80))).collect();
        let Table::Ring(points) = Table::new(RING, &addresses) else { panic!() };
        assert!(points.len() <= MOST_POINTS + addresses.len());
    }

    proptest! {
        /// A hash finds an endpoint exactly when one is available, and never one that is not.
        #[test]
        fn what_is_available_is_found(
            count in 0..12_u8,
            mask in any::<u16>(),
            hash in any::<u64>(),
            maglev in any::<bool>(),
        ) {
            let algorithm = if maglev { HashAlgorithm::Maglev { table_size: 251 } } else { RING };
            let table = Table::new(algorithm, &hosts(count));
            let available = |index: usize| mask & (1 << index) != 0;
            let found = table.find(hash, &available);
            prop_assert_eq!(found.is_some(), (0..count.into()).any(available));
            prop_assert!(found.is_none_or(|index| index < count.into() && available(index)));
        }
    }
}
