use super::*;
use crate::config;

const MESH: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop}
spec: {nodeName: a, serviceAccountName: cart}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: legacy, namespace: old}
spec: {nodeName: a, serviceAccountName: default}
status: {podIPs: [{ip: 10.0.0.9}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ledger-0, namespace: bank, labels: {app: ledger}}
spec: {nodeName: a, serviceAccountName: ledger}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ledger-1, namespace: bank, labels: {app: ledger}}
spec: {nodeName: b, serviceAccountName: ledger}
status: {podIPs: [{ip: 10.0.1.2}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ledger-2, namespace: bank, labels: {app: ledger}}
spec: {nodeName: b, serviceAccountName: ledger}
status: {podIPs: [{ip: 10.0.1.3}], conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: bank}
spec:
  clusterIP: 10.96.0.2
  clusterIPs: [10.96.0.2]
  selector: {app: ledger}
  ports: [{name: tcp-pg, port: 5432, targetPort: 5433}]
---
apiVersion: v1
kind: Service
metadata: {name: ledger-each, namespace: bank}
spec: {clusterIP: None, clusterIPs: [None], selector: {app: ledger}, ports: [{name: tcp-pg, port: 5433}]}
";

const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: bank}
spec: {mtls: {mode: STRICT}}
";

const ONLY_CART: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-cart, namespace: bank}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]
    to: [{operation: {ports: ['5433']}}]
";

fn ask(files: &[&str], from: &str, to: &str) -> Result<Explanation, Unanswerable> {
    let dir = tempfile::tempdir().unwrap();
    for (at, text) in files.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{at}.yaml")), text).unwrap();
    }
    let snapshot = config::load(&[dir.path().to_owned()]).unwrap().snapshot;
    let question = Question { from: from.into(), to: to.into(), ..Question::default() };
    explain(&snapshot, &LearnedPorts::default(), &question)
}

fn json(files: &[&str], from: &str, to: &str) -> String {
    serde_json::to_string_pretty(&ask(files, from, to).unwrap()).unwrap()
}

#[test]
fn a_service_with_endpoints_on_two_nodes() {
    insta::assert_snapshot!(json(&[MESH, STRICT, ONLY_CART], "shop/cart", "ledger.bank:5432"));
}

#[test]
fn plaintext_meets_strict() {
    insta::assert_snapshot!(json(&[MESH, STRICT], "old/legacy", "ledger.bank:5432"));
}

#[test]
fn no_rule_matches() {
    insta::assert_snapshot!(json(
        &[MESH, ONLY_CART],
        "spiffe://cluster.local/ns/shop/sa/thief",
        "10.0.0.2:5433"
    ));
}

#[test]
fn verdicts() {
    for (files, from, to, verdict, path) in [
        (&[MESH][..], "shop/cart", "10.0.0.2:5433", "allow", Some("direct")),
        (&[MESH][..], "shop/cart", "10.0.1.2:5433", "allow", Some("hbone")),
        (&[MESH][..], "shop/cart", "10.0.0.9:80", "allow", Some("plaintext")),
        (&[MESH][..], "shop/cart", "198.51.100.1:443", "passthrough", Some("passthrough")),
        (&[MESH][..], "shop/cart", "https://api.example.com/", "passthrough", Some("passthrough")),
        (&[MESH][..], "shop/cart", "ledger.bank:1", "unreachable", None),
        (&[MESH][..], "shop/cart", "ledger-each.bank:5433", "allow", Some("direct")),
        (&[MESH][..], "outside", "10.0.0.2:5433", "allow", Some("plaintext")),
        (&[MESH][..], "10.0.0.1", "10.0.0.2:5433", "allow", Some("direct")),
        (&[MESH, STRICT][..], "203.0.113.4", "10.0.0.2:5433", "deny", Some("plaintext")),
        (&[MESH, ONLY_CART][..], "shop/cart", "10.0.0.2:5434", "deny", Some("node")),
        (&[MESH, ONLY_CART][..], "shop/cart", "10.0.0.2:5433", "allow", Some("direct")),
    ] {
        let answer = ask(files, from, to).unwrap();
        assert_eq!(
            (answer.verdict.as_str(), answer.path.as_deref()),
            (verdict, path),
            "{from} to {to}: {:?}",
            answer.steps
        );
    }
}

/// As `out` and `steer` do it (C-2, C-3).
#[test]
fn what_is_not_captured_is_not_explained_by_rules() {
    let deny_all = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shop}\nspec: {}\n";
    let outbound: &str = &MESH.replace(
        "metadata: {name: cart, namespace: shop}",
        "metadata: {name: cart, namespace: shop, annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: '5432', traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.1.0/24}}",
    );
    let inbound: &str = &MESH.replace(
        "metadata: {name: ledger-0, namespace: bank,",
        "metadata: {name: ledger-0, namespace: bank, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '5433'},",
    );
    for (files, from, to, verdict, path) in [
        (&[MESH, deny_all][..], "shop/cart", "10.0.0.1:80", "passthrough", Some("passthrough")),
        (&[MESH, deny_all][..], "shop/cart", "http://10.0.0.1:80/", "passthrough", Some("passthrough")),
        (&[outbound, STRICT][..], "shop/cart", "ledger.bank:5432", "deny", Some("plaintext")),
        (&[outbound][..], "shop/cart", "10.0.1.2:5433", "allow", Some("plaintext")),
        (&[outbound, STRICT][..], "shop/cart", "10.0.0.2:5433", "allow", Some("direct")),
        (&[inbound, STRICT][..], "old/legacy", "10.0.0.2:5433", "allow", Some("plaintext")),
        (&[inbound, STRICT][..], "old/legacy", "10.0.0.2:5434", "deny", Some("plaintext")),
    ] {
        let answer = ask(files, from, to).unwrap();
        assert_eq!(
            (answer.verdict.as_str(), answer.path.as_deref()),
            (verdict, path),
            "{from} to {to}: {:?}",
            answer.steps
        );
    }
}

#[test]
fn questions_without_an_answer_say_why() {
    for (from, to, words) in [
        ("shop/nobody", "ledger.bank:5432", "no such Pod"),
        ("cart", "ledger.bank:5432", "NAMESPACE/POD"),
        ("spiffe://x", "ledger.bank:5432", "spiffe://"),
        ("shop/cart", "ledger.bank", "HOST:PORT"),
        ("shop/cart", "ftp://ledger.bank", "scheme"),
        ("outside", "ledger:5432", "short name"),
    ] {
        let error = ask(&[MESH], from, to).unwrap_err().to_string();
        assert!(error.contains(words), "{from} to {to}: {error}");
    }
}

const ROUTED: &str = r"
apiVersion: v1
kind: Service
metadata: {name: other, namespace: bank}
spec: {clusterIP: 10.96.0.4, clusterIPs: [10.96.0.4], selector: {app: nobody}, ports: [{name: tcp-pg, port: 5432}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ledger, namespace: bank}
spec:
  hosts: [ledger]
  tcp:
  - match: [{port: 1}]
    route: [{destination: {host: other}}]
  - route:
    - {destination: {host: ledger}, weight: 75}
    - {destination: {host: other}, weight: 25}
";

#[test]
fn rules_about_connections() {
    let answer = ask(&[MESH, ROUTED], "shop/cart", "ledger.bank:5432").unwrap();
    assert_eq!(answer.verdict, "allow");
    let route = answer.route.unwrap();
    assert_eq!((route.list.as_str(), route.rule, route.matched), ("tcp", 1, None));
    let shares: Vec<_> = answer.destinations.iter().map(|to| (to.weight, to.verdict.as_deref())).collect();
    assert_eq!(shares, [(75.0, None), (25.0, Some("unreachable"))]);
    let passed_over = "VirtualService bank/ledger: spec.tcp[0].match[0] does not match by `port`.";
    assert!(answer.steps.iter().any(|step| step == passed_over), "{:?}", answer.steps);
    let outside = ask(&[MESH, ROUTED], "outside", "ledger.bank:5432").unwrap();
    assert!(outside.route.is_none() && outside.destinations.len() == 1);
}

/// X-7: whoever does not see a Service reaches its address as that of a stranger, and is told so.
#[test]
fn a_service_that_is_not_exported_is_a_stranger() {
    let exported = |to: &str| {
        let annotated =
            format!("name: ledger, namespace: bank, annotations: {{networking.istio.io/exportTo: {to}}}}}");
        MESH.replace("name: ledger, namespace: bank}", &annotated)
    };
    let hidden = "keeps Service bank/ledger from namespace shop";
    let registry = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n    defaultServiceExportTo: [\".\"]\n";
    for (files, from, verdict, told) in [
        ([exported("'*, bank'"), String::new()], "shop/cart", "allow", false),
        ([exported("'shop,bank'"), String::new()], "shop/cart", "allow", false),
        ([exported("."), String::new()], "shop/cart", "passthrough", true),
        ([exported("."), String::new()], "bank/ledger-0", "allow", false),
        ([exported("'~'"), String::new()], "old/legacy", "allow", false),
        ([MESH.to_owned(), registry.to_owned()], "shop/cart", "unreachable", true),
    ] {
        for to in ["ledger.bank:5432", "10.96.0.2:5432", "http://ledger.bank:5432/"] {
            let answer = ask(&[&files[0], &files[1]], from, to).unwrap();
            // What is refused and turns out to be HTTP is answered.
            let refused = verdict == "unreachable" && to.starts_with("http");
            let verdict = if refused { "respond" } else { verdict };
            assert_eq!(answer.verdict, verdict, "{from} to {to}: {:?}", answer.steps);
            let steps = answer.steps.join(" ");
            assert_eq!((steps.contains(hidden), answer.service.is_none()), (told, told), "{steps}");
        }
    }
}

/// X-13: an endpoint that is no pod is dialled as it stands, and belongs to its Service all the same.
#[test]
fn endpoints_of_headless_services_need_not_be_pods() {
    let elsewhere = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: bank}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: tcp-pg, port: 5433}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: bank, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: tcp-pg, port: 5433}]
endpoints: [{addresses: [192.0.2.7], conditions: {ready: true}}]
";
    let answer = ask(&[MESH, elsewhere], "shop/cart", "db.bank:5433").unwrap();
    let [destination] = &answer.destinations[..] else { panic!("{:?}", answer.destinations) };
    assert_eq!((answer.verdict.as_str(), destination.port), ("allow", 5433));
    assert_eq!(destination.host, "db.bank.svc.cluster.local");
    assert_eq!((&*destination.load_balancer, &*destination.tls), ("PASSTHROUGH", "DISABLE"));
    let registry = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    let by_address = ask(&[MESH, elsewhere, registry], "shop/cart", "192.0.2.7:5433").unwrap();
    assert_eq!(by_address.verdict, "allow", "the registry has it");
    assert!(ask(&[MESH], "shop/cart", "192.0.2.7:5433").unwrap().destinations.is_empty());
}
