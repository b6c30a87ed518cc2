//! Who sees a Service, and which namespaces the mesh looks at (C-1).

use std::net::SocketAddr;

use weft_netns_tests::{eventually, value_eventually, yaml};

use crate::site::{Answer, FAMILIES, SUBSETS, Site, WEB};

/// Rewrites the Service `reviews` with another `exportTo`.
fn export(site: &Site, to: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: reviews, namespace: shop, annotations: \
         {{networking.istio.io/exportTo: {to:?}}}}}\nspec:\n  clusterIP: 10.200.1.3\n  clusterIPs: [10.200.1.3, \
         'fd00:200::1:3']\n  ipFamilyPolicy: PreferDualStack\n  selector: {{app: reviews}}\n  ports:\n  - {{name: \
         http-web, port: {WEB}, targetPort: {WEB}, protocol: TCP}}\n"
    );
    site.mesh.write("service-shop-reviews.yaml", &text);
}

/// A request to the pod of v1 that names the Service: who sees the Service has its rule, which is v3.
fn by_endpoint(site: &Site, client: &str, path: &str) -> Vec<Answer> {
    let ask = |family: weft_netns_tests::Family| {
        let endpoint = SocketAddr::new(family.ip(site.mesh.pod("reviews-v1")), WEB).to_string();
        let args = ["http", &endpoint, "--host", "reviews.shop:9080", "--path", path, "--count", "4"];
        Answer(site.mesh.lab().pod(client).unwrap().peer(&args).unwrap())
    };
    FAMILIES.map(ask).into()
}

fn all_of(answers: &[Answer], version: &str) -> bool {
    answers.iter().all(|answer| answer.of_version(version) == 4)
}

#[test]
fn a_service_that_is_not_exported_is_a_strangers_until_it_is() {
    let Some(site) = Site::with_clients(&[("away", "stranger"), ("apart", "third")]) else { return };
    site.mesh.write("subsets.yaml", SUBSETS);
    site.routes("reviews", "[{route: [{destination: {host: reviews, subset: v3}}]}]");
    for client in ["shop/client", "away/stranger", "apart/third"] {
        eventually("everybody sees it", || all_of(&by_endpoint(&site, client, "/everybody"), "v3"));
    }
    let address = site.address(FAMILIES[0], "reviews", WEB);
    let load = ["http", &address, "--host", "reviews", "--until-eof", "--concurrency", "2"];
    let mut load = site.mesh.pod("other").spawn(&load).unwrap();
    for round in 0..2 {
        export(&site, ".");
        let path = format!("/nobody-{round}");
        eventually("nobody else sees it", || all_of(&by_endpoint(&site, "away/stranger", &path), "v1"));
        let line = site.mesh.log_line("a", "a line about the stranger", |line| {
            line["path"] == path && line["upstream_cluster"] == "PassthroughCluster"
        });
        assert_eq!(
            (&line["route_name"], &line["source_pod"]),
            (&"allow_any".into(), &"away/stranger".into())
        );
        assert!(all_of(&by_endpoint(&site, "apart/third", &path), "v1"));
        assert!(all_of(&by_endpoint(&site, "shop/client", &path), "v3"), "its own namespace sees it");

        export(&site, ".,away");
        eventually("it is exported", || all_of(&by_endpoint(&site, "away/stranger", "/one"), "v3"));
        let vip = ["http", &address, "--host", "reviews.shop", "--count", "4"];
        assert_eq!(
            Answer(site.mesh.lab().pod("away/stranger").unwrap().peer(&vip).unwrap()).of_version("v3"),
            4
        );
        assert!(all_of(&by_endpoint(&site, "apart/third", "/one"), "v1"), "to one namespace only");
    }
    load.close_stdin();
    let report = value_eventually("the load has ended", || {
        serde_json::from_str::<serde_json::Value>(load.stdout().lines().last()?).ok()
    });
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    assert_eq!(report["versions"]["v3"], report["requests"], "its own namespace notices nothing: {report}");
}

/// Has the mesh look at all namespaces but these.
fn leave_out(site: &Site, namespaces: &str) {
    let selector = format!(
        "    discoverySelectors:\n    - matchExpressions:\n      - {{key: kubernetes.io/metadata.name, operator: NotIn, \
         values: [{namespaces}]}}\n"
    );
    site.mesh.write("mesh.yaml", &(yaml::LOG_EVERYTHING.to_owned() + &selector));
}

#[test]
fn a_namespace_that_the_mesh_does_not_look_at_is_outside_of_it() {
    let Some(site) = Site::with_clients(&[("away", "stranger")]) else { return };
    site.mesh.write("subsets.yaml", SUBSETS);
    site.routes("reviews", "[{route: [{destination: {host: reviews, subset: v3}}]}]");
    let of = |client: &str, version: &str| all_of(&by_endpoint(&site, client, "/"), version);
    eventually("both have the rule", || of("away/stranger", "v3") && of("shop/client", "v3"));

    let problems = || site.mesh.status("a")["config"]["problems"].as_u64();
    assert_eq!(problems(), Some(0));

    leave_out(&site, "away");
    site.mesh.wait_state("a", "away/stranger", "excluded");
    assert_eq!(problems(), Some(2), "its label and its pod are named");
    eventually("no rule is its", || of("away/stranger", "v1"));
    assert!(of("shop/client", "v3"), "the others notice nothing");

    leave_out(&site, "shop");
    site.mesh.wait_state("a", "away/stranger", "enrolled");
    site.mesh.wait_state("a", "shop/client", "excluded");
    eventually("the rules of others are not its either", || of("away/stranger", "v1"));
    site.mesh.log_line("a", "to the mesh it is a stranger's address", |line| {
        line["source_pod"] == "away/stranger" && line["upstream_cluster"] == "PassthroughCluster"
    });

    site.mesh.write("mesh.yaml", yaml::LOG_EVERYTHING);
    site.mesh.wait_enrolled("a", &["client", "reviews-v1"]);
    eventually("all is as before", || of("away/stranger", "v3") && of("shop/client", "v3"));
}
