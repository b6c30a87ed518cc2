//! What is measured at the moment of a scrape.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use weft_control::kubernetes::{Freshness, KindFreshness};
use weft_core::Severity;
use weft_telemetry::{AccessLog, Family, Kind, ScrapeSink, families};

use super::admin::Facts;
use super::direct_metrics::DirectAccounting;
use super::node::{SharedDatapath, account, lock};

/// The kernel reports CPU time in hundredths of a second on every architecture (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

const TRUSTED_ROOT_EXPIRY: Family = Family {
    name: "weft_trusted_root_expiry_seconds",
    help: "Seconds until a root that peers may come from expires; fingerprint is the beginning of its SHA-256.",
    kind: Kind::Gauge,
    labels: &["fingerprint"],
};

/// Feeds the metrics of `facts` with everything that is not counted on the way.
pub(super) fn register(facts: &Facts, direct: Arc<Mutex<DirectAccounting>>, access_log: AccessLog) {
    let shared = facts.clone();
    facts.metrics.on_scrape(Box::new(move |sink| {
        agent(&shared, &access_log, sink);
        workloads(&shared, sink);
        proxy(&shared, sink);
        configuration(&shared, sink);
        shared.standing.measure(sink);
        certificates(&shared, sink);
        if let Some(datapath) = &shared.datapath {
            account(datapath, &direct, &shared.config.snapshot(), &shared.metrics);
            kernel(datapath, sink);
        }
        process(sink);
    }));
}

fn agent(facts: &Facts, access_log: &AccessLog, sink: &mut ScrapeSink) {
    sink.set(&families::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
    sink.set(&families::ACCESS_LOG_LOST, &[], access_log.lost() as f64);
    sink.set(&families::LOG_LOST, &[], facts.log.lost() as f64);
    sink.set(&families::BREAK_GLASS, &[], f64::from(u8::from(facts.datapath.is_none())));
}

fn workloads(facts: &Facts, sink: &mut ScrapeSink) {
    let state = facts.state.load();
    for name in ["enrolled", "enrolling", "excluded", "failed"] {
        let count = state.pods.values().filter(|pod| pod.state == name).count();
        sink.set(&families::WORKLOADS, &[name], count as f64);
    }
}

fn proxy(facts: &Facts, sink: &mut ScrapeSink) {
    let proxy = lock(&facts.proxy);
    let Some(proxy) = proxy.as_ref() else { return };
    for (pod, open) in proxy.connections() {
        sink.set(&families::CONNECTIONS_OPEN, &[&pod.namespace, &pod.name], open as f64);
    }
    for (reason, count) in proxy.counters() {
        sink.set(&families::PROXY_EVENTS, &[reason], count as f64);
    }
}

fn configuration(facts: &Facts, sink: &mut ScrapeSink) {
    let status = facts.config.status();
    sink.set(&families::CONFIG_REVISION, &[], status.revision as f64);
    sink.set(&families::CONFIG_AGE, &[], status.age().as_secs_f64());
    sink.set(&families::CONFIG_OBJECTS, &[], status.objects.accepted as f64);
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        let count = status.problems.iter().filter(|problem| problem.severity == severity).count();
        sink.set(&families::CONFIG_PROBLEMS, &[&severity.to_string()], count as f64);
    }
    for kind in status.freshness.iter().flat_map(Freshness::kinds) {
        watch(&kind, sink);
    }
}

/// The watch of one kind at the API server.
fn watch(of: &KindFreshness, sink: &mut ScrapeSink) {
    let kind = of.kind.as_str();
    sink.set(&families::CONFIG_CONNECTED, &[kind], f64::from(u8::from(of.connected)));
    if let Some(age) = of.age {
        sink.set(&families::CONFIG_KIND_AGE, &[kind], age.as_secs_f64());
    }
    sink.set(&families::CONFIG_REQUESTS, &[kind, "list"], of.lists as f64);
    sink.set(&families::CONFIG_REQUESTS, &[kind, "watch"], of.watches as f64);
    sink.set(&families::CONFIG_WATCH_RESTARTS, &[kind], of.restarts as f64);
    sink.set(&families::CONFIG_UNDECODABLE, &[kind], of.undecodable as f64);
}

fn certificates(facts: &Facts, sink: &mut ScrapeSink) {
    let now = SystemTime::now();
    for info in facts.certs.infos() {
        let Some(not_after) = info.not_after else { continue };
        sink.set(&families::CERTIFICATE_EXPIRY, &[&info.identity.principal()], seconds(now, not_after));
    }
    // A rotation of roots may go on when every agent has the new one.
    for root in facts.certs.trusted_roots() {
        sink.set(&TRUSTED_ROOT_EXPIRY, &[&root.fingerprint], seconds(now, root.not_after));
    }
}

/// Seconds until a moment; negative when it has passed.
fn seconds(now: SystemTime, moment: SystemTime) -> f64 {
    match moment.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    }
}

fn kernel(datapath: &SharedDatapath, sink: &mut ScrapeSink) {
    let datapath = lock(datapath);
    if datapath.is_retired() {
        // The successor tells.
        return;
    }
    for counter in datapath.counters() {
        sink.set(&families::KERNEL_EVENTS, &[counter.program, counter.reason], counter.value as f64);
    }
    for map in datapath.maps() {
        sink.set(&families::KERNEL_MAP_ENTRIES, &[&map.name], map.entries as f64);
        sink.set(&families::KERNEL_MAP_MAX, &[&map.name], map.max_entries as f64);
    }
}

/// What cannot be read is left out.
fn process(sink: &mut ScrapeSink) {
    if let Some(ticks) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_ticks(&stat)) {
        sink.set(&families::PROCESS_CPU, &[], ticks as f64 / TICKS_PER_SECOND);
    }
    if let Some(bytes) =
        std::fs::read_to_string("/proc/self/status").ok().and_then(|status| resident(&status))
    {
        sink.set(&families::PROCESS_RESIDENT, &[], bytes as f64);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        sink.set(&families::PROCESS_OPEN_FDS, &[], entries.count() as f64);
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        sink.set(&families::PROCESS_MAX_FDS, &[], limit as f64);
    }
}

/// User and system time: fields 14 and 15 of proc(5) `stat`; the second field may hold blanks and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// `VmRSS` of proc(5) `status`, in bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc() {
        let stat = "42 (we ) ft) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 8 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("nonsense"), None);
        assert_eq!(resident("Name:\tweft\nVmRSS:\t   1234 kB\n"), Some(1234 * 1024));
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(resident(&own).is_some_and(|bytes| bytes > 0));
    }
}
