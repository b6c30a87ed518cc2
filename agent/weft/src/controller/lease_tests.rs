use super::*;

const DURATION: Duration = Duration::from_secs(15);

fn record(holder: &str, renewed: i64) -> Record {
    let renewed = Timestamp::from_second(renewed).unwrap();
    Record { holder: holder.to_owned(), duration: DURATION, renewed: Some(renewed), transitions: 1 }
}

fn election() -> Election {
    Election::new("me".to_owned())
}

#[test]
fn without_a_lease_one_is_created() {
    let mut election = election();
    assert_eq!(election.step(Instant::now()), Step::Create);
    election.observe(Some(record("other", 0)), Instant::now());
    election.observe(None, Instant::now());
    assert_eq!(election.step(Instant::now()), Step::Create, "somebody deleted it");
}

#[test]
fn a_lease_is_taken_over_when_it_stood_unchanged_for_its_duration() {
    let (mut election, begin) = (election(), Instant::now());
    election.observe(Some(record("other", 0)), begin);
    election.observe(Some(record("other", 0)), begin + Duration::from_secs(14));
    assert_eq!(election.step(begin + Duration::from_secs(14)), Step::Wait);
    assert_eq!(election.step(begin + DURATION), Step::TakeOver);
}

#[test]
fn a_sign_of_life_begins_the_wait_anew() {
    let (mut election, begin) = (election(), Instant::now());
    election.observe(Some(record("other", 0)), begin);
    election.observe(Some(record("other", 1)), begin + Duration::from_secs(14));
    assert_eq!(election.step(begin + Duration::from_secs(28)), Step::Wait);
    assert_eq!(election.step(begin + Duration::from_secs(29)), Step::TakeOver);
}

#[test]
fn the_clock_of_the_holder_does_not_matter() {
    let (mut election, begin) = (election(), Instant::now());
    for (renewed, name) in [(0, "of 1970"), (253_402_207_200, "of the year 9999")] {
        election.observe(Some(record("other", renewed)), begin);
        assert_eq!(election.step(begin + Duration::from_secs(14)), Step::Wait, "{name}");
        assert_eq!(election.step(begin + DURATION), Step::TakeOver, "{name}");
    }
}

#[test]
fn a_released_lease_is_taken_at_once_and_our_own_is_renewed() {
    let (mut election, now) = (election(), Instant::now());
    election.observe(Some(record("", 0)), now);
    assert_eq!(election.step(now), Step::TakeOver);
    election.observe(Some(record("me", 0)), now);
    assert_eq!(election.step(now + DURATION * 3), Step::Renew);
}

#[test]
fn the_holder_stops_before_another_one_may_begin() {
    for seconds in [0, 3, 4, 15, 60] {
        let terms = Terms::new(Duration::from_secs(seconds));
        assert!(terms.writes_for() + terms.request() < terms.duration, "{terms:?}");
        assert!(terms.every() + terms.request() < terms.writes_for(), "one renewal may fail: {terms:?}");
    }
}

#[test]
fn what_a_lease_leaves_out_makes_nobody_its_holder() {
    let record = Record::of(&Lease::default());
    assert_eq!((record.holder.as_str(), record.duration, record.renewed), ("", Duration::ZERO, None));
    let spec = LeaseSpec { lease_duration_seconds: Some(-5), ..LeaseSpec::default() };
    assert_eq!(Record::of(&Lease { spec: Some(spec), ..Lease::default() }).duration, Duration::ZERO);
}

#[test]
fn identities_differ() {
    assert_ne!(identity(), identity());
}

#[tokio::test]
async fn leadership_ends_when_its_time_is_over() {
    let terms = Terms::new(DURATION);
    let (sender, until) = watch::channel(None);
    let mut leadership = Leadership { until, terms };
    assert!(!leadership.holds());
    leadership.lost().await;
    sender.send_replace(Some(Instant::now() + Duration::from_secs(3600)));
    leadership.won().await;
    let mut other = leadership.clone();
    let lost = tokio::spawn(async move { other.lost().await });
    sender.send_replace(None);
    lost.await.unwrap();
    assert!(!leadership.holds());
    sender.send_replace(Some(Instant::now()));
    leadership.lost().await;
}
