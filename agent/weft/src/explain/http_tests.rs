//! Requests, with every part of the answer that rules about them fill in.

use super::*;
use crate::config;

const MESH: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: a, serviceAccountName: client}
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
metadata: {name: reviews-v1, namespace: shop, labels: {app: reviews, version: v1}}
spec: {nodeName: a, serviceAccountName: reviews}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v2, namespace: shop, labels: {app: reviews, version: v2}}
spec: {nodeName: b, serviceAccountName: reviews}
status: {podIPs: [{ip: 10.0.1.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  clusterIP: 10.96.0.2
  clusterIPs: [10.96.0.2]
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: 8080}, {name: grpc, port: 9090}, {name: tcp, port: 9100}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], selector: {app: nobody}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: reviews.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - name: v2
    labels: {version: v2}
    trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: user}}}
";

const CANARY: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - name: jason
    match: [{headers: {end-user: {exact: jason}}}, {uri: {prefix: /beta/}}]
    route: [{destination: {host: reviews, subset: v2}}]
    rewrite: {uri: /}
  - name: old
    match: [{uri: {exact: /old}, method: {exact: GET}}]
    redirect: {uri: /new, authority: new.example.com}
  - name: away
    match: [{uri: {prefix: /away}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - name: broken
    match: [{uri: {prefix: /broken}}]
    route: [{destination: {host: reviews, subset: v1}}]
    fault: {delay: {fixedDelay: 7s, percentage: {value: 100}}, abort: {httpStatus: 503, percentage: {value: 100}}}
  - name: half
    match: [{uri: {prefix: /half}}]
    route: [{destination: {host: reviews, subset: v1}}]
    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 50}}}
  - name: teapot
    match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - name: split
    match: [{uri: {prefix: /split}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 80, headers: {request: {set: {x-version: one}}}}
    - {destination: {host: reviews, subset: v2}, weight: 20}
    headers: {request: {add: {x-by: mesh}}, response: {remove: [server], set: {x-canary: 'yes'}}}
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 500ms, retryOn: 5xx}
    mirror: {host: reviews, subset: v2}
    mirrorPercentage: {value: 25}
    corsPolicy: {allowOrigins: [{exact: https://shop.example.com}], allowMethods: [GET]}
";

fn load(files: &[&str]) -> std::sync::Arc<Snapshot> {
    let dir = tempfile::tempdir().unwrap();
    for (at, text) in files.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{at}.yaml")), text).unwrap();
    }
    config::load(&[dir.path().to_owned()]).unwrap().snapshot
}

fn question(to: &str, headers: &[&str]) -> Question {
    let headers = headers.iter().map(|header| (*header).into()).collect();
    Question { from: "shop/client".into(), to: to.into(), headers, ..Question::default() }
}

fn ask(question: &Question) -> Explanation {
    explain(&load(&[MESH, CANARY]), &LearnedPorts::default(), question).unwrap()
}

fn get(to: &str, headers: &[&str]) -> Explanation {
    ask(&question(to, headers))
}

fn json(answer: &Explanation) -> String {
    serde_json::to_string_pretty(answer).unwrap()
}

#[test]
fn two_destinations_with_everything_that_a_rule_can_say() {
    insta::assert_snapshot!(json(&get(
        "http://reviews:9080/split/a/../b?x=1",
        &["x-own: 1", "origin: https://shop.example.com"]
    )));
}

#[test]
fn a_rule_after_others_that_do_not_match() {
    insta::assert_snapshot!(get("http://reviews:9080/teapot", &["end-user: jack"]).steps.join("\n"));
}

#[test]
fn no_rule_matches() {
    let answer = get("http://reviews:9080/", &[]);
    assert_eq!(answer.verdict, "respond");
    let response = answer.response.clone().unwrap();
    assert_eq!((response.status, response.by.as_str(), response.body.as_str()), (404, "no_route", ""));
    insta::assert_snapshot!(answer.steps.join("\n"));
}

#[test]
fn the_request_as_it_leaves() {
    let answer = get("http://reviews:9080/beta//x?y", &["Host: reviews.shop:9080", "User: 7"]);
    let request = answer.request.clone().unwrap();
    assert_eq!(request.path.as_deref(), Some("//x?y"));
    assert_eq!(request.authority.as_deref(), Some("reviews.shop:9080"));
    assert!(request.headers.contains(&("user".into(), "7".into())));
    assert_eq!(answer.hash.as_ref().map(|hash| hash.source.as_str()), Some("header:user"));
    let route = answer.route.unwrap();
    assert_eq!((route.rule, route.matched, route.name.as_deref()), (0, Some(1), Some("jason")));
}

#[test]
fn what_the_mesh_answers_itself() {
    for (path, headers, status, by) in [
        ("/old", &[][..], 301, "redirect"),
        ("/teapot", &[], 418, "direct_response"),
        ("/broken", &[], 503, "fault"),
        ("/away", &[], 503, "no_cluster"),
        ("/nowhere", &[], 404, "no_route"),
        ("/a#b", &[][..], 400, "bad_request"),
        ("/teapot", &["content-type: application/grpc"], 200, "direct_response"),
    ] {
        let answer = get(&format!("http://reviews:9080{path}"), headers);
        assert_eq!(answer.verdict, "respond", "{path}: {:?}", answer.steps);
        let response = answer.response.unwrap();
        assert_eq!((response.status, response.by.as_str()), (status, by), "{path}");
    }
    let answer = get("http://empty/", &[]);
    assert_eq!(answer.response.unwrap().by, "no_endpoints");
}

#[test]
fn grpc_callers_are_answered_in_their_way() {
    let answer = get("http://empty/", &["content-type: application/grpc"]);
    assert_eq!(answer.protocol, "grpc");
    let response = answer.response.unwrap();
    assert_eq!((response.status, response.body.as_str()), (200, ""));
    assert!(response.headers.contains(&("grpc-status".into(), "14".into())));
    assert!(response.headers.contains(&("grpc-message".into(), "no healthy upstream".into())));
}

#[test]
fn a_preflight_is_answered() {
    let mut question = question(
        "http://reviews:9080/split",
        &["origin: https://shop.example.com", "access-control-request-method: GET"],
    );
    question.method = Some("OPTIONS".into());
    let response = ask(&question).response.unwrap();
    assert_eq!((response.status, response.by.as_str()), (200, "cors"));
    let origin = ("access-control-allow-origin".to_owned(), "https://shop.example.com".to_owned());
    assert!(response.headers.contains(&origin));
}

#[test]
fn a_seed_picks_destination_and_fault() {
    let seeded = |to: &str, seed| {
        let mut question = question(to, &[]);
        question.seed = Some(seed);
        ask(&question)
    };
    let subsets: Vec<_> = (0..40)
        .map(|seed| {
            let answer = seeded("http://reviews:9080/split", seed);
            assert_eq!(answer.destinations.len(), 1);
            answer.destinations[0].subset.clone().unwrap()
        })
        .collect();
    assert!(subsets.iter().any(|subset| subset == "v1") && subsets.iter().any(|subset| subset == "v2"));
    let verdicts: Vec<_> = (0..40).map(|seed| seeded("http://reviews:9080/half", seed).verdict).collect();
    assert!(
        verdicts.iter().any(|verdict| verdict == "allow")
            && verdicts.iter().any(|verdict| verdict == "respond")
    );
    // Without one, what is not certain does not happen.
    assert_eq!(get("http://reviews:9080/half", &[]).verdict, "allow");
}

#[test]
fn the_port_decides_what_is_spoken() {
    for (to, headers, protocol) in [
        ("reviews:9080", &[][..], "http"),
        ("http://reviews:9090/x", &[], "grpc"),
        ("http://reviews:9100/", &[], "tcp"),
        ("10.0.0.2:8080", &[], "http"),
        ("10.0.0.2:1234", &[], "tcp"),
        ("10.0.0.2:1234", &["x: y"], "http"),
        ("https://10.0.0.2:8443", &[], "tls"),
        ("tcp://reviews:9080", &[], "tcp"),
        ("http://reviews:1/", &[], "tcp"),
        ("http://198.51.100.1:3306/", &[], "tcp"),
        ("https://198.51.100.1/", &[], "tls"),
    ] {
        assert_eq!(get(to, headers).protocol, protocol, "{to}");
    }
}

#[test]
fn an_alias_is_the_service_that_it_names() {
    let answer = get("http://alias:9080/teapot", &[]);
    assert_eq!(answer.service.unwrap().host, "reviews.shop.svc.cluster.local");
    assert_eq!(answer.response.unwrap().status, 418);
    assert_eq!(get("http://elsewhere/", &[]).verdict, "passthrough");
}

#[test]
fn clients_outside_the_mesh_are_not_routed() {
    let mut question = question("http://reviews.shop:9080/old", &[]);
    question.from = "old/legacy".into();
    let answer = ask(&question);
    assert_eq!((answer.verdict.as_str(), answer.path.as_deref()), ("allow", Some("plaintext")));
    assert!(answer.route.is_none() && answer.retry.is_none());
    assert_eq!(answer.destinations[0].endpoints.len(), 2);
}

#[test]
fn tls_on_a_port_of_http_is_no_request() {
    let answer = get("https://reviews:9080/", &[]);
    assert_eq!((answer.verdict.as_str(), answer.response.unwrap().status), ("respond", 400));
}

#[test]
fn a_large_body_is_not_repeated() {
    let mut question = question("http://reviews:9080/split", &[]);
    question.body_size = Some(2 << 20);
    let steps = ask(&question).steps;
    assert!(steps.iter().any(|step| step.contains("larger than 1 MiB")), "{steps:?}");
}

#[test]
fn what_cannot_be_asked() {
    let refused = |change: fn(&mut Question)| {
        let mut question = question("http://reviews:9080/", &[]);
        change(&mut question);
        explain(&load(&[MESH]), &LearnedPorts::default(), &question).unwrap_err().to_string()
    };
    assert!(refused(|question| question.at = Some("shop/gw".into())).contains("--at"));
    assert!(refused(|question| question.method = Some("a b".into())).contains("-X"));
    assert!(refused(|question| question.headers = vec!["nonsense".into()]).contains("-H"));
    assert!(refused(|question| question.token = Some("a\nb".into())).contains("--jwt"));
}
