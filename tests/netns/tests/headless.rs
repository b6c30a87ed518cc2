//! Connections to endpoints of headless Services, which clients choose themselves.
#![allow(clippy::indexing_slicing, reason = "a key that lacks is null, and the comparison fails")]

use std::net::SocketAddr;

use weft_netns_tests::puppet::{Connect, Role};
use weft_netns_tests::{Family, Mesh, Path, eventually, yaml};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");

/// One connection at a time.
const ONE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: near, namespace: shop}\nspec: {host: \
    near, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}\n";

#[test]
fn they_are_counted_for_their_service_and_follow_its_rules() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let _servers = ["near", "far"].map(|pod| mesh.serve(pod, Role::Greet));
    let mut client = mesh.puppet("client");
    for name in ["near", "far"] {
        let port = mesh.target(Family::V4, name).port();
        mesh.lab().config().service(&format!("shop/{name}"), &[], name, &[("tcp-echo", 70, port)]).unwrap();
    }
    let opened = |name: &str, reporter: &str| {
        let service = format!("{name}.shop.svc.cluster.local");
        let labels = [("destination_service", &*service), ("reporter", reporter)];
        mesh.metric("a", "istio_tcp_connections_opened_total", &labels)
    };
    for family in [Family::V4, Family::V6] {
        let far = Connect::to(mesh.target(family, "far"));
        eventually("the connection to another node is the Service's", || {
            let connection = mesh.connect_by(&mut client, &far, Path::Proxied);
            client.close(connection);
            let line = mesh.log_of("a", "outbound", connection.local);
            line["upstream_cluster"] == "outbound|70||far.shop.svc.cluster.local"
                && line["mesh_path"] == "hbone"
        });
    }
    assert!(opened("far", "source") >= 2.0);
    let near = Connect::to(mesh.target(Family::V4, "near"));
    let direct = mesh.connect_by(&mut client, &near, Path::Direct);
    eventually("the direct one is as well, for both sides", || {
        ["source", "destination"].iter().all(|reporter| opened("near", reporter) >= 1.0)
    });
    client.close(direct);

    mesh.write("near.yaml", ONE);
    let first = mesh.connect_by(&mut client, &near, Path::Proxied);
    let second = client.try_connect(near.clone()).unwrap();
    assert!(!client.echoes(second), "one at a time");
    let line = mesh.log_of("a", "outbound", second.local);
    assert_eq!(
        (&line["response_flags"], &line["upstream_cluster"]),
        (&"UO".into(), &"outbound|70||near.shop.svc.cluster.local".into())
    );
    client.close(first);
}

#[test]
fn endpoints_that_are_no_pods_are_in_the_registry() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut outside = mesh.outside();
    let port = outside.serve(SocketAddr::new(Family::V6.any(), 0), Role::Silent).address.port();
    let mut client = mesh.puppet("client");
    mesh.write(
        "mesh.yaml",
        &(yaml::LOG_EVERYTHING.to_owned() + "    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"),
    );
    let mut db = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\nspec: {{clusterIP: None, ports: \
         [{{name: tcp-db, port: {port}}}]}}\n"
    );
    for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        db += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-{}, namespace: shop, labels: \
             {{kubernetes.io/service-name: db}}}}\naddressType: {kind}\nports: [{{name: tcp-db, port: {port}}}]\n\
             endpoints: [{{addresses: ['{}']}}]\n",
            kind.to_lowercase(),
            family.ip(mesh.lab().outside()),
        );
    }
    for family in [Family::V4, Family::V6] {
        let how = Connect::to(SocketAddr::new(family.ip(mesh.lab().outside()), port));
        mesh.write("db.yaml", "");
        eventually("what the registry lacks is refused", || {
            client.try_connect(how.clone()).is_ok_and(|connection| !client.echoes(connection))
        });
        mesh.write("db.yaml", &db);
        eventually("what it has is reached", || {
            let Ok(connection) = client.try_connect(how.clone()) else { return false };
            let reached = client.echoes(connection);
            client.close(connection);
            let line = mesh.log_of("a", "outbound", connection.local);
            reached && line["upstream_cluster"] == format!("outbound|{port}||db.shop.svc.cluster.local")
        });
    }
}
