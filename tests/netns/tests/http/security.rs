//! Tokens, and authorization of requests.

use serde_json::Value;
use weft_lab::jwt;
use weft_netns_tests::yaml::policy;
use weft_netns_tests::{Family, eventually};

use crate::site::{FAMILIES, NEAR_AND_FAR, Site, WEB};

fn request_authentication(app: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: \
         shop}}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  jwtRules:\n  - issuer: {}\n    \
         forwardOriginalToken: true\n    jwks: '{}'\n",
        jwt::ISSUER,
        jwt::JWKS
    )
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

#[test]
fn tokens_are_checked_and_their_claims_decide() {
    let Some(site) = Site::new() else { return };
    for service in NEAR_AND_FAR {
        site.mesh.write("tokens.yaml", &request_authentication(service));
        let with = |token: &str, path: &str| site.ask(service, &["--header", &bearer(token), "--path", path]);
        eventually("tokens are checked", || with(jwt::FORGED, "/").status() == 401);
        assert_eq!(with(jwt::FORGED, "/").text(), "Jwt verification fails");
        assert_eq!(
            (with(jwt::EXPIRED, "/").status(), with(jwt::EXPIRED, "/").text()),
            (401, "Jwt is expired")
        );
        assert_eq!(with("nonsense", "/").status(), 401);
        assert!(with(jwt::FORGED, "/").header("www-authenticate").starts_with("Bearer"));
        assert!(with(jwt::ALICE, "/").all_good());
        assert!(
            site.ask(service, &[]).all_good(),
            "who brings no token is not refused by RequestAuthentication alone"
        );

        let rules = "[{to: [{operation: {paths: [/public*]}}]}, {from: [{source: {requestPrincipals: \
                     ['https://issuer.lab/*']}}], when: [{key: 'request.auth.claims[groups]', values: [admins]}]}]";
        site.mesh.write("claims.yaml", &policy("claims", service, "ALLOW", rules));
        eventually("who brings no token is refused", || site.ask(service, &[]).status() == 403);
        for family in FAMILIES {
            let ask = |args: &[&str]| site.ask_from("client", family, (service, WEB), args);
            assert!(ask(&["--path", "/public/page"]).all_good());
            assert!(ask(&["--header", &bearer(jwt::ALICE)]).all_good(), "alice is an admin");
            let bob = ask(&["--header", &bearer(jwt::BOB)]);
            assert_eq!((bob.status(), bob.text()), (403, "RBAC: access denied"), "bob is none");
            assert_eq!(ask(&["--header", &bearer(jwt::FORGED)]).status(), 401);
        }
        site.mesh.remove("claims.yaml");
        site.mesh.remove("tokens.yaml");
        eventually("nothing is checked any more", || with(jwt::FORGED, "/").all_good());
    }
}

#[test]
fn a_denied_request_is_answered_logged_and_counted_with_its_policy() {
    let Some(site) = Site::new() else { return };
    for (service, node) in [("near", "a"), ("far", "b")] {
        let rules = "[{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}], to: [{operation: {methods: \
                     [POST], paths: [/admin*]}}]}]";
        site.mesh.write("no-posts.yaml", &policy("no-posts", service, "DENY", rules));
        let post = ["--method", "POST", "--path", "/admin/users"];
        site.ask_until("posts are denied", service, &post, |answer| answer.status() == 403);
        for family in FAMILIES {
            let denied = site.ask_from("client", family, (service, WEB), &post);
            assert_eq!((denied.status(), denied.text()), (403, "RBAC: access denied"), "{}", denied.0);
        }
        assert!(site.ask(service, &["--path", "/admin/users"]).all_good(), "only posts");
        assert!(site.ask(service, &["--method", "POST", "--path", "/users"]).all_good(), "only of that path");
        let escaped = site.ask(service, &["--method", "POST", "--path", "/x/../%61dmin/users"]);
        assert_eq!(escaped.status(), 403, "however it is written");
        assert!(site.ask_from("other", Family::V4, (service, WEB), &post).all_good(), "only of that client");
        assert_eq!(site.seen(service, "/admin/users"), 2, "the application saw what was allowed");

        let rule = "ns[shop]-policy[no-posts]-rule[0]";
        let line = site.mesh.log_line(node, "a line about the denial", |line: &Value| {
            line["response_code"] == 403 && line["direction"] == "inbound" && line["method"] == "POST"
        });
        assert_eq!(
            line["response_code_details"],
            format!("rbac_access_denied_matched_policy[{rule}]"),
            "{line}"
        );
        assert_eq!(line["policy"], rule, "{line}");
        assert_eq!(line["source_principal"], "spiffe://cluster.local/ns/shop/sa/client");
        let labels =
            [("reporter", "destination"), ("response_code", "403"), ("destination_workload", service)];
        eventually("the denials are counted", || {
            site.mesh.metric(node, "istio_requests_total", &labels) >= 4.0
        });
        site.mesh.remove("no-posts.yaml");
        site.ask_until("posts are allowed again", service, &post, |answer| answer.all_good());
    }
}
