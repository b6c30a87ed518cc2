//! Flows that need no proxy.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

mod lab;

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};

use lab::{Lab, accept, counter, eventually, is_idle};
use socket2::{Domain, Protocol};
use weft_kernel::{Cut, FlowEventKind};

#[test]
fn a_permitted_flow_reaches_the_application_and_nobody_else() {
    let lab = Lab::new();
    let (mut datapath, a, b) = lab.enrolled(&lab.direct_view(&[8080]));
    let app = lab.b.listen("[::]:8080".parse().unwrap());
    for to in [lab.b.at(8080), lab.b.at6(8080)] {
        let client = lab.a.connect(to).unwrap();
        let (server, peer) = accept(&app);
        assert_eq!(peer.ip().to_canonical(), client.local_addr().unwrap().ip());
        lab::echo(&client, &server, 100_000);
        assert!(a.outbound.iter().chain(&b.inbound).all(is_idle));

        let flows = datapath.direct_flows();
        assert_eq!(flows.len(), 1);
        assert_eq!((&flows[0].source, &flows[0].destination), (&lab.a.key, &lab.b.key));
        assert_eq!(flows[0].source_addr, client.local_addr().unwrap());
        assert_eq!((flows[0].destination_addr, flows[0].vip), (to, None));
        assert_eq!(flows[0].socket_cookie, lab::cookie(&client));
        drop((client, server));
        eventually("the flow ends", || datapath.direct_flows().is_empty());
    }
    // Another port, another source: through the proxy.
    let _other_port = lab.a.connect(lab.b.at(8081)).unwrap();
    accept(&a.outbound[0]);
    let _other_source = lab.c.connect(lab.b.at(8080)).unwrap();
    accept(&b.inbound[0]);

    datapath.apply(&lab.view()).unwrap();
    let _client = lab.a.connect(lab.b.at(8080)).unwrap();
    accept(&a.outbound[0]);
    assert!(is_idle(&app));
}

#[test]
fn syn_cookies_do_not_turn_a_direct_flow_away() {
    let lab = Lab::new();
    let (datapath, _a, b) = lab.enrolled(&lab.direct_view(&[80]));
    lab.b.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")).unwrap().unwrap();
    let app = lab.b.listen("[::]:80".parse().unwrap());
    for to in [lab.b.at(80), lab.b.at6(80)] {
        let client = lab.a.connect(to).unwrap();
        let (server, _) = accept(&app);
        lab::echo(&client, &server, 1000);
    }
    assert!(b.inbound.iter().all(is_idle));
    assert_eq!(counter(&datapath, "steer", "direct_refused"), 0);
    assert!(counter(&datapath, "steer", "direct") >= 4, "SYN and ACK are looked up");
}

#[test]
fn a_service_is_rewritten_and_its_address_shown() {
    let lab = Lab::new();
    let mut view = lab.direct_view(&[8080]);
    view.services = vec![
        Lab::service("10.96.0.10:80", &[lab.b.at(8080)]),
        Lab::service("[fd00:96::10]:80", &[lab.b.at6(8080)]),
        Lab::service("10.96.0.11:80", &[lab.c.at(8080)]),
    ];
    let (mut datapath, a, _b) = lab.enrolled(&view);
    let app = lab.b.listen("[::]:8080".parse().unwrap());
    for text in ["10.96.0.10:80", "[fd00:96::10]:80"] {
        let vip: SocketAddr = text.parse().unwrap();
        let client = lab.a.connect(vip).unwrap();
        let (server, _) = accept(&app);
        lab::echo(&client, &server, 500);
        assert_eq!(client.peer_addr().unwrap(), vip);
        assert_eq!(datapath.direct_flows()[0].vip, Some(vip));
        let totals = datapath.totals().unwrap();
        let of_vip = totals.iter().find(|total| total.dialled == vip).unwrap();
        assert_eq!((of_vip.opened, of_vip.sent_bytes, of_vip.received_bytes), (1, 500, 500));
        drop((client, server));
        eventually("the flow ends", || datapath.direct_flows().is_empty());
    }
    let mapped = lab.a.socket(Domain::IPV6, Protocol::TCP);
    let vip: SocketAddr = "[::ffff:10.96.0.10]:80".parse().unwrap();
    mapped.connect_timeout(&vip.into(), lab::PATIENCE).unwrap();
    accept(&app);
    assert_eq!(mapped.peer_addr().unwrap().as_socket(), Some(vip));

    // An endpoint that is not local and permitted: the proxy sees the virtual address.
    let _client = lab.a.connect("10.96.0.11:80".parse().unwrap()).unwrap();
    assert_eq!(accept(&a.outbound[0]).0.local_addr().unwrap().to_string(), "10.96.0.11:80");
    let _client = lab.a.connect("10.96.0.10:81".parse().unwrap()).unwrap();
    assert_eq!(accept(&a.outbound[0]).0.local_addr().unwrap().to_string(), "10.96.0.10:81");
}

#[test]
fn totals_count_real_bytes_of_open_and_closed_flows() {
    let lab = Lab::new();
    let (mut datapath, _a, _b) = lab.enrolled(&lab.direct_view(&[80]));
    let app = lab.b.listen("[::]:80".parse().unwrap());
    let first = lab.a.connect(lab.b.at(80)).unwrap();
    let (first_server, _) = accept(&app);
    lab::echo(&first, &first_server, 10_000);
    let totals = |datapath: &mut weft_kernel::Datapath| {
        let totals = datapath.totals().unwrap();
        assert_eq!(totals.len(), 1);
        assert_eq!((&totals[0].source, &totals[0].destination), (&lab.a.key, &lab.b.key));
        assert_eq!(totals[0].dialled.port(), 80);
        let total = &totals[0];
        (total.opened, total.closed, total.failed, total.sent_bytes, total.received_bytes)
    };
    assert_eq!(totals(&mut datapath), (1, 0, 0, 10_000, 10_000));

    let second = lab.a.connect(lab.b.at6(80)).unwrap();
    let (second_server, _) = accept(&app);
    lab::echo(&second, &second_server, 700);
    assert_eq!(totals(&mut datapath), (2, 0, 0, 10_700, 10_700));

    // The client closes first, then the server.
    first.shutdown(Shutdown::Write).unwrap();
    drop(first_server);
    assert_eq!((&first).read(&mut [0; 1]).unwrap(), 0);
    drop(first);
    // The server closes first, then the client.
    drop(second_server);
    assert_eq!((&second).read(&mut [0; 1]).unwrap(), 0);
    drop(second);
    eventually("both flows end", || datapath.direct_flows().is_empty());
    assert_eq!(totals(&mut datapath), (2, 2, 0, 10_700, 10_700));

    drop(app);
    lab.a.connect(lab.b.at(80)).unwrap_err();
    assert_eq!(totals(&mut datapath), (2, 2, 1, 10_700, 10_700));
}

#[test]
fn revocation_reports_the_flows_and_a_cut_ends_them_at_both_ends() {
    let lab = Lab::new();
    let (mut datapath, _a, _b) = lab.enrolled(&lab.direct_view(&[80, 81]));
    let app = lab.b.listen("[::]:80".parse().unwrap());
    let kept_app = lab.b.listen("[::]:81".parse().unwrap());
    let kept = lab.a.connect(lab.b.at(81)).unwrap();
    let (kept_server, _) = accept(&kept_app);
    for to in [lab.b.at(80), lab.b.at6(80)] {
        datapath.apply(&lab.direct_view(&[80, 81])).unwrap();
        let client = lab.a.connect(to).unwrap();
        let (server, _) = accept(&app);
        lab::echo(&client, &server, 10);
        let applied = datapath.apply(&lab.direct_view(&[81])).unwrap();
        assert_eq!(applied.removed, 1);
        assert_eq!(applied.revoked.len(), 1);
        let flow = &applied.revoked[0];
        assert_eq!(flow.socket_cookie, lab::cookie(&client));

        assert_eq!(datapath.cut(flow).unwrap(), Cut::Done);
        for mut end in [&client, &server] {
            let error = end.read(&mut [0; 1]).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset),
                "{error}"
            );
        }
        assert_eq!(datapath.cut(flow).unwrap(), Cut::AlreadyGone);
    }
    lab::echo(&kept, &kept_server, 1000);
    assert_eq!(datapath.direct_flows().len(), 1);
}

#[test]
fn a_flow_that_was_on_its_way_is_found_by_the_sweep() {
    let lab = Lab::new();
    let (mut datapath, _a, _b) = lab.enrolled(&lab.direct_view(&[80]));
    assert!(datapath.sweep().unwrap().is_empty());
    let app = lab.b.listen("[::]:80".parse().unwrap());
    let _client = lab.a.connect(lab.b.at(80)).unwrap();
    let _server = accept(&app);
    assert_eq!(datapath.apply(&lab.view()).unwrap().revoked.len(), 1);
    // Left open on purpose: as if it had been established just after the revocation.
    let mut swept = Vec::new();
    eventually("a tuple's lifetime later the sweep finds it", || {
        swept = datapath.sweep().unwrap();
        !swept.is_empty()
    });
    assert_eq!(swept.len(), 1);
    assert!(datapath.sweep().unwrap().is_empty(), "once");
}

#[test]
fn a_forged_source_address_is_not_published() {
    let lab = Lab::new();
    let (datapath, _a, b) = lab.enrolled(&lab.direct_view(&[80]));
    let app = lab.b.listen("[::]:80".parse().unwrap());
    for (forged, to) in [(lab.c.v4, lab.b.at(80)), (lab.c.v6, lab.b.at6(80))] {
        let client = lab.a.socket(if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }, Protocol::TCP);
        if to.is_ipv4() {
            client.set_ip_transparent_v4(true).unwrap();
        } else {
            client.set_ip_transparent_v6(true).unwrap();
        }
        let source = SocketAddr::new(forged, 3456);
        client.bind(&source.into()).unwrap();
        client.set_nonblocking(true).unwrap();
        let before = counter(&datapath, "steer", "inbound");
        client.connect(&to.into()).unwrap_err();
        assert_eq!(datapath.tuples().attested(source, to), None);
        eventually("the SYN goes to the proxy", || counter(&datapath, "steer", "inbound") > before);
    }
    assert_eq!(counter(&datapath, "tuple", "forged"), 2);
    assert_eq!(counter(&datapath, "tuple", "published"), 0);
    assert!(is_idle(&app));
    drop(b);
}

#[test]
fn the_kernel_vouches_for_a_flow_that_policy_stopped_on_its_way() {
    let lab = Lab::new();
    let (mut datapath, a, b) = lab.enrolled(&lab.direct_view(&[80]));
    let app = lab.b.listen("[::]:80".parse().unwrap());
    let client = lab.a.connect(lab.b.at(80)).unwrap();
    accept(&app);
    let attested = datapath.tuples().attested(client.local_addr().unwrap(), lab.b.at(80)).unwrap();
    assert_eq!(attested.pod, lab.a.key);
    assert_eq!(datapath.tuples().attested(client.local_addr().unwrap(), lab.b.at(81)), None);
    drop((a, b));
    datapath.unenrol(&lab.a.key).unwrap();
    assert_eq!(datapath.tuples().attested(client.local_addr().unwrap(), lab.b.at(80)), None);
}

#[test]
fn flow_events_tell_the_whole_story() {
    let lab = Lab::new();
    let (mut datapath, _a, _b) = lab.enrolled(&lab.direct_view(&[80]));
    let mut events = datapath.take_events().unwrap().unwrap();
    assert!(datapath.take_events().unwrap().is_none(), "there is one reader");
    let app = lab.b.listen("[::]:80".parse().unwrap());
    for on in [true, false] {
        datapath.set_flow_events(on).unwrap();
    }
    drop((lab.a.connect(lab.b.at(80)).unwrap(), accept(&app)));
    eventually("the flow ends", || datapath.direct_flows().is_empty());
    assert!(events.next().is_none(), "nobody asked for events");
    datapath.set_flow_events(true).unwrap();
    let client = lab.a.connect(lab.b.at(80)).unwrap();
    let source = client.local_addr().unwrap();
    let (server, _) = accept(&app);
    lab::echo(&client, &server, 300);
    drop((client, server, app));
    eventually("the flow ends", || datapath.direct_flows().is_empty());
    lab.a.connect(lab.b.at(80)).unwrap_err();

    let opened = events.next().unwrap();
    assert_eq!((opened.kind, opened.flow.source_addr), (FlowEventKind::Opened, source));
    assert_eq!((&opened.flow.source, &opened.flow.destination), (&lab.a.key, &lab.b.key));
    assert!(opened.at_ns >= opened.opened_ns);
    let closed = events.next().unwrap();
    assert_eq!((closed.kind, closed.sent_bytes, closed.received_bytes), (FlowEventKind::Closed, 300, 300));
    let failed = events.next().unwrap();
    assert_eq!((failed.kind, failed.flow.destination_addr), (FlowEventKind::Failed, lab.b.at(80)));
    assert_eq!(events.next(), None);
}

#[test]
fn a_socket_that_connects_again_is_another_flow() {
    let lab = Lab::new();
    let mut view = lab.direct_view(&[8080]);
    view.services = vec![Lab::service("10.96.0.10:80", &[lab.b.at(8080)])];
    let (datapath, a, _b) = lab.enrolled(&view);
    // Nobody listens: the direct flow fails, and the socket is used again for a captured one.
    let client = lab.a.socket(Domain::IPV4, Protocol::TCP);
    let vip: SocketAddr = "10.96.0.10:80".parse().unwrap();
    client.connect(&vip.into()).unwrap_err();
    client.connect(&lab.c.at(80).into()).unwrap();
    let (_accepted, _) = accept(&a.outbound[0]);
    let client = TcpStream::from(client);
    assert_eq!(client.peer_addr().unwrap(), lab.c.at(80), "not the address dialled before");
    assert!(datapath.direct_flows().is_empty());

    // And the other way round: the capture mark goes when the flow is direct.
    let app = lab.b.listen("0.0.0.0:8080".parse().unwrap());
    let marked = lab.a.socket(Domain::IPV4, Protocol::TCP);
    marked.set_mark(0x1000_0000).unwrap();
    marked.connect_timeout(&lab.b.at(8080).into(), lab::PATIENCE).unwrap();
    accept(&app);
    assert_eq!(marked.mark().unwrap(), 0);
}
