//! Enrolment, its end, and what must not be left behind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

mod lab;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use lab::{Lab, accept, counter, eventually, is_idle, pins, refusal};
use weft_core::kernel_view::{DirectPair, KernelView};
use weft_core::resource::NamespacedName;
use weft_kernel::{CleanupReport, Datapath, EnrolError, PodToEnrol};

/// A process that ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn in_netns(path: &std::path::Path) -> Self {
        let name = path.file_name().unwrap();
        let child =
            Command::new("ip").args(["netns", "exec"]).arg(name).args(["sleep", "600"]).spawn().unwrap();
        Self(child)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn namespaces_that_are_never_enrolled() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    let pod = |path: &str| PodToEnrol { netns: path.into(), ..lab.a.to_enrol() };

    let before = lab.a.state();
    let own = refusal(datapath.enrol(&pod("/proc/self/ns/net")));
    assert!(own.contains("test/a") && own.contains("the agent's own namespace"), "{own}");
    let host = refusal(datapath.enrol(&pod("/proc/1/ns/net")));
    assert!(host.contains("namespace"), "{host}");
    let gone = refusal(datapath.enrol(&pod("/run/netns/weft-was-here")));
    assert!(gone.contains("/run/netns/weft-was-here") && gone.ends_with("is gone"), "{gone}");
    let strange = refusal(datapath.enrol(&pod("/proc/self/ns/mnt")));
    assert!(strange.contains("not a network namespace"), "{strange}");
    let elsewhere = PodToEnrol { ips: vec![lab.b.v4, lab.a.v6], ..lab.a.to_enrol() };
    let wrong = refusal(datapath.enrol(&elsewhere));
    assert!(wrong.contains("does not have 10.244.0.12 of status.podIPs"), "{wrong}");
    let none = refusal(datapath.enrol(&PodToEnrol { ips: Vec::new(), ..lab.a.to_enrol() }));
    assert!(none.contains("podIPs is empty"), "{none}");
    assert_eq!(lab.a.state(), before);

    let _a = datapath.enrol(&lab.a.to_enrol()).unwrap();
    let other = PodToEnrol { key: NamespacedName::new("test", "other"), ..lab.a.to_enrol() };
    let twice = refusal(datapath.enrol(&other));
    assert!(twice.contains("test/other") && twice.contains("already enrolled for pod test/a"), "{twice}");
    assert!(refusal(datapath.enrol(&lab.a.to_enrol())).contains("enrolled already"));
}

#[test]
fn pods_whose_processes_would_not_be_captured_are_refused() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    lab.be_agent();
    let with_agent = Sleeper::in_netns(&lab.a.path);
    lab.be_pod();
    let good = Sleeper::in_netns(&lab.b.path);
    eventually("both processes are in their namespaces", || {
        [&with_agent, &good].iter().all(|sleeper| {
            let netns = fs::read_link(format!("/proc/{}/ns/net", sleeper.0.id())).unwrap();
            netns != fs::read_link("/proc/self/ns/net").unwrap()
        })
    });
    let reason = refusal(datapath.enrol(&lab.a.to_enrol()));
    assert!(
        reason.contains(&with_agent.0.id().to_string()) && reason.contains("the agent's cgroup"),
        "{reason}"
    );
    datapath.enrol(&lab.b.to_enrol()).unwrap();
}

#[test]
fn pods_outside_the_attach_point_are_refused() {
    let mut lab = Lab::new();
    lab.config.cgroup = lab.config.cgroup.join("pods");
    let mut datapath = Datapath::open(lab.config.clone()).unwrap();
    // The agent's cgroup is beside the pods'; a third one, too.
    let other = lab.config.cgroup.with_file_name("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let outside = Sleeper::in_netns(&lab.a.path);
    eventually("the process is in its namespace", || {
        fs::read_link(format!("/proc/{}/ns/net", outside.0.id())).unwrap()
            != fs::read_link("/proc/self/ns/net").unwrap()
    });
    let reason = refusal(datapath.enrol(&lab.a.to_enrol()));
    assert!(reason.contains("/other, outside the directory given with --cgroup"), "{reason}");
    lab.config.cgroup.pop();
}

#[test]
fn unenrolment_leaves_the_namespace_as_it_was() {
    for fwmark_accept in ["0", "1"] {
        let lab = Lab::new();
        let sysctl = "/proc/sys/net/ipv4/tcp_fwmark_accept";
        lab.a.netns.run(|| fs::write(sysctl, fwmark_accept)).unwrap().unwrap();
        let before = lab.a.state();
        let (mut datapath, _a, _b) = lab.enrolled(&lab.view());
        let during = lab.a.state();
        assert!(during.contains("fwmark 0x10000000/0x10000000"), "{during}");
        for sysctl in ["ipv4/tcp_fwmark_accept 1", "ipv4/fwmark_reflect 1", "ipv6/fwmark_reflect 1"] {
            assert!(during.contains(sysctl), "{during}");
        }
        assert_eq!(datapath.programs().len(), 7);

        datapath.unenrol(&lab.a.key).unwrap();
        assert_eq!(lab.a.state(), before);
        datapath.unenrol(&lab.a.key).unwrap();
        assert_eq!(datapath.programs().len(), 6);
        let app = lab.a.listen("0.0.0.0:80".parse().unwrap());
        let _client = lab.c.connect(lab.a.at(80)).unwrap();
        accept(&app);
        let there = lab.c.listen("0.0.0.0:80".parse().unwrap());
        let _client = lab.a.connect(lab.c.at(80)).unwrap();
        accept(&there);
        // And it can come back.
        let again = datapath.enrol(&lab.a.to_enrol()).unwrap();
        datapath.apply(&lab.view()).unwrap();
        let _client = lab.c.connect(lab.a.at(80)).unwrap();
        accept(&again.inbound[0]);
    }
}

#[test]
fn a_failed_enrolment_leaves_nothing() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    // The listeners of IPv6 come after everything of IPv4, and have no address to bind to.
    let disable = |value| {
        let write = || fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", value);
        lab.a.netns.run(write).unwrap().unwrap();
    };
    disable("1");
    let before = lab.a.state();
    let pins_before = pins(&lab.config.pin_dir);
    let error = datapath.enrol(&lab.a.to_enrol()).unwrap_err();
    assert!(matches!(error, EnrolError::Kernel(_)) && error.to_string().contains("test/a"), "{error}");
    assert_eq!(lab.a.state(), before);
    assert_eq!(pins(&lab.config.pin_dir), pins_before);

    disable("0");
    datapath.enrol(&lab.a.to_enrol()).unwrap();
}

#[test]
fn a_namespace_without_ipv6_is_enrolled_for_ipv4() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    let disable = || fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    lab.a.netns.run(disable).unwrap().unwrap();
    let pod = PodToEnrol { ips: vec![lab.a.v4], ..lab.a.to_enrol() };
    let enrolled = datapath.enrol(&pod).unwrap();
    assert_eq!((enrolled.inbound.len(), enrolled.outbound.len()), (1, 1));
    datapath.apply(&lab.view()).unwrap();
    let _client = lab.c.connect(lab.a.at(80)).unwrap();
    accept(&enrolled.inbound[0]);
    assert!(datapath.reassert().is_empty());
}

#[test]
fn a_deleted_namespace_is_noticed() {
    let lab = Lab::new();
    let (mut datapath, a, _b) = lab.enrolled(&lab.view());
    assert!(datapath.vanished().is_empty());
    lab.a.ip(&["link", "del", "eth0"]);
    assert_eq!(datapath.vanished(), std::slice::from_ref(&lab.a.key));
    lab::ip(&["netns", "del", lab.a.path.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(datapath.vanished(), std::slice::from_ref(&lab.a.key));
    drop(a);
    datapath.unenrol(&lab.a.key).unwrap();
    assert!(datapath.vanished().is_empty());
    assert!(refusal(datapath.enrol(&lab.a.to_enrol())).ends_with("is gone"));
}

#[test]
fn rules_that_a_pod_removes_come_back() {
    let lab = Lab::new();
    let (mut datapath, a, _b) = lab.enrolled(&lab.view());
    assert!(datapath.reassert().is_empty());
    let state = lab.a.state();
    let breaks: [&[&str]; 3] = [
        &["rule", "del", "pref", "10"],
        &["-6", "rule", "del", "pref", "10"],
        &["route", "flush", "table", "30565"],
    ];
    for (count, command) in (1..).zip(breaks) {
        lab.a.ip(command);
        assert_eq!(datapath.reassert(), std::slice::from_ref(&lab.a.key), "{command:?}");
        assert_eq!(lab.a.state(), state);
        assert_eq!(counter(&datapath, "agent", "rules_reasserted"), count);
    }
    let write = |value| lab.a.netns.run(|| fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", value));
    write("0").unwrap().unwrap();
    assert_eq!(datapath.reassert(), std::slice::from_ref(&lab.a.key));
    assert_eq!(lab.a.state(), state);

    let _client = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&a.outbound[0]);
}

#[test]
fn the_kernel_reports_a_rule_that_a_pod_removes() {
    let lab = Lab::new();
    let (mut datapath, _a, _b) = lab.enrolled(&lab.view());
    let changes = datapath.changes();
    let (reported, reports) = std::sync::mpsc::channel();
    std::thread::spawn(move || while changes.wait().is_ok() && reported.send(()).is_ok() {});
    // What enrolling itself changed.
    assert!(datapath.reassert().is_empty());
    while reports.try_recv().is_ok() {}
    for _ in 0..3 {
        lab.a.ip(&["rule", "del", "pref", "10"]);
        reports.recv_timeout(Duration::from_secs(10)).expect("a report");
        assert_eq!(datapath.reassert(), std::slice::from_ref(&lab.a.key));
        while reports.recv_timeout(Duration::from_millis(100)).is_ok() {
            assert!(datapath.reassert().is_empty(), "our own repair is nothing to repair");
        }
    }
}

#[test]
fn a_new_address_of_the_pod_becomes_its_own() {
    let lab = Lab::new();
    let (mut datapath, a, _b) = lab.enrolled(&lab.view());
    let second: SocketAddr = "10.244.0.99:80".parse().unwrap();
    lab.a.ip(&["addr", "add", "10.244.0.99/32", "dev", "eth0"]);
    lab.node.run(|| lab::ip(&["route", "add", "10.244.0.99", "dev", "va"])).unwrap();
    assert!(datapath.reassert().is_empty(), "an address is nothing to repair");
    let _client = lab.c.connect(second).unwrap();
    let (accepted, _) = accept(&a.inbound[0]);
    assert_eq!(accepted.local_addr().unwrap(), second);
}

#[test]
fn cleanup_leaves_nothing() {
    let lab = Lab::new();
    let before = [lab.a.state(), lab.b.state()];
    let (datapath, a, b) = lab.enrolled(&lab.direct_view(&[80]));
    let error = Datapath::cleanup(&lab.config, None).unwrap_err();
    assert!(error.to_string().contains("another process uses"), "{error}");
    drop((datapath, a, b));

    let report = Datapath::cleanup(&lab.config, Some(&lab.a.key)).unwrap();
    assert_eq!(report, CleanupReport { links: 1, maps: 2, namespaces: 1, failures: Vec::new() });
    assert_eq!(lab.a.state(), before[0]);
    let there = lab.c.listen("0.0.0.0:80".parse().unwrap());
    let _client = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&there);

    let report = Datapath::cleanup(&lab.config, None).unwrap();
    assert_eq!((report.links, report.namespaces), (6, 1));
    assert_eq!(report.failures, Vec::<String>::new());
    assert_eq!([lab.a.state(), lab.b.state()], before);
    assert_eq!(pins(&lab.config.pin_dir), std::collections::BTreeSet::new());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(lab.config.pin_dir.to_str().unwrap()),
        "unmounted, since it was mounted for this"
    );
    assert_eq!(Datapath::cleanup(&lab.config, None).unwrap(), CleanupReport::default());
    assert!(is_idle(&there));
}

#[test]
fn a_link_to_a_cgroup_that_has_gone_is_made_again() {
    let mut lab = Lab::new();
    let base = lab.config.cgroup.clone();
    lab.config.cgroup = base.join("other");
    fs::create_dir(&lab.config.cgroup).unwrap();
    drop(Datapath::open(lab.config.clone()).unwrap());
    fs::remove_dir(&lab.config.cgroup).unwrap();
    lab.config.cgroup = base;
    let (_datapath, a, _b) = lab.enrolled(&lab.view());
    let _client = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&a.outbound[0]);
}

#[test]
fn what_does_not_fit_goes_through_the_proxy() {
    let lab = Lab::new();
    let (mut datapath, a, _b) = lab.enrolled(&lab.view());
    let source: Arc<str> = lab.a.principal().into();
    let mut view = lab.view();
    let destinations = [lab.b.key.clone(), lab.a.key.clone(), lab.b.key.clone()];
    for (round, destination) in destinations.iter().enumerate() {
        let source = if round == 2 { lab.b.principal().into() } else { Arc::clone(&source) };
        let pair = |port| DirectPair { destination: destination.clone(), source: Arc::clone(&source), port };
        view.direct.extend((0..=u16::MAX).map(pair));
    }
    let applied = datapath.apply(&view).unwrap();
    assert_eq!(applied.overflow, 3 * 65_536 - 131_072);
    let applied = datapath.apply(&lab.view()).unwrap();
    assert_eq!((applied.removed, applied.overflow), (131_072, 0));
    let _client = lab.a.connect(lab.b.at(80)).unwrap();
    accept(&a.outbound[0]);
}

#[test]
fn a_pod_whose_rules_do_not_fit_is_captured_without_exception() {
    let lab = Lab::new();
    let mut view = KernelView { pods: vec![lab.a.kernel_pod()], ..KernelView::default() };
    let rules = &mut view.pods[0].capture;
    rules.include_outbound_ranges = Some(Vec::new());
    rules.include_inbound_ports = Some(vec![80]);
    view.pods[0].gone_pass = true;
    let (mut datapath, a, _b) = lab.enrolled(&view);
    let outside = lab.c.listen("0.0.0.0:80".parse().unwrap());
    let app = lab.a.listen("[::]:81".parse().unwrap());
    let _client = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&outside);
    let _client = lab.c.connect(lab.a.at(81)).unwrap();
    accept(&app);

    // Together more than the table holds, and none of them about what is dialled.
    view.pods[0].capture.include_outbound_ports = (1000..=u16::MAX).collect();
    view.pods[0].gone_ports = (60_000..=u16::MAX).collect();
    assert!(datapath.apply(&view).unwrap().overflow > 0);
    let _client = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&a.outbound[0]);
    let _client = lab.c.connect(lab.a.at(81)).unwrap();
    accept(&a.inbound[0]);
    assert!(is_idle(&outside) && is_idle(&app));

    view.pods[0].capture.include_outbound_ports.clear();
    assert_eq!(datapath.apply(&view).unwrap().overflow, 0);
    let _client = lab.c.connect(lab.a.at(81)).unwrap();
    accept(&app);
}

#[test]
fn a_second_namespace_of_a_pod_of_the_same_name_is_another_pod() {
    let lab = Lab::new();
    let (mut datapath, a, _b) = lab.enrolled(&lab.view());
    datapath.unenrol(&lab.a.key).unwrap();
    drop(a);
    // A StatefulSet's pod comes back with the same name and another namespace.
    let ips: Vec<IpAddr> = lab.c.ips().to_vec();
    let again = PodToEnrol { key: lab.a.key.clone(), netns: lab.c.path.clone(), ips };
    let enrolled = datapath.enrol(&again).unwrap();
    datapath.apply(&lab.view()).unwrap();
    let to = lab.c.at(80);
    let _client = lab.node.run(|| std::net::TcpStream::connect(to)).unwrap().unwrap();
    let (accepted, _) = accept(&enrolled.inbound[0]);
    assert_eq!(accepted.local_addr().unwrap(), to);

    // It does so once more, while there is no agent.
    let before = lab.a.state();
    drop((enrolled, datapath));
    let mut datapath = lab.open();
    assert_eq!(datapath.leftovers().len(), 2);
    datapath.enrol(&lab.a.to_enrol()).unwrap();
    assert_eq!(datapath.leftovers(), std::slice::from_ref(&lab.b.key));
    datapath.unenrol(&lab.a.key).unwrap();
    assert_eq!(lab.a.state(), before);
    assert!(!lab.c.state().contains("fwmark 0x"), "nothing is left of the namesake");
}
