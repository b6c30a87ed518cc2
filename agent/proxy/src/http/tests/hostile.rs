//! Clients that try to be read in two ways, and those that ask for more than their share.

use weft_core::resource::PolicyAction;

use super::policy::{of_path, policy};
use super::*;

#[test]
fn a_query_without_a_path_is_for_the_root_also_where_policy_reads_it() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.route(vec![HttpRule { matches: prefix("/"), ..to_shop() }]);
        let raw = format!("GET http://{HOST}?x=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let uri = format!("http://{HOST}?x=1");
        let ask = || Request::get(&uri).body(Body::empty()).unwrap();
        assert!(mesh.raw(raw.as_bytes()).await.starts_with("HTTP/1.1 200"));
        assert_eq!(app.next().target(), "/?x=1");
        let reply = Reply::of(mesh.http2().await.send_request(ask()).await.unwrap()).await;
        assert_eq!((reply.status, app.next().target()), (200, "/?x=1"));
        mesh.bed.change([policy("no-root", PolicyAction::Deny, None, of_path("/"))]);
        assert!(mesh.raw(raw.as_bytes()).await.starts_with("HTTP/1.1 403"));
        let reply = Reply::of(mesh.http2().await.send_request(ask()).await.unwrap()).await;
        assert_eq!((reply.status, app.requests()), (403, 0));
    });
}

/// After an upgrade nobody looks at requests any more: HTTP/2 in there would be a way around policy.
#[test]
fn an_upgrade_to_http2_is_not_passed_on() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mesh = Mesh::near(bed, &app, PortProtocol::Http);
            let request = Request::get("/")
                .header("host", HOST)
                .header("connection", "Upgrade, HTTP2-Settings")
                .header("upgrade", "h2c")
                .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")
                .body(Body::empty());
            let reply = mesh.send(request.unwrap()).await;
            assert_eq!((reply.status, reply.body.as_str()), (200, "hello"), "{node}");
            let seen = app.next();
            for gone in ["connection", "upgrade", "http2-settings"] {
                assert_eq!(seen.header(gone), None, "{node}: {gone}");
            }
        }
    });
}

#[test]
fn crumbs_of_cookies_reach_an_http1_application_as_one_line() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let request = Request::get(format!("http://{HOST}/"))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Body::empty());
        let reply = Reply::of(mesh.http2().await.send_request(request.unwrap()).await.unwrap()).await;
        assert_eq!(reply.status, 200);
        let seen = app.next();
        assert_eq!(seen.head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    });
}
