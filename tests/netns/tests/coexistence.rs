//! The mesh beside other things in a pod's namespace, and what it leaves alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::fs::File;
use std::net::SocketAddr;

use aya::EbpfLoader;
use aya::maps::Array;
use aya::programs::SkLookup;
use weft_ebpf_common::{SteerConfig, steer_flags};
use weft_lab::{LabSpec, PodSpec, output, within};
use weft_netns_tests::puppet::{Connect, Puppet, Role};
use weft_netns_tests::yaml::peer_authentication;
use weft_netns_tests::{Family, Mesh, NetnsState, Path, eventually, usual_spec};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");

#[test]
fn there_is_no_packet_filter_in_a_pod() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut client = mesh.puppet("client");
    assert!(mesh.reaches(&mut client, mesh.target(Family::V4, "far")));
    for pod in ["client", "far"] {
        for table in ["ip_tables_names", "ip6_tables_names", "nf_conntrack"] {
            let path = format!("/proc/thread-self/net/{table}");
            let read = || Ok(std::fs::read_to_string(&path).unwrap_or_default());
            assert_eq!(within(mesh.pod(pod).netns(), read).unwrap(), "", "{table} in {pod}");
        }
    }
}

#[test]
fn rules_that_a_pod_deletes_come_back() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut client = mesh.puppet("client");
    let before = NetnsState::of(mesh.pod("client"));
    let netns = format!("--net={}", mesh.pod("client").netns().display());
    for (round, family) in ["-4", "-6"].into_iter().enumerate() {
        let delete = ["--", "ip", family, "rule", "del", "pref", "10"];
        output("nsenter", &[&[netns.as_str()], &delete[..]].concat()).unwrap();
        eventually("the rule is back", || NetnsState::of(mesh.pod("client")) == before);
        let counted = [("program", "agent"), ("reason", "rules_reasserted")];
        eventually("and counted", || {
            mesh.metric("a", "weft_kernel_events_total", &counted) >= (round + 1) as f64
        });
    }
    output("nsenter", &[netns.as_str(), "--", "ip", "route", "flush", "table", "30565"]).unwrap();
    eventually("the route is back", || NetnsState::of(mesh.pod("client")) == before);
    mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, "far")), Path::Proxied);
}

/// Another `sk_lookup` program in a pod's namespace that lets everything pass.
fn attach_another_program(mesh: &Mesh, pod: &str) -> aya::Ebpf {
    let object = mesh.lab().weft().parent().unwrap().join("../ebpf/steer");
    let mut ebpf = EbpfLoader::new().load_file(&object).unwrap();
    let mut config: Array<_, SteerConfig> = ebpf.map_mut("STEER").unwrap().try_into().unwrap();
    let pass = SteerConfig { flags: steer_flags::BYPASS, ..SteerConfig::default() };
    config.set(0, pass, 0).unwrap();
    let program: &mut SkLookup = ebpf.program_mut("steer").unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(File::open(mesh.pod(pod).netns()).unwrap()).unwrap();
    ebpf
}

#[test]
fn another_sk_lookup_program_changes_nothing() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    let before = ["client", "near", "far"].map(|pod| attach_another_program(&mesh, pod));
    mesh.start_controller(&[]);
    mesh.start_agent("a");
    mesh.start_agent("b");
    let after = ["client", "near", "far"].map(|pod| attach_another_program(&mesh, pod));
    let servers: Vec<_> = ["near", "far"].map(|pod| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    let mut outside = mesh.outside();
    for family in Family::ALL {
        mesh.connect_by(&mut client, &family.connect(mesh.target(family, "near")), Path::Direct);
        mesh.connect_by(&mut client, &family.connect(mesh.target(family, "far")), Path::Proxied);
    }
    mesh.write("strict.yaml", &peer_authentication("far", "STRICT"));
    mesh.wait_reaches(&mut outside, mesh.target(Family::V4, "far"), false);
    drop((servers, before, after));
}

/// A pod with one annotation.
fn annotated(node: &str, name: &str, key: &str, value: &str) -> PodSpec {
    PodSpec::new(node, "shop", name).annotation(&format!("traffic.sidecar.istio.io/{key}"), value)
}

#[test]
fn outbound_exclusions() {
    let spec = usual_spec()
        .pod(annotated("a", "no-port", "excludeOutboundPorts", "7000"))
        .pod(annotated("a", "no-range", "excludeOutboundIPRanges", "10.100.0.0/14,fd00:244:1::/48"))
        .pod(annotated("a", "only-range", "includeOutboundIPRanges", "10.250.0.0/16"))
        .pod(
            annotated("a", "only-port", "includeOutboundIPRanges", "")
                .annotation("traffic.sidecar.istio.io/includeOutboundPorts", "7001"),
        );
    let Some(mesh) = Mesh::start(PUPPET, &spec) else { return };
    let (mut far, _) = mesh.serve("far", Role::Greet);
    far.serve(SocketAddr::new(Family::V6.any(), 7001), Role::Greet);
    // Pod, and how its connections to ports 7000 and 7001 of another node's pod travel.
    for (pod, to_7000, to_7001) in [
        ("client", Path::Proxied, Path::Proxied),
        ("no-port", Path::Direct, Path::Proxied),
        ("no-range", Path::Direct, Path::Direct),
        ("only-range", Path::Direct, Path::Direct),
        ("only-port", Path::Direct, Path::Proxied),
    ] {
        let mut client = mesh.puppet(pod);
        for family in Family::ALL {
            let ip = family.ip(mesh.pod("far"));
            for (port, path) in [(7000, to_7000), (7001, to_7001)] {
                eprintln!("{pod} to {ip}:{port} should be {path:?}");
                expect(&mesh, &mut client, &family.connect((ip, port).into()), path);
            }
        }
    }
}

/// An excluded connection leaves its pod as it is and is plaintext at the other end, where the proxy sees the
/// client's own port; of a captured one the client's node knows that port.
fn expect(mesh: &Mesh, client: &mut Puppet, how: &Connect, path: Path) {
    let connection = client.try_connect(how.clone()).unwrap();
    client.greeting(connection);
    client.close(connection);
    let (node, direction, mesh_path) = match path {
        Path::Proxied => ("a", "outbound", "hbone"),
        Path::Direct => ("b", "inbound", "plaintext"),
    };
    let line = mesh.log_of(node, direction, connection.local);
    assert_eq!(line["mesh_path"], mesh_path, "{line}");
}

#[test]
fn inbound_exclusions() {
    let spec = LabSpec::new()
        .node("a")
        .pod(annotated("a", "no-port", "excludeInboundPorts", "7000"))
        .pod(annotated("a", "only-port", "includeInboundPorts", "7001"));
    let Some(mesh) = Mesh::start(PUPPET, &spec) else { return };
    let mut outside = mesh.outside();
    for pod in ["no-port", "only-port"] {
        let (mut server, _) = mesh.serve(pod, Role::Greet);
        server.serve(SocketAddr::new(Family::V6.any(), 7001), Role::Greet);
        for family in Family::ALL {
            let ip = family.ip(mesh.pod(pod));
            mesh.connect_by(&mut outside, &family.connect((ip, 7000).into()), Path::Direct);
            mesh.connect_by(&mut outside, &family.connect((ip, 7001).into()), Path::Proxied);
        }
    }
}
