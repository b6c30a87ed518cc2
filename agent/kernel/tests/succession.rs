//! Agents that come after others: what they take over, refuse and remove.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

mod lab;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use lab::{Lab, Pod, accept, counter, eventually, is_idle, pins, refusal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weft_core::kernel_view::{DirectPair, KernelView};
use weft_core::resource::NamespacedName;
use weft_kernel::{CleanupReport, Datapath, DatapathConfig, Inheritance, KernelError, Listeners, PodToEnrol};

#[test]
fn another_agent_takes_the_pins_over() {
    let lab = Lab::new();
    let before = lab.a.state();
    let (datapath, a, b) = lab.enrolled(&lab.direct_view(&[80]));
    let app = lab.b.listen("[::]:80".parse().unwrap());
    let old_client = lab.a.connect(lab.b.at(80)).unwrap();
    let (old_server, _) = accept(&app);
    lab::echo(&old_client, &old_server, 500);
    drop((datapath, a, b));

    let mut datapath = lab.open();
    assert_eq!(datapath.totals().unwrap(), [], "a scrape before the pods are taken over");
    let mut leftovers = datapath.leftovers();
    leftovers.sort();
    assert_eq!(leftovers, [lab.a.key.clone(), lab.b.key.clone()]);
    let refused = lab.c.connect(lab.b.at(81)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "steered, and nobody there yet");

    let a = datapath.enrol(&lab.a.to_enrol()).unwrap();
    let b = datapath.enrol(&lab.b.to_enrol()).unwrap();
    assert!(datapath.leftovers().is_empty());
    let _inbound = lab.c.connect(lab.b.at(81)).unwrap();
    accept(&b.inbound[0]);
    let _not_direct_before_apply = lab.a.connect(lab.b.at(80)).unwrap();
    accept(&a.outbound[0]);

    assert_eq!(datapath.direct_flows().len(), 1, "the flow lives on");
    lab::echo(&old_client, &old_server, 1000);
    let applied = datapath.apply(&lab.direct_view(&[80])).unwrap();
    assert!(applied.revoked.is_empty());
    let _direct = lab.a.connect(lab.b.at(80)).unwrap();
    accept(&app);
    let totals = datapath.totals().unwrap();
    let counts = |totals: &[weft_kernel::DirectFlowTotals]| {
        (totals.len(), totals[0].opened, totals[0].closed, totals[0].sent_bytes, totals[0].received_bytes)
    };
    assert_eq!(counts(&totals), (1, 1, 0, 1000, 1000), "only what the first agent cannot have reported");
    drop((old_client, old_server));
    eventually("the old flow ends", || datapath.direct_flows().len() == 1);
    assert_eq!(counts(&datapath.totals().unwrap()), (1, 1, 1, 1000, 1000));

    datapath.unenrol(&lab.a.key).unwrap();
    assert_eq!(lab.a.state(), before, "the sysctl as the first agent found it");
}

#[test]
fn announcements_of_an_agent_that_crashed_are_gone() {
    let lab = Lab::new();
    let datapath = lab.open();
    datapath.onward().publish(lab.c.at(4000), lab.a.at(80)).unwrap();
    let entries = || {
        let map = MapData::from_pin(lab.pins_of_schema().join("maps/ONWARD")).unwrap();
        let map = BpfHashMap::<_, [u8; 36], u64>::try_from(Map::HashMap(map)).unwrap();
        map.keys().count()
    };
    assert_eq!(entries(), 1);
    drop(datapath);
    let _datapath = lab.open();
    assert_eq!(entries(), 0);
}

#[test]
fn numbers_of_an_earlier_agent_are_not_used_again() {
    let lab = Lab::new();
    let (datapath, _a, _b) = lab.enrolled(&lab.direct_view(&[80]));
    drop(datapath);
    let mut datapath = lab.open();
    let _a = datapath.enrol(&lab.a.to_enrol()).unwrap();
    let _b = datapath.enrol(&lab.b.to_enrol()).unwrap();
    // The other direction: with numbers from one again, the old entry of `a` would say the identity of `b`.
    let mut view = lab.view();
    view.pods.reverse();
    view.direct.insert(DirectPair {
        destination: lab.a.key.clone(),
        source: lab.b.principal().into(),
        port: 80,
    });
    let applied = datapath.apply(&view).unwrap();
    assert!(applied.written >= 6, "pods, addresses and steering have new numbers: {applied:?}");
}

#[test]
fn pods_of_an_earlier_agent_stay_captured_until_they_are_taken_over() {
    let lab = Lab::new();
    let (datapath, a, b) = lab.enrolled(&lab.view());
    drop((datapath, a, b));
    let _outside = lab.c.listen("[::]:81".parse().unwrap());

    let mut datapath = lab.open();
    datapath.apply(&KernelView::default()).unwrap();
    lab.be_pod();
    let refused = lab.a.connect(lab.c.at6(81)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "captured, and nobody there yet");
    lab.be_agent();
    datapath.unenrol(&lab.a.key).unwrap();
    datapath.apply(&KernelView::default()).unwrap();
    lab.be_pod();
    let _released = lab.a.connect(lab.c.at6(81)).unwrap();
}

#[test]
fn a_pod_that_gets_other_addresses_is_not_open_meanwhile() {
    let lab = Lab::new();
    let (mut datapath, a, b) = lab.enrolled(&lab.direct_view(&[80]));
    let before = lab.b.state();
    let app = lab.b.listen("[::]:80".parse().unwrap());
    let _outside = lab.c.listen("[::]:81".parse().unwrap());
    datapath.hand_over(&lab.b.key);
    datapath.apply(&KernelView { pods: vec![lab.a.kernel_pod()], ..KernelView::default() }).unwrap();
    drop(b);
    let elsewhere = PodToEnrol { ips: vec![lab.c.v4], ..lab.b.to_enrol() };
    assert!(refusal(datapath.enrol(&elsewhere)).contains("does not have"));
    assert_eq!(datapath.leftovers(), std::slice::from_ref(&lab.b.key));

    let client = lab.c.socket(socket2::Domain::IPV4, socket2::Protocol::TCP);
    client.set_nonblocking(true).unwrap();
    let dropped = counter(&datapath, "steer", "gone_dropped");
    client.connect(&lab.b.at(80).into()).unwrap_err();
    eventually("its SYN is dropped", || counter(&datapath, "steer", "gone_dropped") > dropped);
    let refused = lab.b.connect(lab.c.at6(81)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "captured, and nobody there");
    let _proxied = lab.a.connect(lab.b.at(80)).unwrap();
    accept(&a.outbound[0]);
    assert!(is_idle(&app));

    let b = datapath.enrol(&lab.b.to_enrol()).unwrap();
    assert_eq!((datapath.leftovers(), lab.b.state()), (Vec::new(), before));
    datapath.apply(&lab.view()).unwrap();
    let _client = lab.c.connect(lab.b.at(80)).unwrap();
    accept(&b.inbound[0]);
}

#[test]
fn pods_with_the_longest_names_are_taken_over_and_removed_like_others() {
    let lab = Lab::new();
    let before = lab.a.state();
    // Dots take three characters of a file's name.
    let key = NamespacedName::new("n".repeat(63), "a.".repeat(126) + "z");
    let pod = PodToEnrol { key: key.clone(), ..lab.a.to_enrol() };
    let mut datapath = lab.open();
    let clean = pins(&lab.config.pin_dir);
    drop(datapath.enrol(&pod).unwrap());
    drop(datapath);

    let mut datapath = lab.open();
    assert_eq!(datapath.leftovers(), std::slice::from_ref(&key));
    let _enrolled = datapath.enrol(&pod).unwrap();
    assert!(datapath.leftovers().is_empty());
    drop(datapath);
    let report = Datapath::cleanup(&lab.config, Some(&key)).unwrap();
    assert_eq!(report, CleanupReport { links: 1, maps: 2, namespaces: 1, failures: Vec::new() });
    assert_eq!((lab.a.state(), pins(&lab.config.pin_dir)), (before, clean));
}

#[test]
fn pods_that_left_while_there_was_no_agent() {
    let mut lab = Lab::new();
    let before = lab.a.state();
    let (datapath, a, b) = lab.enrolled(&lab.view());
    drop((datapath, a, b));
    lab::ip(&["netns", "del", lab.b.path.file_name().unwrap().to_str().unwrap()]);
    // The last reference to the namespace.
    lab.b.netns = Arc::clone(&lab.node);
    eventually("the namespace ends, and an agent that starts forgets it", || {
        lab.open().leftovers().len() == 1
    });

    let mut datapath = lab.open();
    assert_eq!(datapath.leftovers(), std::slice::from_ref(&lab.a.key));
    datapath.unenrol(&lab.a.key).unwrap();
    assert!(datapath.leftovers().is_empty());
    assert_eq!(lab.a.state(), before);
    let maps = datapath.maps();
    let pods = maps.iter().find(|map| map.name == "PODS").unwrap();
    assert_eq!((pods.entries, pods.max_entries), (0, 4096));

    let announced = |datapath: &Datapath| {
        let maps = datapath.tuple_maps();
        assert_eq!(maps.iter().map(|map| &*map.name).collect::<Vec<_>>(), ["ONWARD", "DIRECT", "PROBES"]);
        maps[0].entries
    };
    let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    datapath.onward().publish(from, to).unwrap();
    assert_eq!(announced(&datapath), 1);
    datapath.onward().withdraw(from, to);
    assert_eq!(announced(&datapath), 0);
}

/// The listeners of pods as another agent would get them.
fn shared(pods: &[(&NamespacedName, &weft_kernel::Enrolled)]) -> Vec<(NamespacedName, Listeners)> {
    let clones = |sockets: &[TcpListener]| sockets.iter().map(|socket| socket.try_clone().unwrap()).collect();
    let shared = |(key, pod): &(&NamespacedName, &weft_kernel::Enrolled)| {
        ((*key).clone(), Listeners { inbound: clones(&pod.inbound), outbound: clones(&pod.outbound) })
    };
    pods.iter().map(shared).collect()
}

#[test]
fn an_agent_goes_on_with_the_sockets_of_another_one() {
    let lab = Lab::new();
    let before = [lab.a.state(), lab.b.state()];
    let (mut first, a, b) = lab.enrolled(&lab.direct_view(&[81]));
    let at = |pod: &weft_kernel::Enrolled| pod.inbound[0].local_addr().unwrap();
    let listening = at(&b);
    // In the queue of the first agent, who does not accept it.
    let waiting = lab.c.connect(lab.b.at(80)).unwrap();
    let direct = lab.b.listen("0.0.0.0:81".parse().unwrap());
    let _direct = lab.a.connect(lab.b.at(81)).unwrap();
    accept(&direct);

    let listeners = shared(&[(&lab.a.key, &a), (&lab.b.key, &b)]);
    let inheritance = Inheritance { lock: Some(first.share_lock().unwrap()), listeners };
    let config = DatapathConfig { agent_cgroup: lab.config.cgroup.join("other"), ..lab.config.clone() };
    let mut second = Datapath::inherit(config, inheritance).unwrap();
    lab.be_pod();
    let (a2, b2) = (second.enrol(&lab.a.to_enrol()).unwrap(), second.enrol(&lab.b.to_enrol()).unwrap());
    second.apply(&lab.direct_view(&[81])).unwrap();
    assert_eq!(at(&b2), listening, "it is the same socket");
    assert_eq!(second.older_connections(&lab.b.key).unwrap(), [], "what agents accepted was decided on");
    first.retire();
    assert!(first.is_retired() && first.share_lock().is_err());
    drop((first, a, b));
    accept(&b2.inbound[0]);
    drop(waiting);
    let error = Datapath::open(lab.config.clone()).unwrap_err();
    assert!(error.to_string().contains("another process uses"), "the lock went with the hand-over: {error}");

    // Connections of both agents are left alone, until the first one has ended.
    let there = lab.c.listen("0.0.0.0:82".parse().unwrap());
    for cgroup in ["agent", "other"] {
        lab.be_in(cgroup);
        let _mine = lab.a.connect(lab.c.at(82)).unwrap();
        accept(&there);
    }
    second.predecessor_ended().unwrap();
    lab.be_in("agent");
    let _captured = lab.a.connect(lab.c.at(82)).unwrap();
    accept(&a2.outbound[0]);
    assert!(is_idle(&there));

    lab.be_pod();
    for pod in [&lab.a.key, &lab.b.key] {
        second.unenrol(pod).unwrap();
    }
    assert_eq!([lab.a.state(), lab.b.state()], before);
}

/// Clients that connect all the time, and whoever accepts with the sockets of the agent of the moment.
struct Traffic {
    sockets: Mutex<Arc<Vec<TcpListener>>>,
    answered: [AtomicUsize; 2],
    stop: AtomicBool,
}

impl Traffic {
    /// Connects again and again; every connection must bring a byte.
    fn call(&self, client: &Pod, to: SocketAddr) {
        let answered = &self.answered[usize::from(to.is_ipv6())];
        while !self.stop.load(Ordering::Relaxed) {
            let connected = client.connect(to);
            let mut stream = connected.unwrap_or_else(|error| panic!("after {answered:?} to {to}: {error}"));
            stream.read_exact(&mut [0]).unwrap_or_else(|error| panic!("after {answered:?} to {to}: {error}"));
            // With a reset nothing of it stays behind, however many there are.
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            answered.fetch_add(1, Ordering::Relaxed);
            // Dozens in every round are enough, and leave the processor to the agents.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Answers everybody with a byte.
    fn answer(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let sockets = Arc::clone(&self.sockets.lock().unwrap());
            let mut ready: Vec<_> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
            poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 })).unwrap();
            for socket in sockets.iter() {
                while let Ok((mut stream, _)) = socket.accept() {
                    stream.write_all(b"x").unwrap();
                }
            }
        }
    }
}

/// Ends the threads also when the test fails: their scope waits for them.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn three_hundred_agents_one_after_another_refuse_nobody() {
    let lab = Lab::new();
    let view = lab.direct_view(&[81]);
    let (mut agent, a, mut enrolled) = lab.enrolled(&view);
    let app = lab.b.listen("0.0.0.0:81".parse().unwrap());
    let direct = (lab.a.connect(lab.b.at(81)).unwrap(), accept(&app).0);
    drop(a);
    let clones = |pod: &weft_kernel::Enrolled| {
        Arc::new(pod.inbound.iter().map(|socket| socket.try_clone().unwrap()).collect::<Vec<_>>())
    };
    let traffic = Traffic {
        sockets: Mutex::new(clones(&enrolled)),
        answered: [AtomicUsize::new(0), AtomicUsize::new(0)],
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&traffic.stop);
        scope.spawn(|| traffic.answer());
        for to in [lab.b.at(80), lab.b.at6(80)] {
            let (traffic, client) = (&traffic, &lab.c);
            scope.spawn(move || traffic.call(client, to));
        }
        for round in 0..300 {
            let before = traffic.answered.each_ref().map(|answered| answered.load(Ordering::Relaxed));
            let listeners = shared(&[(&lab.b.key, &enrolled)]);
            let inheritance = Inheritance { lock: Some(agent.share_lock().unwrap()), listeners };
            let agent_cgroup = lab.config.cgroup.join(["other", "agent"][round % 2]);
            let config = DatapathConfig { agent_cgroup, ..lab.config.clone() };
            let mut next = Datapath::inherit(config, inheritance).unwrap();
            lab.be_pod();
            let taken = next.enrol(&lab.b.to_enrol()).unwrap();
            next.apply(&view).unwrap();
            agent.retire();
            *traffic.sockets.lock().unwrap() = clones(&taken);
            (agent, enrolled) = (next, taken);
            agent.predecessor_ended().unwrap();
            eventually("both clients are answered in every round", || {
                let now = traffic.answered.each_ref().map(|answered| answered.load(Ordering::Relaxed));
                now.iter().zip(before).all(|(now, before)| *now > before)
            });
        }
    });
    lab::echo(&direct.0, &direct.1, 1000);
}

#[test]
fn an_agent_goes_on_when_its_successor_fails() {
    let lab = Lab::new();
    let view = lab.direct_view(&[81]);
    let (mut first, a, b) = lab.enrolled(&view);
    let server = lab.b.listen("0.0.0.0:81".parse().unwrap());
    for enrols in [false, true] {
        let listeners = shared(&[(&lab.a.key, &a), (&lab.b.key, &b)]);
        let inheritance = Inheritance { lock: Some(first.share_lock().unwrap()), listeners };
        let mut second = Datapath::inherit(lab.config.clone(), inheritance).unwrap();
        lab.be_pod();
        let enrolled = enrols.then(|| second.enrol(&lab.b.to_enrol()).unwrap());
        second.apply(&lab.view()).unwrap();
        drop((second, enrolled));

        first.resume(&shared(&[(&lab.a.key, &a), (&lab.b.key, &b)])).unwrap();
        first.apply(&view).unwrap();
        assert!(first.leftovers().is_empty());
        let _direct = lab.a.connect(lab.b.at(81)).unwrap();
        accept(&server);
        let _proxied = lab.c.connect(lab.b.at(80)).unwrap();
        accept(&b.inbound[0]);
        let _outbound = lab.a.connect(lab.c.at(80)).unwrap();
        accept(&a.outbound[0]);
    }
    let error = Datapath::open(lab.config.clone()).unwrap_err();
    assert!(error.to_string().contains("another process uses"), "{error}");
}

#[test]
fn two_agents_cannot_share_pins() {
    let lab = Lab::new();
    let _datapath = lab.open();
    let error = Datapath::open(lab.config.clone()).unwrap_err();
    assert!(matches!(error, KernelError::IncompatiblePins(_)));
    assert!(error.to_string().contains("--pin-dir"), "{error}");
}

#[test]
fn pods_that_another_agent_steers_are_refused() {
    let lab = Lab::new();
    let (first, a, b) = lab.enrolled(&lab.view());
    // On the same bpffs, which goes with the lab.
    let pin_dir = lab.config.pin_dir.join("elsewhere");
    let config =
        DatapathConfig { pin_dir, agent_cgroup: lab.config.cgroup.join("other"), ..lab.config.clone() };
    let mut second = Datapath::open(config).unwrap();
    lab.be_pod();
    let programs = |datapath: &Datapath| -> Vec<_> {
        datapath.earlier_programs().unwrap().into_iter().map(|found| (found.hook, found.name)).collect()
    };
    let of_first = [("connect4", "out4".to_owned()), ("connect6", "out6".to_owned())];
    assert_eq!((programs(&first), programs(&second)), (Vec::new(), of_first.to_vec()));
    let before = lab.a.state();
    for pod in [&lab.a, &lab.b] {
        assert!(refusal(second.enrol(&pod.to_enrol())).contains("another --pin-dir"));
    }
    second.apply(&lab.view()).unwrap();
    assert_eq!(lab.a.state(), before);
    let _inbound = lab.c.connect(lab.b.at(80)).unwrap();
    accept(&b.inbound[0]);
    let _outbound = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&a.outbound[0]);

    drop((first, a, b));
    assert!(
        refusal(second.enrol(&lab.b.to_enrol())).contains("another --pin-dir"),
        "pins outlive their agent"
    );
    Datapath::cleanup(&lab.config, None).unwrap();
    let b = second.enrol(&lab.b.to_enrol()).unwrap();
    second.apply(&lab.view()).unwrap();
    let _inbound = lab.c.connect(lab.b.at(80)).unwrap();
    accept(&b.inbound[0]);
    assert_eq!(programs(&second), []);
}

#[test]
fn maps_of_another_shape_are_refused() {
    let lab = Lab::new();
    drop(lab.open());
    let path = lab.pins_of_schema().join("maps/POLICY");
    fs::remove_file(&path).unwrap();
    let other = BpfHashMap::<_, u64, u64>::create(16, 0).unwrap();
    other.pin(&path).unwrap();
    let error = Datapath::open(lab.config.clone()).unwrap_err().to_string();
    assert!(error.contains("maps/POLICY has key size 8, but this version needs 16"), "{error}");
    assert!(error.contains("weft cleanup"), "{error}");
}

#[test]
fn pins_of_a_newer_version_are_refused_and_of_an_older_one_removed() {
    let lab = Lab::new();
    drop(lab.open());
    let newer = lab.config.pin_dir.join("v7");
    fs::create_dir(&newer).unwrap();
    let error = Datapath::open(lab.config.clone()).unwrap_err().to_string();
    assert!(error.contains("newer Weft (schema 7"), "{error}");
    fs::remove_dir(&newer).unwrap();

    let older = lab.config.pin_dir.join("v0/maps");
    fs::create_dir_all(&older).unwrap();
    BpfHashMap::<_, u64, u64>::create(16, 0).unwrap().pin(older.join("PODS")).unwrap();
    let mut datapath = lab.open();
    datapath.apply(&KernelView::default()).unwrap();
    assert!(!older.join("PODS").exists());
}

/// As if an agent of an older schema had pinned everything.
fn make_older(lab: &Lab) {
    fs::rename(lab.pins_of_schema(), lab.config.pin_dir.join("v0")).unwrap();
}

#[test]
fn pods_of_an_older_schema_are_never_open_while_they_are_taken_over() {
    let lab = Lab::new();
    let before = [lab.a.state(), lab.b.state()];
    let (datapath, a, b) = lab.enrolled(&lab.view());
    drop((datapath, a, b));
    make_older(&lab);
    let outside = lab.c.listen("[::]:81".parse().unwrap());
    let app = lab.a.listen("[::]:80".parse().unwrap());
    let is_closed = || {
        let refused = lab.a.connect(lab.c.at6(81)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "captured, and nobody there");
        lab.c.connect(lab.a.at6(80)).unwrap_err();
        assert!(is_idle(&outside) && is_idle(&app));
    };

    is_closed();
    let mut datapath = lab.open();
    is_closed();
    let mut leftovers = datapath.leftovers();
    leftovers.sort();
    assert_eq!(leftovers, [lab.a.key.clone(), lab.b.key.clone()]);
    let a = datapath.enrol(&lab.a.to_enrol()).unwrap();
    lab.c.connect(lab.a.at6(80)).unwrap_err();
    assert!(is_idle(&app), "it is not steered by ours yet, and still by theirs");
    datapath.apply(&lab.view()).unwrap();
    let _captured = lab.a.connect(lab.c.at6(81)).unwrap();
    accept(&a.outbound[1]);
    let _inbound = lab.c.connect(lab.a.at6(80)).unwrap();
    accept(&a.inbound[1]);
    assert!(is_idle(&outside) && is_idle(&app));

    assert_eq!(datapath.leftovers(), std::slice::from_ref(&lab.b.key), "it is not in the mesh any more");
    datapath.unenrol(&lab.b.key).unwrap();
    let older = pins(&lab.config.pin_dir.join("v0"));
    assert!(older.iter().all(|path| path.is_dir()), "nothing of the older schema is left: {older:?}");
    assert_eq!(lab.b.state(), before[1]);
    let _released = lab.b.connect(lab.c.at6(81)).unwrap();
    accept(&outside);
}
