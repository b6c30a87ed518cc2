//! `loadBalancer` (D-6 to D-9).

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_core::resource::destination_rule::{Balancing, HashAlgorithm, HashKey, LoadBalancer, Warmup};
use weft_core::resource::virtual_service::PerMillion;

use super::super::networking::{Reader, numbers, shown, zero_or_more};
use super::super::report::Path;
use super::locality;
use super::pool::time_to_live;
use super::wire::{CookieWire, HashWire, LoadBalancerWire, UtilizationWire, WarmupWire};
use crate::codes;

/// Points on a ring, when nothing else is said, and at most: Envoy's bound.
const DEFAULT_RING_SIZE: u64 = 1024;
const MAX_RING_SIZE: u64 = 8 << 20;
/// The least share of a new endpoint: 10 %.
const DEFAULT_MINIMUM: PerMillion = PerMillion(100_000);
/// `aggression: 1`: shares grow along a straight line.
const STRAIGHT: u32 = 1000;
/// Entries of a Maglev table have to be fewer.
const MAGLEV_BOUND: i64 = 5_000_011;

/// `has_outlier`: whether the block has `outlierDetection` beside it.
pub(super) fn load_balancer(
    wire: &LoadBalancerWire<'_>,
    has_outlier: bool,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Balancing {
    let ways = [wire.simple.is_some(), wire.consistent_hash.is_some(), wire.backend_utilization.is_some()];
    if ways.into_iter().filter(|way| *way).count() > 1 {
        let message = "`simple`, `consistentHash` and `backendUtilization` exclude each other.";
        reader.report.reject(at, message, "Keep one of them.");
    }
    if wire.locality_lb_setting.is_some() && wire.zone_aware_lb_setting.is_some() {
        let message = "`localityLbSetting` and `zoneAwareLbSetting` exclude each other (D-11).";
        reader.report.reject(at.field("zoneAwareLbSetting"), message, "Keep one of them.");
    }
    let at_locality = at.field("localityLbSetting");
    let locality = wire
        .locality_lb_setting
        .as_ref()
        .map(|wire| locality::locality(wire, Some(has_outlier), &at_locality, reader));
    locality::check_zones(
        wire.zone_aware_lb_setting.as_ref(),
        has_outlier,
        &at.field("zoneAwareLbSetting"),
        reader,
    );
    check_utilization(wire.backend_utilization.as_ref(), &at.field("backendUtilization"), reader);
    let warmup = warmup(wire, at, reader);
    let balancer = match &wire.consistent_hash {
        Some(hash) => consistent_hash(hash, &at.field("consistentHash"), reader),
        None => simple(wire, &at.field("simple"), reader),
    };
    let gradual = match balancer {
        LoadBalancer::LeastRequest | LoadBalancer::RoundRobin => true,
        LoadBalancer::Random | LoadBalancer::Passthrough | LoadBalancer::ConsistentHash { .. } => false,
    };
    if warmup.is_some() && !gradual {
        let message =
            "New endpoints get their share at once: only LEAST_REQUEST and ROUND_ROBIN warm them up (D-9).";
        let fix = "Remove `warmup`, or write `simple: ROUND_ROBIN` or LEAST_REQUEST.";
        reader.report.add(codes::NO_EFFECT, at.field("warmup"), message, fix);
    }
    Balancing { balancer, locality, warmup: warmup.filter(|_| gradual) }
}

fn simple(wire: &LoadBalancerWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> LoadBalancer {
    match wire.simple.as_ref().map_or("UNSPECIFIED", |simple| simple.as_str()) {
        "UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN" => LoadBalancer::LeastRequest,
        "ROUND_ROBIN" => LoadBalancer::RoundRobin,
        "RANDOM" => LoadBalancer::Random,
        "PASSTHROUGH" => LoadBalancer::Passthrough,
        other => {
            let message = format!("{} is not a way to balance load.", shown(other));
            let fix = "Write LEAST_REQUEST, ROUND_ROBIN, RANDOM or PASSTHROUGH.";
            reader.report.reject(at, message, fix);
            LoadBalancer::LeastRequest
        }
    }
}

fn consistent_hash(wire: &HashWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> LoadBalancer {
    let algorithm = algorithm(wire, at, reader);
    match key(wire, at, reader) {
        Some(key) => LoadBalancer::ConsistentHash { key, algorithm },
        // Without anything to hash each request gets a number of its own.
        None => LoadBalancer::Random,
    }
}

fn key(wire: &HashWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<HashKey> {
    let keys = [
        wire.http_header_name.is_some(),
        wire.http_cookie.is_some(),
        wire.use_source_ip.is_some(),
        wire.http_query_parameter_name.is_some(),
    ];
    if keys.into_iter().filter(|key| *key).count() > 1 {
        let message = "There is more than one thing to hash (D-7).";
        let fix = "Keep one of `httpHeaderName`, `httpCookie`, `useSourceIp` and `httpQueryParameterName`.";
        reader.report.reject(at, message, fix);
    }
    let cookie =
        wire.http_cookie.as_ref().map(|cookie| self::cookie(cookie, &at.field("httpCookie"), reader));
    let header = wire.http_header_name.as_ref().and_then(|name| name.non_empty());
    let query = wire.http_query_parameter_name.as_ref().and_then(|name| name.non_empty());
    let key = match (header, query) {
        (Some(name), _) => Some(HashKey::Header(reader.text(&name.to_ascii_lowercase()))),
        (None, Some(name)) => Some(HashKey::Query(reader.text(name))),
        (None, None) if wire.use_source_ip == Some(true) => Some(HashKey::SourceIp),
        (None, None) => cookie,
    };
    if key.is_none() {
        let message = "There is nothing to hash, so requests go to random endpoints (D-7).";
        let fix = "Write `httpHeaderName`, `httpCookie`, `useSourceIp: true` or `httpQueryParameterName`.";
        reader.report.add(codes::NO_EFFECT, at, message, fix);
    }
    key
}

fn cookie(wire: &CookieWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> HashKey {
    if wire.name.non_empty().is_none() {
        reader.report.reject(at.field("name"), "The cookie has no name.", "Name it.");
    }
    let mut attributes: Vec<(Arc<str>, Arc<str>)> = Vec::with_capacity(wire.attributes.items.len());
    let mut names = BTreeSet::new();
    let at_attributes = at.field("attributes");
    for (index, attribute) in wire.attributes.items.iter().enumerate() {
        let at = at_attributes.index(index);
        let name = attribute.name.as_str();
        if name.is_empty() {
            reader.report.reject(at.field("name"), "The attribute has no name.", "Name it.");
        } else if !names.insert(name) {
            let message = format!("The attribute {} is listed twice.", shown(name));
            reader.report.reject(at.field("name"), message, "Keep only one of them.");
        }
        attributes.push((reader.text(name), reader.text(attribute.value.as_str())));
    }
    HashKey::Cookie {
        name: reader.text(wire.name.as_str()),
        path: reader.optional(&wire.path),
        ttl: time_to_live(wire.ttl.as_ref(), &at.field("ttl"), reader),
        attributes,
    }
}

fn algorithm(wire: &HashWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> HashAlgorithm {
    let legacy = wire.minimum_ring_size.get();
    if legacy != 0 {
        let at = at.field("minimumRingSize");
        let message = "`minimumRingSize` is deprecated here.";
        reader.report.add(codes::SCHEMA_WARNING, at, message, "Write `ringHash.minimumRingSize`.");
        if wire.ring_hash.is_some() || wire.maglev.is_some() {
            let message = "`minimumRingSize` excludes `ringHash` and `maglev`.";
            reader.report.reject(at, message, "Remove it.");
        }
    }
    if wire.ring_hash.is_some() && wire.maglev.is_some() {
        let message = "`ringHash` and `maglev` exclude each other (D-8).";
        reader.report.reject(at.field("maglev"), message, "Keep one of them.");
    }
    if let Some(maglev) = &wire.maglev {
        return maglev_table(maglev.table_size.get(), &at.field("maglev"), reader);
    }
    let size = wire.ring_hash.as_ref().map_or(legacy, |ring| ring.minimum_ring_size.get());
    let size = u64::try_from(size).ok().filter(|size| *size != 0).unwrap_or(DEFAULT_RING_SIZE);
    if size > MAX_RING_SIZE {
        let message = format!("A ring has {MAX_RING_SIZE} points at most; {size} are not made.");
        reader.report.add(codes::NO_EFFECT, at, message, "Write a smaller `minimumRingSize`.");
    }
    HashAlgorithm::Ring { minimum_size: size.min(MAX_RING_SIZE) }
}

fn maglev_table(size: i64, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> HashAlgorithm {
    if !(1..MAGLEV_BOUND).contains(&size) || !is_prime(size) {
        let message = format!("{size} is not the size of a Maglev table: a prime below {MAGLEV_BOUND}.");
        reader.report.reject(at.field("tableSize"), message, "Write 65537, or another prime.");
    }
    HashAlgorithm::Maglev { table_size: u64::try_from(size).unwrap_or_default() }
}

/// For numbers of a table's size; 1 passes, as in Envoy.
fn is_prime(number: i64) -> bool {
    let factors = (2..).take_while(|factor| factor * factor <= number);
    number > 0 && factors.into_iter().all(|factor| number % factor != 0)
}

/// `warmup`, else its legacy form (D-9).
fn warmup(wire: &LoadBalancerWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Warmup> {
    let legacy = wire.warmup_duration_secs.as_ref().and_then(|legacy| {
        let at = at.field("warmupDurationSecs");
        let length = reader.any_duration(Some(legacy), &at)?;
        if length < 1_000_000 {
            let message =
                format!("The duration {} is shorter than a millisecond (X-15).", shown(legacy.as_str()));
            reader.report.reject(at, message, "Write 1ms or more, or remove the field.");
        }
        Some(Warmup { duration: zero_or_more(length), minimum: DEFAULT_MINIMUM, aggression: STRAIGHT })
    });
    let warmup = wire.warmup.as_ref().and_then(|wire| warmup_block(wire, &at.field("warmup"), reader));
    warmup.or(legacy)
}

fn warmup_block(wire: &WarmupWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Warmup> {
    if wire.duration.is_none() {
        reader.report.reject(at.field("duration"), "`duration` is missing.", "Write a duration.");
    }
    let duration = reader.duration(wire.duration.as_ref(), &at.field("duration"));
    if let Some(percent) = wire.minimum_percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
        let message = format!("{percent} is not a percentage.");
        reader.report.reject(at.field("minimumPercent"), message, "Write a number from 0 to 100.");
    }
    if let Some(aggression) = wire.aggression.filter(|aggression| *aggression <= 0.0) {
        let message = format!("{aggression} is not above 0.");
        reader.report.reject(at.field("aggression"), message, "Write a number above 0; 1 is the default.");
    }
    Some(Warmup {
        duration: duration?,
        minimum: wire.minimum_percent.map_or(DEFAULT_MINIMUM, numbers::share),
        aggression: wire.aggression.map_or(STRAIGHT, thousandths),
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is clamped before")]
fn thousandths(number: f64) -> u32 {
    (number * 1000.0).round().clamp(1.0, f64::from(u32::MAX)) as u32
}

fn check_utilization(wire: Option<&UtilizationWire<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let Some(wire) = wire else { return };
    let periods = [
        ("weightExpirationPeriod", &wire.weight_expiration_period),
        ("weightStabilizationPeriod", &wire.weight_stabilization_period),
        ("weightUpdatePeriod", &wire.weight_update_period),
    ];
    for (name, period) in periods {
        reader.any_duration(period.as_ref(), &at.field(name));
    }
    reader.not_applied(at, "the endpoint with the least requests is taken");
}
