//! Outlier detection (D-15, S-15): which endpoints are out of the rotation, and until when.
//!
//! No clock and no I/O: time comes in as a parameter. An endpoint is ejected at the error that completes a row and
//! returns after `baseEjectionTime` × the number of its ejections, at most the larger of 300 s and the base. Every
//! `interval` that it then stays in takes one ejection off that number.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::resource::destination_rule::OutlierDetection;

/// No ejection is longer, unless the base is.
const LONGEST: Duration = Duration::from_secs(300);

/// How a request ended, as far as its endpoint is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer with this status; gRPC's are mapped.
    Status(u16),
    /// No answer: it could not be reached, broke off, or took too long.
    Local,
}

/// Errors in a row of one endpoint. All workers count; a race between two of them moves a row by one.
#[derive(Debug, Default)]
pub(super) struct Rows {
    errors: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
}

impl Rows {
    /// Counts; answers whether a row is complete.
    pub(super) fn record(&self, outcome: Outcome, policy: &OutlierDetection) -> bool {
        match outcome {
            Outcome::Local if policy.split_local_origin => row(&self.local, policy.consecutive_local_origin),
            // A failure of the connection counts as 503 would (D-15).
            Outcome::Local => self.answered(503, policy),
            Outcome::Status(status) => {
                if policy.split_local_origin {
                    clear(&self.local);
                }
                self.answered(status, policy)
            }
        }
    }

    fn answered(&self, status: u16, policy: &OutlierDetection) -> bool {
        let errors = if policy.is_error(status) {
            row(&self.errors, policy.consecutive_5xx)
        } else {
            clear(&self.errors);
            false
        };
        let gateway = if (502..=504).contains(&status) {
            row(&self.gateway, policy.consecutive_gateway)
        } else {
            clear(&self.gateway);
            false
        };
        errors || gateway
    }

    /// Begins anew, as after an ejection.
    pub(super) fn clear(&self) {
        [&self.errors, &self.gateway, &self.local].into_iter().for_each(clear);
    }
}

fn row(count: &AtomicU32, complete: u32) -> bool {
    let errors = count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    complete > 0 && errors >= complete
}

fn clear(count: &AtomicU32) {
    // Most endpoints have no error to forget: reading does not take the cache line away from other workers.
    if count.load(Ordering::Relaxed) > 0 {
        count.store(0, Ordering::Relaxed);
    }
}

/// What becomes of an endpoint with a complete row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ejected {
    /// It is out until then.
    Until(Instant),
    /// It was out already.
    Already,
    /// Too many are out.
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct History {
    times: u32,
    until: Option<Instant>,
    /// When it last came back.
    returned: Instant,
}

/// The ejections of one cluster.
#[derive(Debug, Default)]
pub(super) struct Ejections(HashMap<SocketAddr, History>);

impl Ejections {
    /// Ejects one of `hosts` endpoints, if the policy lets it.
    pub(super) fn eject(
        &mut self,
        host: SocketAddr,
        hosts: usize,
        policy: &OutlierDetection,
        now: Instant,
    ) -> Ejected {
        if self.0.get(&host).is_some_and(|history| history.until.is_some()) {
            return Ejected::Already;
        }
        if !permitted(self.active(), hosts, policy.max_ejection_percent) {
            return Ejected::Refused;
        }
        let history = self.0.entry(host).or_insert(History { times: 0, until: None, returned: now });
        history.times = history.times.saturating_sub(forgiven(history.returned, now, policy.interval)) + 1;
        let longest = LONGEST.max(policy.base_ejection_time);
        let time = policy.base_ejection_time.checked_mul(history.times).unwrap_or(longest).min(longest);
        let until = now + time;
        history.until = Some(until);
        Ejected::Until(until)
    }

    /// Takes back those whose time is over.
    pub(super) fn returned(&mut self, now: Instant) -> SmallVec<[SocketAddr; 4]> {
        let mut back = SmallVec::new();
        for (host, history) in &mut self.0 {
            if let Some(until) = history.until.filter(|until| *until <= now) {
                *history = History { times: history.times, until: None, returned: until };
                back.push(*host);
            }
        }
        back
    }

    /// When the next one returns.
    pub(super) fn next_return(&self) -> Option<Instant> {
        self.0.values().filter_map(|history| history.until).min()
    }

    /// How many are out.
    pub(super) fn active(&self) -> usize {
        self.0.values().filter(|history| history.until.is_some()).count()
    }

    /// Forgets endpoints that are no more; answers how many of them were out.
    pub(super) fn retain(&mut self, exists: impl Fn(&SocketAddr) -> bool) -> usize {
        let before = self.active();
        self.0.retain(|host, _| exists(host));
        before - self.active()
    }
}

/// Whether one more may be ejected: within the share, or the first one while another remains (U-14).
fn permitted(ejected: usize, hosts: usize, percent: u32) -> bool {
    let within = (ejected as u128 + 1) * 100 <= hosts as u128 * u128::from(percent);
    let first_of_several = percent > 0 && ejected == 0 && hosts > 1;
    ejected < hosts && (within || first_of_several)
}

/// Ejections that good conduct since `returned` has made undone.
fn forgiven(returned: Instant, now: Instant, interval: Duration) -> u32 {
    let intervals = now.saturating_duration_since(returned).as_nanos() / interval.as_nanos().max(1);
    u32::try_from(intervals).unwrap_or(u32::MAX)
}

/// The HTTP status that a gRPC status counts as.
pub(super) fn status_of_grpc(grpc: u16) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(percent: u32) -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: 3,
            consecutive_gateway: 0,
            consecutive_local_origin: 5,
            split_local_origin: false,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: percent,
            min_health_percent: 0,
            error_codes: Vec::new(),
        }
    }

    fn host(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 80))
    }

    #[test]
    fn only_errors_in_a_row_count() {
        let rows = Rows::default();
        let policy = policy(100);
        let complete: Vec<bool> = [500, 503, 200, 500, 404, 500, 500, 500]
            .into_iter()
            .map(|status| rows.record(Outcome::Status(status), &policy))
            .collect();
        assert_eq!(complete, [false, false, false, false, false, false, false, true]);
        rows.clear();
        assert!(!rows.record(Outcome::Local, &policy));
        assert!(!rows.record(Outcome::Status(500), &policy));
        assert!(rows.record(Outcome::Local, &policy), "a failed connection is an error like others");
    }

    /// D-17.
    #[test]
    fn named_statuses_are_errors_in_place_of_5xx() {
        let named = OutlierDetection { consecutive_5xx: 2, error_codes: vec![429, 503], ..policy(100) };
        let rows = Rows::default();
        let complete = [429, 500, 429, 503].map(|status| rows.record(Outcome::Status(status), &named));
        assert_eq!(complete, [false, false, false, true]);
    }

    #[test]
    fn gateway_errors_and_local_ones_have_rows_of_their_own() {
        let rows = Rows::default();
        let gateway = OutlierDetection { consecutive_5xx: 0, consecutive_gateway: 2, ..policy(100) };
        assert!(!rows.record(Outcome::Status(502), &gateway));
        assert!(!rows.record(Outcome::Status(500), &gateway), "500 is none and ends the row");
        assert!(!rows.record(Outcome::Status(503), &gateway));
        assert!(rows.record(Outcome::Status(504), &gateway));
        let split = OutlierDetection { split_local_origin: true, consecutive_local_origin: 2, ..policy(100) };
        let rows = Rows::default();
        assert!(!rows.record(Outcome::Local, &split));
        assert!(!rows.record(Outcome::Status(500), &split), "an answer ends the row of failures");
        assert!(!rows.record(Outcome::Local, &split));
        assert!(rows.record(Outcome::Local, &split));
    }

    #[test]
    fn the_share_always_permits_one_while_another_remains() {
        for (hosts, percent, most) in [
            (1, 10, 0),
            (1, 100, 1),
            (2, 10, 1),
            (3, 10, 1),
            (10, 10, 1),
            (20, 10, 2),
            (3, 100, 3),
            (3, 0, 0),
        ] {
            let mut ejections = Ejections::default();
            let now = Instant::now();
            for number in 0..hosts {
                ejections.eject(host(number), hosts.into(), &policy(percent), now);
            }
            assert_eq!(ejections.active(), most, "{hosts} endpoints, {percent} %");
        }
    }

    #[test]
    fn each_ejection_is_longer_and_good_conduct_shortens_the_next() {
        let mut ejections = Ejections::default();
        let (policy, mut now) = (policy(100), Instant::now());
        let seconds = Duration::from_secs;
        for times in 1..=12 {
            let expected = now + seconds(30 * times).min(LONGEST);
            assert_eq!(ejections.eject(host(1), 2, &policy, now), Ejected::Until(expected));
            assert_eq!(ejections.eject(host(1), 2, &policy, now), Ejected::Already);
            assert!(ejections.returned(expected - seconds(1)).is_empty());
            assert_eq!(ejections.returned(expected).as_slice(), [host(1)]);
            now = expected;
        }
        now += seconds(119);
        // 12 ejections less 11 whole intervals, and one more.
        assert_eq!(ejections.eject(host(1), 2, &policy, now), Ejected::Until(now + seconds(60)));
    }

    #[test]
    fn a_long_base_is_not_capped_below_itself() {
        let policy = OutlierDetection { base_ejection_time: Duration::from_secs(900), ..policy(100) };
        let mut ejections = Ejections::default();
        let now = Instant::now();
        let expected = now + Duration::from_secs(900);
        assert_eq!(ejections.eject(host(1), 2, &policy, now), Ejected::Until(expected));
    }

    proptest! {
        /// Whatever happens: the share is kept, nobody stays out for ever, and the counts agree.
        #[test]
        fn never_too_many_and_never_for_ever(
            percent in 0..=100_u32,
            hosts in 1..12_u8,
            steps in proptest::collection::vec((0..12_u8, 0..120_u64), 1..80),
        ) {
            let policy = policy(percent);
            let mut ejections = Ejections::default();
            let mut now = Instant::now();
            for (number, pause) in steps {
                now += Duration::from_secs(pause);
                let due = ejections.next_return().is_some_and(|at| at <= now);
                prop_assert_eq!(due, !ejections.returned(now).is_empty());
                let before = ejections.active();
                let ejected = ejections.eject(host(number % hosts), hosts.into(), &policy, now);
                match ejected {
                    Ejected::Until(until) => {
                        prop_assert_eq!(ejections.active(), before + 1);
                        prop_assert!(until > now && until <= now + LONGEST);
                    }
                    Ejected::Already | Ejected::Refused => prop_assert_eq!(ejections.active(), before),
                }
                let most = (usize::from(hosts) * percent as usize / 100).max(usize::from(percent > 0 && hosts > 1));
                prop_assert!(ejections.active() <= most);
            }
            ejections.returned(now + LONGEST);
            prop_assert_eq!(ejections.active(), 0);
        }
    }
}
