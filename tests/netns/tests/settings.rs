//! Kernel settings that pods and nodes come with, and which must make no difference.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use weft_lab::{Pod, output, within};
use weft_netns_tests::puppet::{Puppet, Role};
use weft_netns_tests::{Family, Mesh, Path};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");
/// Pods that are reached directly, through the node's proxy, and by HBONE.
const PATHS: [(&str, Path); 3] = [("near", Path::Direct), ("seven", Path::Proxied), ("far", Path::Proxied)];
/// Enough for many segments of any size.
const BYTES: u64 = 300_000;

fn set(pod: &Pod, key: &str, value: &str) {
    let write = || Ok(std::fs::write(format!("/proc/sys/net/ipv4/{key}"), value)?);
    within(pod.netns(), write).unwrap();
}

/// Bytes there and back on every path and in every family, also from a client outside the mesh; who the client is
/// stays visible.
fn everything_works(mesh: &Mesh, client: &mut Puppet, outside: &mut Puppet, what: &str) {
    for family in Family::ALL {
        for (pod, path) in PATHS {
            let how = family.connect(mesh.target(family, pod));
            let connection = mesh.connect_by(client, &how, path);
            assert_eq!(client.exchange(connection, BYTES), Ok(BYTES), "{what}: {pod} {family:?}");
            client.close(connection);
            let connection = mesh.connect_by(outside, &how, Path::Proxied);
            assert_eq!(
                outside.exchange(connection, BYTES),
                Ok(BYTES),
                "{what}: {pod} {family:?} from outside"
            );
            outside.close(connection);
        }
    }
}

#[test]
fn reverse_path_filters_and_syn_cookies_make_no_difference() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let _servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet)).into();
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    let pods = ["client", "near", "seven", "far"].map(|pod| mesh.pod(pod));
    for (filter, cookies) in [("0", "1"), ("1", "2"), ("2", "2")] {
        for pod in pods {
            for interface in ["all", "eth0", "lo"] {
                set(pod, &format!("conf/{interface}/rp_filter"), filter);
            }
            set(pod, "tcp_syncookies", cookies);
        }
        let what = format!("rp_filter={filter} tcp_syncookies={cookies}");
        everything_works(&mesh, &mut client, &mut outside, &what);
    }
}

#[test]
fn a_small_mtu_makes_no_difference() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let _servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet)).into();
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    for (at, pods) in [&["far"][..], &["client", "near", "seven"]].into_iter().enumerate() {
        for pod in pods {
            let netns = format!("--net={}", mesh.pod(pod).netns().display());
            output("nsenter", &[&netns, "--", "ip", "link", "set", "dev", "eth0", "mtu", "1280"]).unwrap();
        }
        everything_works(&mesh, &mut client, &mut outside, &format!("MTU 1280, step {at}"));
    }
}
