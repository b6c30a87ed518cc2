//! Which connections reach which listener.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

mod lab;

use std::net::{IpAddr, SocketAddr, TcpStream};

use aya::maps::{Array, Map, MapData};
use lab::{Lab, accept, counter, is_idle};
use socket2::{Domain, Protocol, Socket};
use weft_core::snapshot::CaptureRules;
use weft_ebpf_common::Meta;

fn domain(of: SocketAddr) -> Domain {
    if of.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }
}

#[test]
fn outbound_connections_reach_the_outbound_listener_with_their_destination() {
    let lab = Lab::new();
    let (_datapath, a, b) = lab.enrolled(&lab.view());
    let elsewhere: [SocketAddr; 2] = ["192.0.2.1:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()];
    for to in [lab.b.at(8080), lab.b.at6(8080), lab.c.at(1), lab.c.at6(65535)].into_iter().chain(elsewhere) {
        let client = lab.a.connect(to).unwrap();
        let family = usize::from(to.is_ipv6());
        let (accepted, peer) = accept(&a.outbound[family]);
        assert_eq!(accepted.local_addr().unwrap(), to);
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(peer.ip(), lab.a.ips()[family]);
        assert_eq!(client.peer_addr().unwrap(), to);
        lab::echo(&client, &accepted, 1000);
    }
    assert!(is_idle(&b.inbound[0]) && is_idle(&b.inbound[1]));
}

#[test]
fn inbound_connections_reach_the_inbound_listener_at_any_port() {
    let lab = Lab::new();
    let (_datapath, _a, b) = lab.enrolled(&lab.view());
    let app = lab.b.listen("[::]:8080".parse().unwrap());
    for to in [lab.b.at(8080), lab.b.at6(8080), lab.b.at(1), lab.b.at6(15008)] {
        // Not enrolled, so not captured on its way out.
        let client = lab.c.connect(to).unwrap();
        let (accepted, peer) = accept(&b.inbound[usize::from(to.is_ipv6())]);
        assert_eq!(accepted.local_addr().unwrap(), to);
        assert_eq!(peer, client.local_addr().unwrap());
        lab::echo(&client, &accepted, 1000);
    }
    assert!(is_idle(&app));
}

#[test]
fn the_pod_itself_is_left_alone() {
    let lab = Lab::new();
    let (datapath, a, _b) = lab.enrolled(&lab.view());
    let app = lab.a.listen("[::]:8080".parse().unwrap());
    let loopback = ["127.0.0.1:8080", "[::1]:8080"].map(|text| text.parse().unwrap());
    for to in [lab.a.at(8080), lab.a.at6(8080)].into_iter().chain(loopback) {
        let _client = lab.a.connect(to).unwrap();
        accept(&app);
    }
    assert!(a.inbound.iter().chain(&a.outbound).all(is_idle));
    assert_eq!(counter(&datapath, "out", "self"), 4);
    assert_eq!(counter(&datapath, "out", "captured"), 0);
}

#[test]
fn nothing_is_captured_before_apply() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    let a = datapath.enrol(&lab.a.to_enrol()).unwrap();
    let app = lab.a.listen("0.0.0.0:80".parse().unwrap());
    let there = lab.c.listen("0.0.0.0:80".parse().unwrap());
    let _in = lab.c.connect(lab.a.at(80)).unwrap();
    accept(&app);
    let _out = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&there);
    assert!(a.inbound.iter().chain(&a.outbound).all(is_idle));
}

#[test]
fn clients_with_options_of_their_own_are_captured() {
    const MARK: u32 = 0x42;
    let lab = Lab::new();
    let (_datapath, a, _b) = lab.enrolled(&lab.view());
    for to in [lab.b.at(80), lab.b.at6(80)] {
        let outbound = &a.outbound[usize::from(to.is_ipv6())];
        let marked = lab.a.socket(domain(to), Protocol::TCP);
        marked.set_mark(MARK).unwrap();
        let bound = lab.a.socket(domain(to), Protocol::TCP);
        bound.bind_device(Some(b"eth0")).unwrap();
        let multipath = lab.a.socket(domain(to), Protocol::MPTCP);
        for client in [&marked, &bound, &multipath] {
            client.connect_timeout(&to.into(), lab::PATIENCE).unwrap();
            let (accepted, _) = accept(outbound);
            assert_eq!(accepted.local_addr().unwrap(), to);
            assert_eq!(client.peer_addr().unwrap().as_socket().unwrap(), to);
        }
        assert_eq!(marked.mark().unwrap() & 0xffff, MARK, "the application's mark is kept");
    }
}

#[test]
fn a_mapped_address_is_captured_as_ipv4() {
    let lab = Lab::new();
    let (_datapath, a, _b) = lab.enrolled(&lab.view());
    let client = lab.a.socket(Domain::IPV6, Protocol::TCP);
    let mapped: SocketAddr = format!("[::ffff:{}]:80", lab.b.v4).parse().unwrap();
    client.connect_timeout(&mapped.into(), lab::PATIENCE).unwrap();
    let (accepted, peer) = accept(&a.outbound[0]);
    assert_eq!((accepted.local_addr().unwrap(), peer.ip()), (lab.b.at(80), lab.a.v4));
}

#[test]
fn the_agent_is_not_captured() {
    let lab = Lab::new();
    let (datapath, a, b) = lab.enrolled(&lab.view());
    lab.be_agent();
    let _client = lab.a.connect(lab.b.at(15008)).unwrap();
    let (_, peer) = accept(&b.inbound[0]);
    assert_eq!(peer.ip(), lab.a.v4, "the tunnel leaves from the pod");
    assert!(is_idle(&a.outbound[0]));
    assert_eq!(counter(&datapath, "out", "agent"), 1);
}

#[test]
fn onward_connections_reach_the_application_with_the_clients_address() {
    let lab = Lab::new();
    let (datapath, _a, b) = lab.enrolled(&lab.view());
    let app = lab.b.listen("[::]:8080".parse().unwrap());
    for (client, to) in [(lab.c.v4, lab.b.at(8080)), (lab.c.v6, lab.b.at6(8080))] {
        let source = SocketAddr::new(client, 2345);
        let socket = onward_socket(&lab, source);
        let onward = datapath.onward();
        onward.publish(source, to).unwrap();
        lab.be_agent();
        socket.connect_timeout(&to.into(), lab::PATIENCE).unwrap();
        lab.be_pod();
        onward.withdraw(source, to);
        let (accepted, peer) = accept(&app);
        assert_eq!(peer.port(), 2345);
        assert_eq!(canonical(peer.ip()), client);
        lab::echo(&TcpStream::from(socket), &accepted, 100_000);
    }
    assert_eq!(counter(&datapath, "steer", "onward"), 2);
    assert!(b.inbound.iter().all(is_idle));
}

/// A socket as the proxy makes it: bound to the client's address, looped by mark and device.
fn onward_socket(lab: &Lab, source: SocketAddr) -> Socket {
    let socket = lab.b.socket(domain(source), Protocol::TCP);
    if source.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        socket.set_ip_transparent_v6(true).unwrap();
    }
    socket.set_reuse_address(true).unwrap();
    socket.set_mark(0x1000_0000).unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.bind(&source.into()).unwrap();
    socket
}

fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[test]
fn ports_and_ranges_of_the_pod() {
    let lab = Lab::new();
    let mut view = lab.view();
    view.pods[0].capture = CaptureRules {
        include_outbound_ranges: Some(vec!["10.244.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()]),
        exclude_outbound_ranges: vec![format!("{}/32", lab.c.v4).parse().unwrap()],
        include_outbound_ports: vec![7000, 7001],
        exclude_outbound_ports: vec![9000, 7001],
        include_inbound_ports: None,
        exclude_inbound_ports: vec![81],
    };
    let (datapath, a, _b) = lab.enrolled(&view);
    let captured = |to: SocketAddr| {
        let before = counter(&datapath, "out", "captured");
        let excluded = counter(&datapath, "out", "excluded");
        let client = lab.a.socket(domain(to), Protocol::TCP);
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&to.into());
        let captured = counter(&datapath, "out", "captured") - before;
        assert_eq!(captured + counter(&datapath, "out", "excluded") - excluded, 1);
        captured == 1
    };
    assert!(captured(lab.b.at(80)) && captured(lab.b.at6(80)), "included ranges");
    assert!(!captured("192.0.2.1:80".parse().unwrap()), "not included");
    assert!(!captured("[2001:db8::1]:80".parse().unwrap()), "not included");
    assert!(!captured(lab.c.at(80)), "excluded inside an included range");
    assert!(captured(lab.c.at(7000)), "an included port wins over ranges");
    assert!(captured("192.0.2.1:7000".parse().unwrap()), "an included port wins over ranges");
    assert!(!captured(lab.b.at(9000)), "an excluded port wins over ranges");
    assert!(!captured(lab.b.at(7001)), "an excluded port wins over an included one");

    let app = lab.a.listen("0.0.0.0:81".parse().unwrap());
    let _client = lab.c.connect(lab.a.at(81)).unwrap();
    accept(&app);
    let _client = lab.c.connect(lab.a.at(82)).unwrap();
    accept(&a.inbound[0]);
}

#[test]
fn an_included_range_does_not_win_inside_an_excluded_one() {
    let lab = Lab::new();
    let mut view = lab.view();
    view.pods[0].capture = CaptureRules {
        include_outbound_ranges: Some(vec![format!("{}/32", lab.b.v4).parse().unwrap()]),
        exclude_outbound_ranges: vec!["10.244.0.0/16".parse().unwrap()],
        ..CaptureRules::default()
    };
    let (datapath, _a, _b) = lab.enrolled(&view);
    let client = lab.a.socket(Domain::IPV4, Protocol::TCP);
    client.set_nonblocking(true).unwrap();
    let _ = client.connect(&lab.b.at(80).into());
    assert_eq!(counter(&datapath, "out", "excluded"), 1);
}

#[test]
fn break_glass_ends_capture_at_once() {
    let lab = Lab::new();
    let mut view = lab.view();
    let (mut datapath, a, b) = lab.enrolled(&view);
    let app = lab.b.listen("0.0.0.0:80".parse().unwrap());
    view.pods.iter_mut().for_each(|pod| pod.bypass = true);
    datapath.apply(&view).unwrap();
    let _client = lab.a.connect(lab.b.at(80)).unwrap();
    accept(&app);
    assert!(a.outbound.iter().chain(&b.inbound).all(is_idle));
}

#[test]
fn probes_of_the_kubelet_reach_the_application() {
    let mut lab = Lab::new();
    let kubelet = lab.config.cgroup.join("other");
    std::fs::create_dir(&kubelet).unwrap();
    lab.config.probe_cgroup = Some(kubelet);
    let (datapath, _a, b) = lab.enrolled(&lab.view());
    let app = lab.b.listen("[::]:80".parse().unwrap());
    lab.be_in("other");
    // From the third pod: the node's address would do as well, and this one is there.
    for to in [lab.b.at(80), lab.b.at6(80)] {
        let _probe = lab.c.connect(to).unwrap();
        accept(&app);
    }
    lab.be_pod();
    let _other = lab.c.connect(lab.b.at(80)).unwrap();
    accept(&b.inbound[0]);
    assert_eq!(counter(&datapath, "probe", "published"), 2);
    assert_eq!(counter(&datapath, "steer", "probe"), 2);
}

/// Lets the agent's last sign of life be long ago.
fn silence(lab: &Lab) {
    let data = MapData::from_pin(lab.pins_of_schema().join("maps/META")).unwrap();
    let mut meta: Array<_, Meta> = Map::Array(data).try_into().unwrap();
    let heartbeat_ns = 1;
    let silent = Meta { heartbeat_ns, ..meta.get(&0, 0).unwrap() };
    meta.set(0, silent, 0).unwrap();
}

#[test]
fn without_an_agent_the_gone_rules_apply() {
    let lab = Lab::new();
    let mut view = lab.view();
    view.pods[1].gone_pass = true;
    view.pods[1].gone_ports = vec![81];
    let (datapath, a, b) = lab.enrolled(&view);
    let app = lab.b.listen("0.0.0.0:80".parse().unwrap());
    let strict = lab.b.listen("0.0.0.0:81".parse().unwrap());
    drop((a, b, datapath));

    let _client = lab.c.connect(lab.b.at(80)).unwrap();
    accept(&app);
    let refused = |result: std::io::Result<TcpStream>| {
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    };
    refused(lab.c.connect(lab.b.at(81)));
    refused(lab.c.connect(lab.a.at(80)));
    refused(lab.a.connect(lab.c.at6(80)));
    // Refused at once when the agent has been silent for long; not for its silence alone.
    let refused = |lab: &Lab| lab.a.connect(lab.c.at(80)).unwrap_err().kind();
    silence(&lab);
    assert_eq!(refused(&lab), std::io::ErrorKind::PermissionDenied);
    let mut datapath = lab.open();
    let a = datapath.enrol(&lab.a.to_enrol()).unwrap();
    silence(&lab);
    let _client = lab.a.connect(lab.c.at(80)).unwrap();
    accept(&a.outbound[0]);
    datapath.heartbeat().unwrap();
    assert_eq!(counter(&datapath, "out", "agent_gone"), 1);
    drop((a, datapath));

    // The kernel sends no reset from a foreign IPv4 address: the client tries again until an agent is there.
    let client = lab.a.socket(Domain::IPV4, Protocol::TCP);
    client.set_nonblocking(true).unwrap();
    client.connect(&lab.c.at(80).into()).unwrap_err();
    let datapath = lab.open();
    assert_eq!(counter(&datapath, "steer", "gone_passed"), 1);
    assert!(counter(&datapath, "steer", "gone_dropped") >= 4);
    assert!(is_idle(&strict));
}
