//! Where requests go and what is changed on the way.

use std::time::Duration;

use weft_core::resource::MeshHttp;
use weft_core::resource::virtual_service::{
    CorsPolicy, DirectResponse, ExportTo, HeaderChanges, HeaderOperations, Mirror, PerMillion, Redirect,
    Rewrite,
};

use super::*;

#[test]
fn headers_and_paths_are_changed_as_the_rule_says() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let request = HeaderChanges {
            set: vec![("x-set".into(), "1".into())],
            add: vec![("x-old".into(), "new".into())],
            remove: vec!["x-old".into()],
        };
        let response =
            HeaderChanges { set: vec![("x-answer".into(), "2".into())], ..HeaderChanges::default() };
        mesh.route(vec![HttpRule {
            matches: prefix("/old"),
            rewrite: Some(Rewrite {
                uri: Some("/new".into()),
                regex: None,
                authority: Some("other.test".into()),
            }),
            headers: HeaderOperations { request, response },
            ..to_shop()
        }]);
        let mut sent = get("/old/x?y=1");
        sent.headers_mut().insert("x-old", "old".parse().unwrap());
        let reply = mesh.send(sent).await;
        assert_eq!((reply.status, reply.header("x-answer")), (200, Some("2")));
        let seen = app.next();
        assert_eq!((seen.target(), seen.header("host")), ("/new/x?y=1", Some("other.test")));
        assert_eq!((seen.header("x-set"), seen.header("x-old")), (Some("1"), Some("new")));
        assert_eq!(seen.header("x-envoy-original-path"), Some("/old/x?y=1"));
    });
}

/// V-17: operators in values, of requests, of answers, and of answers that the mesh gives.
#[test]
fn header_values_may_say_what_the_mesh_knows() {
    run(async {
        let bed = Bed::new("a");
        let app = App::answering(&bed, false, |_| {
            let answer =
                Response::builder().status(201).header("x-app", "%REQ(host)%").body(Body::full("hello"));
            answer.unwrap()
        })
        .await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let set = |pairs: &[(&str, &str)]| HeaderChanges {
            set: pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..HeaderChanges::default()
        };
        let request = set(&[
            ("x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
            ("x-from", "%HOSTNAME% by %PROTOCOL% at %START_TIME(%Y)%"),
        ]);
        let response = set(&[("x-told", "%RESPONSE_CODE% of %UPSTREAM_HOST%: %RESP(X-App)% 100%%")]);
        let direct = DirectResponse { status: 418, body: b"short"[..].into() };
        let tea = set(&[("x-told", "%RESPONSE_CODE% for %REQ(:path)%")]);
        mesh.route(vec![
            HttpRule {
                matches: prefix("/tea"),
                action: HttpAction::DirectResponse(direct),
                headers: HeaderOperations { request: HeaderChanges::default(), response: tea },
                ..HttpRule::default()
            },
            HttpRule { headers: HeaderOperations { request, response }, ..to_shop() },
        ]);
        let reply = mesh.get("/").await;
        let told = format!("201 of {}: %REQ(host)% 100%", app.addr);
        assert_eq!((reply.status, reply.header("x-told")), (201, Some(told.as_str())));
        let seen = app.next();
        assert_eq!(seen.header("x-client"), Some(mesh.bed.client_ip.to_string().as_str()));
        let from = seen.header("x-from").unwrap();
        assert!(from.starts_with("client by HTTP/1.1 at 20") && from.len() == 26, "{from}");
        let reply = mesh.get("/tea?%25").await;
        assert_eq!((reply.status, reply.header("x-told")), (418, Some("418 for /tea?%25")));
    });
}

#[test]
fn redirects_and_direct_answers_come_from_the_mesh() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let redirect = Redirect {
            uri: Some("/new".into()),
            prefix_rewrite: None,
            authority: Some("other.test".into()),
            port: None,
            scheme: None,
            code: 301,
        };
        let direct = DirectResponse { status: 418, body: b"short and stout"[..].into() };
        mesh.route(vec![
            HttpRule {
                matches: prefix("/old"),
                action: HttpAction::Redirect(redirect),
                ..HttpRule::default()
            },
            HttpRule { action: HttpAction::DirectResponse(direct), ..HttpRule::default() },
        ]);
        let reply = mesh.get("/old?q=1").await;
        assert_eq!((reply.status, reply.header("location")), (301, Some("http://other.test/new?q=1")));
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, reply.body.as_str()), (418, "short and stout"));
        assert_eq!(app.requests(), 0);
    });
}

#[test]
fn a_mirror_gets_a_copy_and_does_not_matter_when_it_is_dead() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mirror = |host: &str| Mirror {
            destination: DestinationRef { host: host.into(), subset: None, port: None },
            share: PerMillion::ALL,
        };
        mesh.route(vec![HttpRule { mirrors: vec![mirror(HOST), mirror("nobody.test")], ..to_shop() }]);
        let reply = mesh.send(post("/x", "a body")).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
        mesh.bed.until("the mirrored request", |_| app.requests() == 2).await;
        let seen = [app.next(), app.next()];
        let copies: Vec<_> = seen.iter().filter(|seen| seen.header("x-envoy-internal").is_some()).collect();
        assert_eq!(copies.len(), 1);
        for seen in &seen {
            assert_eq!(
                (seen.target(), &seen.body[..], seen.header("host")),
                ("/x", &b"a body"[..], Some(HOST))
            );
        }
        let [one, other] = &seen;
        assert_eq!(one.header("x-request-id"), other.header("x-request-id"));
    });
}

/// what is spoken to a mirror follows from the mirror's port, whatever the client and the application speak.
#[test]
fn a_mirror_is_spoken_to_as_its_own_port_says() {
    run(async {
        let bed = Bed::new("a");
        let (app, copies) = (App::echo(&bed, false).await, App::echo(&bed, true).await);
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let vip = SocketAddr::from(([10, 96, 9, 9], 80));
        let mut changes = service_speaking(PortProtocol::Http2, vip, &[copies.addr.ip()], copies.addr.port());
        for change in &mut changes {
            let Change::Upsert(resource) = change else { unreachable!("it is written") };
            match &mut **resource {
                Resource::Service(service) => service.meta = meta(name("copies")),
                Resource::EndpointSlice(slice) => {
                    slice.meta = meta(name("copies-1"));
                    slice.service = Some("copies".into());
                }
                other => unreachable!("{other:?}"),
            }
        }
        mesh.bed.change(changes);
        let host = "copies.shop.svc.cluster.local".into();
        let destination = DestinationRef { host, subset: None, port: None };
        mesh.route(vec![HttpRule {
            mirrors: vec![Mirror { destination, share: PerMillion::ALL }],
            ..to_shop()
        }]);
        assert_eq!(mesh.send(post("/x", "a body")).await.status, 200);
        mesh.bed.until("the mirrored request", |_| copies.requests() == 1).await;
        let (seen, copy) = (app.next(), copies.next());
        assert_eq!((seen.head.version, copy.head.version), (http::Version::HTTP_11, http::Version::HTTP_2));
        assert_eq!(&copy.body[..], b"a body");
    });
}

#[test]
fn a_mirror_that_never_answers_does_not_slow_the_client_down() {
    run(async {
        let bed = Bed::new("a");
        let app = App::handling(&bed, false, |request| {
            Box::pin(async move {
                if request.headers().contains_key("x-envoy-internal") {
                    std::future::pending::<()>().await;
                }
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                Response::new(Body::full(bytes.len().to_string()))
            })
        })
        .await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let destination = DestinationRef { host: HOST.into(), subset: None, port: None };
        mesh.route(vec![HttpRule {
            mirrors: vec![Mirror { destination, share: PerMillion::ALL }],
            ..to_shop()
        }]);
        let reply = mesh.send(post("/", vec![1; 8 * 1024 * 1024])).await;
        assert_eq!(reply.body, (8 * 1024 * 1024).to_string());
    });
}

#[test]
fn cors_answers_preflights_and_marks_answers() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let cors = CorsPolicy {
            allow_origins: vec![TextMatch::Exact("http://page.test".into())],
            allow_methods: vec!["GET".into()],
            allow_headers: Vec::new(),
            expose_headers: Vec::new(),
            max_age: Some(Duration::from_secs(60)),
            allow_credentials: None,
            ignore_unmatched_preflights: false,
        };
        mesh.route(vec![HttpRule { cors: Some(cors), ..to_shop() }]);
        let preflight = |origin: &str| {
            Request::options("/")
                .header("host", HOST)
                .header("origin", origin)
                .header("access-control-request-method", "GET")
                .body(Body::empty())
                .unwrap()
        };
        let reply = mesh.send(preflight("http://page.test")).await;
        assert_eq!((reply.status, reply.header("access-control-allow-methods")), (200, Some("GET")));
        assert_eq!(app.requests(), 0);
        assert_eq!(mesh.send(preflight("http://other.test")).await.body, "hello");
        let mut simple = get("/");
        simple.headers_mut().insert("origin", "http://page.test".parse().unwrap());
        assert_eq!(mesh.send(simple).await.header("access-control-allow-origin"), Some("http://page.test"));
    });
}

#[test]
fn a_new_configuration_acts_on_the_next_request_of_an_old_connection() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let mut client = mesh.http1().await;
        assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 200);
        let direct = DirectResponse { status: 410, body: [].into() };
        mesh.route(vec![HttpRule { action: HttpAction::DirectResponse(direct), ..HttpRule::default() }]);
        client.ready().await.unwrap();
        assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 410);
    });
}

#[test]
fn the_address_of_a_pod_reaches_that_pod() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        // The listener stands for capture: it has the address that the client dials.
        let addr = bed.listen(&bed.client, Role::Outbound, SocketAddr::new(bed.other_ip, 0));
        let mesh = Mesh { bed, vip: addr };
        let answer = mesh.raw(b"GET / HTTP/1.1\r\nHost: 10.0.0.9\r\nConnection: close\r\n\r\n").await;
        // What it accepted is addressed to itself: the proxy must recognise its own second connection.
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(mesh.bed.worker.shared.counters.all().contains(&("loops", 1)));
        assert!(mesh.bed.metrics().contains("destination_service_name=\"PassthroughCluster\""));
        drop(app);
    });
}

#[test]
fn a_host_that_nobody_registered_is_refused_where_only_registered_ones_are_allowed() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.bed.change([policy::mesh_config(true, MeshHttp::default())]);
        let request = Request::get("/").header("host", "nobody.test").body(Body::empty());
        let reply = mesh.send(request.unwrap()).await;
        assert_eq!((reply.status, reply.body.as_str()), (502, ""));
        assert_eq!(app.requests(), 0);
        mesh.logged("block_all").await;
        assert!(mesh.bed.metrics().contains("weft_refused_total{reason=\"unknown_host\",policy=\"\"} 1"));
        assert_eq!(mesh.get("/").await.status, 200, "a registered host is reached");
    });
}

/// from the next request on, also over a connection that is open.
#[test]
fn a_service_is_a_stranger_to_whom_it_is_not_exported() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let namespace = ExportTo::Namespace("elsewhere".into());
        for (services, status) in [
            (vec![ExportTo::Own], 200),
            (vec![namespace.clone()], 502),
            (vec![namespace, ExportTo::Own], 200),
            (vec![ExportTo::Nobody], 502),
            (vec![], 200),
        ] {
            mesh.bed.change([policy::exporting(services.clone())]);
            assert_eq!(mesh.get("/").await.status, status, "{services:?}");
        }
        assert_eq!(app.requests(), 3);
        mesh.logged("block_all").await;
    });
}
