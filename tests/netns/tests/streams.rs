//! What happens to the bytes of a connection, on every path.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use weft_ebpf_common::{ABI_MAJOR, Tuple};
use weft_lab::anonymous_bytes;
use weft_netns_tests::puppet::{Connect, Connection, End, Puppet, Role};
use weft_netns_tests::{Family, Mesh, Path, descriptors, eventually};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");
/// Pods that are reached directly, through the node's proxy, and by HBONE.
const PATHS: [(&str, Path); 3] = [("near", Path::Direct), ("seven", Path::Proxied), ("far", Path::Proxied)];
const MIB: u64 = 1 << 20;
/// By how much an agent's memory may grow for readers that do not read.
const GROWTH: u64 = 64 * MIB;

/// A connection that travels as the pod's connections should; the greeting has been read.
fn open(mesh: &Mesh, client: &mut Puppet, family: Family, (pod, path): (&str, Path)) -> Connection {
    mesh.connect_by(client, &family.connect(mesh.target(family, pod)), path)
}

#[test]
fn a_client_that_has_finished_still_gets_its_answer() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Count)).into();
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        for path in PATHS {
            let connection = open(&mesh, &mut client, family, path);
            client.send(connection, &[7; 100_000]).unwrap();
            client.shutdown(connection);
            let (bytes, end) = client.receive(connection, usize::MAX);
            assert_eq!((String::from_utf8(bytes).unwrap().as_str(), end), ("100000\n", End::Eof), "{path:?}");
        }
    }
    drop(servers);
}

#[test]
fn a_server_that_has_finished_still_gets_bytes() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for path in PATHS {
        let (mut server, talker) = mesh.serve(path.0, Role::Talk(100_000));
        for family in Family::ALL {
            let connection = open(&mesh, &mut client, family, path);
            let (bytes, end) = client.receive(connection, usize::MAX);
            assert_eq!((bytes.len(), end), (100_000, End::Eof), "{path:?}");
            let before = server.tally(talker).1;
            client.send(connection, &[7; 50_000]).unwrap();
            client.close(connection);
            eventually("the server got what came after its own end", || {
                server.tally(talker).1 == before + 50_000
            });
        }
    }
}

#[test]
fn resets_reach_the_other_end() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for path in PATHS {
        let (mut server, greeter) = mesh.serve(path.0, Role::Greet);
        for family in Family::ALL {
            let connection = open(&mesh, &mut client, family, path);
            assert!(client.echoes(connection));
            let before = server.resets(greeter);
            client.abort(connection);
            eventually(&format!("the server saw the client's reset, {path:?} {family:?}"), || {
                server.resets(greeter) == before + 1
            });
        }
        server.stop(greeter);
        drop(server);
        let (_server, _) = mesh.serve(path.0, Role::Abort);
        for family in Family::ALL {
            let connection = open(&mesh, &mut client, family, path);
            client.send(connection, b"!").unwrap();
            assert_eq!(client.receive(connection, 1).1, End::Reset, "{path:?} {family:?}");
        }
    }
}

#[test]
fn urgent_data_breaks_nothing() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    for path in PATHS {
        let connection = open(&mesh, &mut client, Family::V4, path);
        client.send(connection, b"before ").unwrap();
        client.send_urgent(connection, b'!');
        client.send(connection, b"after").unwrap();
        client.shutdown(connection);
        let (bytes, end) = client.receive(connection, usize::MAX);
        // Urgent bytes are not part of the stream for a reader that does not ask for them.
        assert_eq!((String::from_utf8(bytes).unwrap().as_str(), end), ("before after", End::Eof), "{path:?}");
    }
    drop(servers);
}

#[test]
fn echoes_of_every_size_come_back_whole() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    for path in PATHS {
        for (family, length) in [
            (Family::V4, 64 << 10),
            (Family::V6, 64 << 10),
            (Family::Mapped, 64 << 10),
            (Family::V4, MIB + 1),
            (Family::V6, 16 * MIB + 1),
            (Family::V4, 256 * MIB),
        ] {
            let connection = open(&mesh, &mut client, family, path);
            assert_eq!(client.exchange(connection, length), Ok(length), "{path:?} {family:?}");
            client.close(connection);
        }
    }
    drop(servers);
}

/// Sends until nothing moves any more, and gives the number of bytes under way.
fn stuff_to_the_brim(client: &mut Puppet, connections: &[Connection]) -> u64 {
    let mut total = 0;
    let mut quiet = 0;
    while quiet < 20 {
        let more: u64 = connections.iter().map(|connection| client.stuff(*connection)).sum();
        total += more;
        quiet = if more == 0 { quiet + 1 } else { 0 };
        // Nothing comes on this connection: the wait gives the bytes time to move on.
        client.receive_for(connections[0], 1, Duration::from_millis(20));
    }
    total
}

#[test]
fn readers_that_do_not_read_bind_little_memory_and_block_nobody() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for path in [PATHS[1], PATHS[2]] {
        let (mut server, holder) = mesh.serve(path.0, Role::Hold);
        let echo = server.serve(SocketAddr::new(Family::V6.any(), 0), Role::Greet);
        let agents = [mesh.agent("a").pid(), mesh.agent("b").pid()];
        let warm = open(&mesh, &mut client, Family::V4, path);
        let before = agents.map(|pid| anonymous_bytes(pid).unwrap());
        let stalled: Vec<_> = (0..32).map(|_| open(&mesh, &mut client, Family::V4, path)).collect();
        let under_way = stuff_to_the_brim(&mut client, &stalled);
        assert!(under_way > MIB, "the sockets took something: {under_way}");
        let after = agents.map(|pid| anonymous_bytes(pid).unwrap());
        for (before, after) in before.into_iter().zip(after) {
            assert!(after < before + GROWTH, "an agent grew from {before} to {after} bytes, {path:?}");
        }
        let to = SocketAddr::new(Family::V4.ip(mesh.pod(path.0)), echo.address.port());
        let lively = mesh.connect_by(&mut client, &Connect::to(to), path.1);
        assert_eq!(client.exchange(lively, 16 * MIB), Ok(16 * MIB), "beside 32 stalled readers, {path:?}");
        for connection in stalled.into_iter().chain([warm, lively]) {
            client.abort(connection);
        }
        server.stop(holder);
        drop(server);
    }
}

#[test]
fn four_thousand_connections_are_held() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (mut server, holder) = mesh.serve("far", Role::Hold);
    let mut client = mesh.puppet("client");
    let to = mesh.target(Family::V4, "far");
    let held = client.hold(to, 4_000);
    let failures = || ["a", "b"].map(|node| mesh.failures(node));
    assert_eq!((held.good, held.failed, held.mistaken), (4_000, 0, 0), "{held:?} {:#?}", failures());
    let more = client.hold(to, 500);
    assert_eq!((more.good, more.failed, more.mistaken), (500, 0, 0), "{more:?} {:#?}", failures());
    assert_eq!(server.broadcast(holder), 4_500);
    let alive = client.held_alive();
    assert_eq!((alive.good, alive.failed), (4_500, 0), "{alive:?}");
}

/// Descriptors of an agent, entries of the maps that it lists, and announced onward connections.
type Seen = (usize, [u64; 3], usize);

/// Onward connections that an agent announced and has not taken back.
fn onward_entries(mesh: &Mesh, node: &str) -> usize {
    let pin = mesh.lab().node(node).unwrap().dir().join(format!("bpf/v{ABI_MAJOR}/maps/ONWARD"));
    let map: HashMap<_, Tuple, u64> = Map::HashMap(MapData::from_pin(pin).unwrap()).try_into().unwrap();
    map.keys().count()
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    const MAPS: [&str; 3] = ["FLOWS", "PODS", "LOCAL"];
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    let servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Silent)).into();
    let nodes = ["a", "b"];
    let observe = || {
        nodes.map(|node| {
            let entries = MAPS.map(|map| mesh.map_entries(node, map));
            (descriptors(mesh.agent(node).pid()), entries, onward_entries(&mesh, node))
        })
    };
    let churn = |client: &mut Puppet, count: usize| {
        for (pod, _) in PATHS {
            let to = mesh.target(Family::V4, pod);
            let churned = client.churn(to, count, 8);
            assert_eq!((churned.good, churned.failed), (count, 0), "{pod}: {churned:?}");
        }
    };
    // Tunnels, buffers and metric series of the paths exist from here on.
    churn(&mut client, 100);
    let before = observe();
    let memory = nodes.map(|node| anonymous_bytes(mesh.agent(node).pid()).unwrap());
    churn(&mut client, 3_400);
    eventually("descriptors and map entries are as before", || {
        let now = observe();
        // Tunnels may be a few more or fewer; connections would be thousands.
        let same =
            |(now, before): (&Seen, &Seen)| now.0 <= before.0 + 32 && now.1 == before.1 && now.2 == before.2;
        now.iter().zip(&before).all(same)
    });
    for (node, before) in nodes.into_iter().zip(memory) {
        let after = anonymous_bytes(mesh.agent(node).pid()).unwrap();
        assert!(after < before + GROWTH, "agent {node} grew from {before} to {after} bytes");
    }
    drop(servers);
}
